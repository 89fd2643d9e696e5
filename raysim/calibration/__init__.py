"""This machine's training seconds over a model's widths, and the cost model fitted to them."""
