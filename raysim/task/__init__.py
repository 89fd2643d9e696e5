"""Tasks that models learn: the loss that clients minimise, and the metrics that score models."""
