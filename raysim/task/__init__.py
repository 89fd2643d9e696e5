"""What is learned: the loss that clients minimise, and the metrics that models are scored by."""
