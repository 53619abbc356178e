"""First-principles labels of new structures, and the errors of a model against them."""

from harness.experiments.experiment import CostJoin, Experiment

EXPERIMENT = Experiment(
    package=__name__,
    title="Labels",
    programs=("labels",),
    costs={"labels": CostJoin()},
)
