"""Models by name, and their costs."""
