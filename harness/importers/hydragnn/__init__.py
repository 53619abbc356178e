"""Import logs of the original code, HydraGNN (github.com/ORNL/HydraGNN), as run folders.

Every text file at the path or below it is read, compressed or not: lines of standard output and run.log (epochs with
their losses, errors of the tasks, local timers, throughput of inference, command lines), config.json, and the files of
the tracer (gp_full.p<rank>, or gp_timing.p<rank> where it is missing, and <tool>_energy.p<rank>). Results
of one run that are in several files count once; a file with several runs is split. Other files are counted and named.
"""

from harness.importers.hydragnn.run_folders import import_logs

__all__ = ["import_logs"]
