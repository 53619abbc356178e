"""Runs of HydraGNN, the original code, from the logs that `harness collect --format hydragnn` has imported."""

from harness.experiments.experiment import Experiment

EXPERIMENT = Experiment(package=__name__, title="Original runs", programs=("hydragnn",), page="original")
