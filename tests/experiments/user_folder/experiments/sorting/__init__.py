"""An example of a user's experiment: it measures how fast random numbers are sorted."""

from harness.experiments.experiment import Experiment

EXPERIMENT = Experiment(package=__name__, title="Sorting", programs=("sorting",))
