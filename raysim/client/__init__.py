"""The client side of a round: local training, evaluation, and the update that is sent back."""
