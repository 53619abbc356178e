"""Hyperparameter searches: trials, the best configurations, and the importance of each hyperparameter."""

from harness.experiments.experiment import CostJoin, Experiment

EXPERIMENT = Experiment(
    package=__name__,
    title="Hyperparameter search",
    programs=("hpo",),
    page="search",
    costs={
        "hpo_searches": CostJoin(),
        "hpo_trials": CostJoin("trial", ("campaign", "case"), ("trial",)),
    },
)
