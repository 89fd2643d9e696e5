"""Selection: the rules that choose the clients of a round."""
