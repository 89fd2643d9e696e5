"""Data sets in memory, their transforms, and the partition of their rows among clients."""
