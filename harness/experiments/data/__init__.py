"""Datasets, their imbalance, and the rates of reading them."""

from harness.experiments.experiment import Experiment

EXPERIMENT = Experiment(package=__name__, title="Data", programs=("data",))
