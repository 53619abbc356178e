"""Scaling runs name the ranks that compute slower than the others, per edge of their batches."""

from __future__ import annotations

import numpy as np
import pytest

from harness.experiments.scaling.metrics import describe_slow_ranks
from harness.results.runs import RunRecord
from tests.experiments.test_projection import simulate_step

RANKS, STEPS, BATCH = 8, 20, 32


def simulate_run(seed: int, slow: int | None = None) -> RunRecord:
    """Return a run in which one rank has 80% of the speed of the others."""
    rng = np.random.default_rng(seed)
    events = []
    for step in range(STEPS):
        seconds, sizes = simulate_step(rng, RANKS, BATCH)
        if slow is not None:
            seconds[slow] /= 0.8
        events.append({"step": step, "duration_s": seconds.tolist(), "edges": sizes[:, 1].tolist()})
    facts = {"ranks": [{"node": f"n{k}", "host": "h"} for k in range(RANKS)]}
    return RunRecord("runs/a/b", {}, "done", facts=facts, events_by_kind={"rank_steps": events})  # type: ignore[dict-item]


def test_slow_rank_is_found_20_of_20_times() -> None:
    for seed in range(20):
        text = describe_slow_ranks(simulate_run(seed, slow=seed % RANKS))
        assert text.startswith(f"n{seed % RANKS}, rank {seed % RANKS}: "), seed
        assert float(text.split(": ")[1].split("%")[0]) == pytest.approx(80, abs=5)
        assert ";" not in text


def test_even_ranks_raise_no_alarm_in_20_runs() -> None:
    assert [describe_slow_ranks(simulate_run(seed)) for seed in range(20)] == [""] * 20


def test_run_without_the_times_of_ranks_has_no_slow_ranks() -> None:
    assert describe_slow_ranks(RunRecord("runs/a/b", {}, "done")) == ""
