"""What a run prints: progress, tables, summaries."""
