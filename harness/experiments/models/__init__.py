"""Interatomic potentials compared: speed, memory, errors, and whether their physics is right."""

from harness.experiments.experiment import CostJoin, Experiment

EXPERIMENT = Experiment(
    package=__name__,
    title="Interatomic potentials",
    programs=("models", "vector_biases"),
    costs={"models": CostJoin("stage", ("folder",), ("model",))},
    has_samples=True,
)
