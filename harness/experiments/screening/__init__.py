"""Screenings of candidates: rates, the time for the paper's number of them, the best, and how far to trust them."""

from harness.experiments.experiment import CostJoin, Experiment

EXPERIMENT = Experiment(
    package=__name__,
    title="Screening",
    programs=("screening",),
    costs={"screening_runs": CostJoin()},
)
