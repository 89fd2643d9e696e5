"""The client side of a round: local training, evaluation, what is sent back."""
