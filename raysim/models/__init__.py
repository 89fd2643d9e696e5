"""Named models and what they cost."""
