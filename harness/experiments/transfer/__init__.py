"""Fine-tuning on downstream tasks: errors over labels, and gains of pretraining."""

from harness.experiments.experiment import CostJoin, Experiment

EXPERIMENT = Experiment(
    package=__name__,
    title="Transfer",
    programs=("transfer",),
    costs={"transfer_tasks": CostJoin()},
)
