"""Runs of HydraGNN, the original code, whose logs `harness import hydragnn` has imported."""

from harness.experiments.experiment import Experiment

EXPERIMENT = Experiment(package=__name__, title="HydraGNN", programs=("hydragnn",), page="hydragnn")
