"""Screening of candidates: rates, times for the paper's workload, best candidates, and reliability of results."""

from harness.experiments.experiment import CostJoin, Experiment

EXPERIMENT = Experiment(
    package=__name__,
    title="Screening",
    programs=("screening",),
    costs={"screening_runs": CostJoin()},
)
