"""What runs cost: energy, GPU-hours and use of the machine, from telemetry; joined to the tables of all experiments."""

from harness.experiments.experiment import Experiment

EXPERIMENT = Experiment(package=__name__, title="Cost", programs=("omnistat",))
