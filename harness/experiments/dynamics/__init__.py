"""Molecular dynamics and relaxations in batches: time per atom and step, conservation, and comparison with ASE."""

from harness.experiments.experiment import CostJoin, Experiment

EXPERIMENT = Experiment(
    package=__name__,
    title="Molecular dynamics and relaxations",
    programs=("dynamics",),
    costs={"dynamics": CostJoin()},
    has_samples=True,
)
