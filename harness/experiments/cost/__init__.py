"""Costs of runs from telemetry (energy, GPU-hours, utilization), joined to the tables of all experiments."""

from harness.experiments.experiment import Experiment

EXPERIMENT = Experiment(package=__name__, title="Cost", programs=("omnistat",))
