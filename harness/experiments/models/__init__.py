"""The comparison of interatomic potentials: their speed, memory, errors and physics."""

from harness.experiments.experiment import CostJoin, Experiment

EXPERIMENT = Experiment(
    package=__name__,
    title="Interatomic potentials",
    programs=("models", "vector_biases"),
    costs={"models": CostJoin("stage", ("folder",), ("model",))},
    has_samples=True,
)
