"""The program `ladder`: all stages of the optimization ladder in turn, on the same batches in one process."""
