"""Data in memory and who owns which rows."""
