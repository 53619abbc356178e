"""Import logs of HydraGNN (github.com/ORNL/HydraGNN), the code of the paper, as run folders.

The importer reads every text file at the path or below it, compressed or not: lines of standard output and run.log
(epochs with their losses, errors of the tasks, local timers, throughput of inference, command lines), config.json, and
the files of the tracer (gp_full.p<rank>, or gp_timing.p<rank> where gp_full is missing, and <tool>_energy.p<rank>). If
several files contain the results of one run, the results count once; a file with several runs is split. The importer
reports the number of other files and names some of them.
"""

from harness.importers.hydragnn.run_folders import import_logs

__all__ = ["import_logs"]
