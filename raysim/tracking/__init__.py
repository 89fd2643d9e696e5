"""What a run writes to MLflow and its folder, and how it is read back."""
