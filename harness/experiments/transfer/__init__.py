"""Fine-tuning on downstream tasks: errors for each number of labels, and gains from pretraining."""

from harness.experiments.experiment import CostJoin, Experiment

EXPERIMENT = Experiment(
    package=__name__,
    title="Transfer",
    programs=("transfer",),
    costs={"transfer_tasks": CostJoin()},
)
