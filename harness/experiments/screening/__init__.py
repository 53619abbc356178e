"""Screening of candidates: rates, times for the paper's number of candidates, best candidates, and reliability."""

from harness.experiments.experiment import CostJoin, Experiment

EXPERIMENT = Experiment(
    package=__name__,
    title="Screening",
    programs=("screening",),
    costs={"screening_runs": CostJoin()},
)
