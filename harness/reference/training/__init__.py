"""Multi-task training: heads of all datasets at once, on any number of ranks."""
