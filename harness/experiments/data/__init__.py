"""Datasets, their imbalance, and how fast they are read."""

from harness.experiments.experiment import Experiment

EXPERIMENT = Experiment(package=__name__, title="Data", programs=("data",))
