"""The inference ladder (Table XV of the paper) and training steps: speed-up and error of each stage."""

from harness.experiments.experiment import CostJoin, Experiment

EXPERIMENT = Experiment(
    package=__name__,
    title="Inference ladder",
    programs=("ladder", "training_steps"),
    costs={
        "ladder": CostJoin("stage", ("folder",), ("stage",)),
        "training_steps": CostJoin("stage", ("folder",), ("stage",)),
    },
    has_samples=True,
)
