"""Runs of HydraGNN, the code of the paper, whose logs `harness import hydragnn` has imported."""

from harness.experiments.experiment import Experiment

EXPERIMENT = Experiment(package=__name__, title="HydraGNN", programs=("hydragnn",), page="hydragnn")
