"""Weak and strong scaling of data-parallel training, and a projection to more ranks."""

from harness.experiments.experiment import CostJoin, Experiment

EXPERIMENT = Experiment(
    package=__name__,
    title="Scaling",
    programs=("data_parallel",),
    costs={"scaling": CostJoin()},
)
