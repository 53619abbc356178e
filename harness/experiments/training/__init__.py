"""Training of models: learning curves, errors on held-out structures, and multi-task against single-task training."""

from harness.experiments.experiment import CostJoin, Experiment

EXPERIMENT = Experiment(
    package=__name__,
    title="Training",
    programs=("train",),
    costs={"training_runs": CostJoin()},
)
