"""The registry of experiments in the order of their pages: shipped experiments, then experiments of the user."""

from __future__ import annotations

import importlib
from functools import cache

from harness.experiments.experiment import Experiment
from harness.protocol import user_experiments
from harness.protocol.errors import UsageError

SHIPPED = (
    "harness.experiments.data",
    "harness.experiments.training",
    "harness.experiments.generalisation",
    "harness.experiments.hpo",
    "harness.experiments.scaling",
    "harness.experiments.precision",
    "harness.experiments.ladder",
    "harness.experiments.models",
    "harness.experiments.dynamics",
    "harness.experiments.transfer",
    "harness.experiments.screening",
    "harness.experiments.labels",
    "harness.experiments.preflight",
    "harness.experiments.cost",
    "harness.experiments.hydragnn",
)


@cache
def load_experiments() -> tuple[Experiment, ...]:
    """Return all experiments; raise UsageError if an experiment of the user is invalid."""
    shipped = [importlib.import_module(package).EXPERIMENT for package in SHIPPED]
    pages = {experiment.page for experiment in shipped}
    custom = []
    for name, folder in user_experiments.find_experiments().items():
        experiment = user_experiments.import_experiment(name).EXPERIMENT
        if not isinstance(experiment, Experiment):
            raise UsageError(f"{folder / '__init__.py'}: EXPERIMENT is not a harness.experiments.experiment.Experiment")
        if experiment.page in pages:
            raise UsageError(
                f"{folder / '__init__.py'}: the report already has a page named {experiment.page!r};"
                " choose another name"
            )
        pages.add(experiment.page)
        custom.append(experiment)
    return (*shipped, *custom)


def find_experiment(program: str) -> Experiment | None:
    """Return the experiment whose page shows the runs of a program; None if there is no such experiment."""
    return next((experiment for experiment in load_experiments() if program in experiment.programs), None)
