"""How fast random numbers are sorted: an experiment of a user, complete in this folder."""

from harness.experiments.experiment import Experiment

EXPERIMENT = Experiment(package=__name__, title="Sorting", programs=("sorting",))
