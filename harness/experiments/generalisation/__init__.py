"""Training with structures held out: errors inside and outside the training sets."""

from harness.experiments.experiment import Experiment

# The runs are cases of the program `train`, which belongs to the experiment on training.
EXPERIMENT = Experiment(package=__name__, title="Generalisation", programs=())
