"""Write runs to MLflow and to their folders, and read them back."""
