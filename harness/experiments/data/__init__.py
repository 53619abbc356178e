"""Datasets, their imbalance, and the rates at which they are read."""

from harness.experiments.experiment import Experiment

EXPERIMENT = Experiment(package=__name__, title="Data", programs=("data",))
