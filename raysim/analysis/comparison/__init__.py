"""Several methods over one split and several seeds, side by side."""
