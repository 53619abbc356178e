"""The optimization ladder: all stages in turn on the same batches in one process, raw samples kept."""
