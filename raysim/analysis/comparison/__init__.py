"""Compare existing runs: rows, tables, fronts and curves."""
