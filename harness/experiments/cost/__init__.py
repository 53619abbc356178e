"""Costs of runs from telemetry (energy, GPU-hours, utilization), also added to tables of other experiments."""

from harness.experiments.experiment import Experiment

EXPERIMENT = Experiment(package=__name__, title="Cost", programs=("omnistat",))
