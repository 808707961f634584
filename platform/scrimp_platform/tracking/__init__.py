"""MLflow: the mirror of what is on disk, its runs, its server and its database."""
