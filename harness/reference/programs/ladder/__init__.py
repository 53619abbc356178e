"""The program `ladder`: the stages of the inference optimization ladder, timed in turn on the same batches."""
