"""Many settings tried side by side on Ray Tune, the poor ones given up early."""
