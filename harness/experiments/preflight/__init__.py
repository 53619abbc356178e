"""Checks of a machine before the first campaign, and of the calculations on one accelerator."""

from harness.experiments.experiment import Experiment

EXPERIMENT = Experiment(package=__name__, title="Preflight", programs=("preflight",))
