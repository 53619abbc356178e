"""Throughput, memory and accuracy in BF16, FP32 and FP64, in training and in inference."""

from harness.experiments.experiment import CostJoin, Experiment

EXPERIMENT = Experiment(
    package=__name__,
    title="Precision",
    programs=("precision",),
    costs={"precision_costs": CostJoin("precision", ("folder",), ("phase", "precision"))},
)
