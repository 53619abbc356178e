"""Hyperparameter searches: spaces, nodes, halving, warm starts; failing trials; and searches that are killed."""

from __future__ import annotations

import csv
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest

from harness.protocol.errors import UsageError
from harness.protocol.events import read_last_events
from harness.protocol.programs.hpo import HpoParameters, Range
from harness.protocol.registry import parse_parameters
from harness.reference.errors import InputError
from harness.reference.programs.hpo import trial
from harness.reference.programs.hpo.halving import Halving
from harness.reference.programs.hpo.nodes import NodePool
from harness.reference.programs.hpo.optimizer import Optimizer
from harness.reference.programs.hpo.space import (
    contains_point,
    is_integer_range,
    merge_spaces,
    select_active_parameters,
)
from tests.support.programs import run_program

TRAINING: dict[str, Any] = {
    "model": {"hidden_dim": 4, "num_conv_layers": 1, "num_sharedlayers": 0, "dim_headlayers": 4, "max_neighbours": 8},
    "datasets": ["qm7x"],
    "max_structures_per_dataset": 60,
    "batch_size": 8,
    "epochs": 1,
    "samples_per_epoch": 16,
    "max_validation_structures": 8,
    "gate_steps": 0,
    "compile": False,
}
SPACE = {"hidden_dim": {"low": 4, "high": 8}, "learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}}
WIDE_SPACE = SPACE | {"learning_rate": {"low": 1e-12, "high": 1e31, "log": True}}
SMALL = {
    "space": SPACE,
    "trial": TRAINING,
    "max_trials": 2,
    "max_concurrent_trials": 2,
    "trial_timeout_minutes": 10.0,
    "initial_points": 2,
}


def run_search(folder: Path, **parameters: Any) -> list[dict[str, Any]]:
    """Return the events of a search in this process."""
    return read_last_events(run_program("hpo", SMALL | parameters, folder).path)


def write_trial(folder: Path, number: int, **point: Any) -> None:
    """Write a trial that an earlier search has prepared but not started."""
    trial_folder = folder / "trials" / f"{number:04d}"
    configuration = {"hidden_dim": 4, "learning_rate": 1e-3} | point
    trial.write_trial(trial.Trial(number, configuration, trial_folder, 60.0), TRAINING, configuration, search="before")


def index_trials(log: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    return {e["trial"]: e for e in log if e["event"] == "trial"}


@pytest.mark.slow
def test_a_search_runs_trials_and_writes_a_table(tmp_path: Path) -> None:
    log = run_search(tmp_path, max_trials=3)
    trials = index_trials(log)
    assert sorted(trials) == [0, 1, 2]
    for number, event in trials.items():
        epochs = [
            e for e in read_last_events(tmp_path / "trials" / f"{number:04d}" / "events.jsonl") if e["event"] == "epoch"
        ]
        errors = epochs[-1]["validation_energy_mae_ev_per_atom"], epochs[-1]["validation_force_mae_ev_per_angstrom"]
        assert event["objective"] == pytest.approx(-sum(errors) / 2)
        assert contains_point(HpoParameters(space=SPACE).space, event["configuration"])
    with (tmp_path / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {int(r["job_id"]): float(r["objective"]) for r in rows} == {n: e["objective"] for n, e in trials.items()}
    warm = tmp_path / "warm"
    warm.mkdir()
    warm_log = run_search(warm, max_trials=1, warm_start=[str(tmp_path / "results.csv")])
    (fact,) = [e["value"] for e in warm_log if e.get("name") == "warm_start"]
    assert (fact["received"], fact["outside_space"], fact["failed"]) == (3, 0, 0)


@pytest.mark.slow
def test_each_failure_of_a_trial_has_its_own_state(tmp_path: Path) -> None:
    """The search goes on after trials that are refused, diverge, hang or are killed."""
    write_trial(tmp_path, 0, num_conv_layers=0)
    write_trial(tmp_path, 1, learning_rate=1e30, samples_per_epoch=400)
    write_trial(tmp_path, 2, epochs=100_000)
    write_trial(tmp_path, 3, epochs=100_001)
    write_trial(tmp_path, 4)
    killer = threading.Thread(target=kill_when_started, args=(tmp_path / "trials" / "0003",))
    killer.start()
    log = run_search(tmp_path, space=WIDE_SPACE, max_trials=5, trial_timeout_minutes=0.75)
    killer.join()
    trials = index_trials(log)
    assert [trials[k]["state"] for k in range(5)] == ["failed", "diverged", "timeout", "failed", "done"]
    assert "num_conv_layers is 0" in trials[0]["reason"]
    assert "the loss is not finite" in trials[1]["reason"]
    assert trials[2]["reason"] == "not ended within 45 s"
    assert trials[3]["reason"] == "killed by SIGKILL"
    table = pd.read_csv(tmp_path / "results.csv", index_col="job_id")
    assert table.loc[[0, 1, 2], "objective"].tolist() == ["F_failed", "F_diverged", "F_timeout"]
    assert not [p for p in psutil.process_iter() if str(tmp_path) in " ".join(list_arguments(p))]


def kill_when_started(folder: Path) -> None:
    log = folder / "events.jsonl"
    deadline = time.monotonic() + 200
    while not any(e["event"] == "epoch" for e in read_last_events(log)) and time.monotonic() < deadline:
        time.sleep(0.05)
    (pid,) = [e["pid"] for e in read_last_events(log) if e["event"] == "start"]
    os.kill(pid, signal.SIGKILL)


def list_arguments(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_search_without_a_successful_trial_fails_with_the_reason(tmp_path: Path) -> None:
    for number in range(2):
        write_trial(tmp_path, number, num_conv_layers=0)
    with pytest.raises(InputError, match=r"objective: case\.json: model\.num_conv_layers is 0, expected at least 1$"):
        run_search(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("sent_signal", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_search_resumes(tmp_path: Path, sent_signal: signal.Signals) -> None:
    """No trial is lost or counted twice.

    After SIGKILL, the restarted search waits for the trials that are still running. After SIGTERM, which also stops the
    trials, it starts them again.
    """
    slow = {**TRAINING, "epochs": 200, "samples_per_epoch": 64}
    case = {"id": "1", "program": "hpo", "parameters": {**SMALL, "trial": slow, "max_trials": 2}}
    (tmp_path / "case.json").write_text(json.dumps(case))
    command = [sys.executable, "-m", "harness.reference", str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    first = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    wait_for(first, lambda: all(has_ended_an_epoch(tmp_path / "trials" / f"{k:04d}") for k in (0, 1)))
    first.send_signal(sent_signal)
    assert first.wait(60) != 0
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400, check=False)
    assert result.returncode == 0, result.stderr
    trials = index_trials(read_last_events(tmp_path / "events.jsonl"))
    assert sorted(trials) == [0, 1]
    assert {e["state"] for e in trials.values()} == {"done"}
    starts = [e for e in read_all_events(tmp_path / "trials" / "0000") if e["event"] == "start"]
    assert len(starts) == (1 if sent_signal == signal.SIGKILL else 2)


@pytest.mark.slow
def test_a_killed_search_has_the_points_and_objectives_of_an_uninterrupted_one(tmp_path: Path) -> None:
    """The search of five trials is killed when the second has been prepared, and again during the fourth."""
    uninterrupted, interrupted = tmp_path / "uninterrupted", tmp_path / "interrupted"
    case = {
        "id": "1",
        "program": "hpo",
        "parameters": {**SMALL, "max_trials": 5, "max_concurrent_trials": 1, "initial_points": 2},
    }
    command = [sys.executable, "-m", "harness.reference"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for folder in (uninterrupted, interrupted):
        folder.mkdir()
        (folder / "case.json").write_text(json.dumps(case))
    for condition in (
        (interrupted / "trials" / "0001" / "trial.json").exists,
        lambda: has_ended_an_epoch(interrupted / "trials" / "0003"),
    ):
        first = subprocess.Popen([*command, str(interrupted)], env=environment, stderr=subprocess.DEVNULL)
        wait_for(first, condition)
        first.kill()
        first.wait(60)
    for folder in (uninterrupted, interrupted):
        subprocess.run([*command, str(folder)], env=environment, capture_output=True, timeout=400, check=True)
    tables = [
        pd.read_csv(folder / "results.csv", index_col="job_id").sort_index() for folder in (uninterrupted, interrupted)
    ]
    same = [c for c in tables[0] if not c.startswith("m:timestamp")]
    pd.testing.assert_frame_equal(tables[0][same], tables[1][same])
    assert len(tables[0]) == 5
    # this file lists the calls of the optimizer
    assert (interrupted / "order").read_text().split() == (uninterrupted / "order").read_text().split()


def read_all_events(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


def has_ended_an_epoch(folder: Path) -> bool:
    return any(e["event"] == "epoch" for e in read_last_events(folder / "events.jsonl"))


def wait_for(search: subprocess.Popen[bytes], condition: Callable[[], bool]) -> None:
    """Wait until the condition holds; fail if the search ends before."""
    while not condition():
        assert search.poll() is None or condition(), f"the search ended with {search.returncode}"
        time.sleep(0.05)


def test_points_outside_the_space_are_left_out_and_counted(tmp_path: Path) -> None:
    """The optimizer receives only the points inside the space whose trials succeeded."""
    rows = ["4,0.001,-1.0", "9,0.001,-1.0", "5,0.5,-1.0", "4.5,0.001,-1.0", "6,0.002,F_timeout"]
    (tmp_path / "old.csv").write_text("p:hidden_dim,p:learning_rate,objective\n" + "\n".join(rows) + "\n")
    optimizer = Optimizer.create(
        HpoParameters(space=SPACE).space, ["accuracy"], seed=1, initial_points=2, folder=tmp_path
    )
    counts = optimizer.warm_up([tmp_path / "old.csv"])
    assert (counts.received, counts.outside_space, counts.failed) == (1, 3, 1)
    (tmp_path / "odd.csv").write_text("p:hidden_dim,objective\n4,-1\n")
    with pytest.raises(InputError, match=r"odd\.csv: no column 'p:learning_rate'"):
        optimizer.warm_up([tmp_path / "odd.csv"])
    with pytest.raises(InputError, match="not a table of results"):
        optimizer.warm_up([tmp_path / "none.csv"])


def test_optimizer_beats_its_random_initial_points(tmp_path: Path) -> None:
    """On a smooth function, the last points have higher values than the random initial points."""
    ranges = {"learning_rate": Range(low=1e-5, high=1e-1, log=True), "hidden_dim": Range(low=1, high=100)}
    space = merge_spaces(ranges)
    optimizer = Optimizer.create(space, ["accuracy"], seed=3, initial_points=8, folder=tmp_path)
    objectives = []
    for _ in range(24):
        point = optimizer.ask()
        value = -((math.log10(point["learning_rate"]) + 3) ** 2) - ((point["hidden_dim"] - 60) / 20) ** 2
        objectives.append(value)
        optimizer.tell(point, {"accuracy": value, "throughput": 1.0})
    assert sum(objectives[-8:]) / 8 > sum(objectives[:8]) / 8
    assert max(objectives) > -0.5


def test_points_stay_within_the_space_with_two_objectives(tmp_path: Path) -> None:
    """The objectives oppose each other, and some trials fail."""
    objectives: list[Any] = ["accuracy", "throughput"]
    optimizer = Optimizer.create(
        HpoParameters(space=SPACE).space, objectives, seed=1, initial_points=4, folder=tmp_path
    )
    for k in range(10):
        point = optimizer.ask()
        assert contains_point(HpoParameters(space=SPACE).space, point)
        values = {"accuracy": -1.0 / point["hidden_dim"], "throughput": -float(point["hidden_dim"])}
        optimizer.tell(point, None if k in (0, 6) else values)
    assert optimizer.seconds > 0


def test_space_contains_only_points_within_its_ranges_and_choices() -> None:
    space = merge_spaces({"a": Range(low=1, high=4), "b": Range(low=1, high=2.0), "c": ["x", "y"]}, {"a": [7]})
    assert space["a"] == [7]
    assert isinstance(space["b"], Range)
    assert not is_integer_range(space["b"])
    assert contains_point(space, {"a": 7, "b": 1.5, "c": "y"})
    for wrong in ({"a": 7, "b": 2.5, "c": "y"}, {"a": 7, "b": math.nan, "c": "y"}, {"a": 7, "c": "y"}):
        assert not contains_point(space, wrong)
    for bad in ({"low": 2, "high": 2}, {"low": 0.0, "high": 1.0, "log": True}):
        with pytest.raises(UsageError, match=r"space: hidden_dim: from"):
            parse_parameters("hpo", {"space": {"hidden_dim": bad}})


def test_hyperparameters_of_other_backbones_are_left_out() -> None:
    point = {"backbone": "egnn", "num_radial": 6, "hidden_dim": 8, "num_filters": 3, "learning_rate": 1e-3}
    assert select_active_parameters(point, default_backbone="painn") == {
        "backbone": "egnn", "hidden_dim": 8, "learning_rate": 1e-3,
    }  # fmt: skip
    assert select_active_parameters({"num_radial": 6, "num_filters": 3}, default_backbone="painn") == {"num_radial": 6}


def test_halving_stops_lagging_trials() -> None:
    halving = Halving(eta=2, min_epochs=1)
    assert [e for e in range(1, 20) if halving.is_rung(e)] == [1, 2, 4, 8, 16]
    assert halving.should_continue(0, 1, -5.0)
    assert halving.should_continue(1, 1, -4.0)
    assert not halving.should_continue(2, 1, -6.0)
    assert not halving.should_continue(2, 1, -6.0), "a trial that reports again after a kill counts only once"
    assert halving.should_continue(3, 1, -1.0)
    assert halving.should_continue(4, 3, -100.0)


def test_a_lagging_trial_is_stopped_and_keeps_its_objective(tmp_path: Path) -> None:
    """The second of two successive trials does not learn, and is worse after its first epoch."""
    write_trial(tmp_path, 0, learning_rate=3e-2, epochs=2, samples_per_epoch=160)
    write_trial(tmp_path, 1, learning_rate=1e-9, epochs=5000)
    trials = index_trials(
        run_search(tmp_path, space=WIDE_SPACE, max_concurrent_trials=1, halving={"eta": 2, "min_epochs": 1})
    )
    assert trials[0]["state"] == "done"
    assert trials[1]["state"] == "pruned"
    assert trials[1]["reason"] == "not in the best 1/2 of the trials after 1 epoch"
    assert trials[1]["objective"] < trials[0]["objective"]


def test_two_trials_never_share_a_node(tmp_path: Path) -> None:
    node_list = tmp_path / "nodes"
    node_list.write_text("n1 10.0.0.1\nn2 10.0.0.2\nn3 10.0.0.3\nn4 10.0.0.4\nn5 10.0.0.5\n")
    check = f"sed -i '/n2/d' {node_list}"
    pool = NodePool.from_environment(
        2, 1, {"GFM_HARNESS_HEALTHY_NODES": str(node_list), "GFM_HARNESS_CHECK_NODES": check}
    )
    assert pool.capacity == 2
    first, second = pool.acquire(), pool.acquire()
    names = [node.name for node in [*first, *second]]
    assert len(set(names)) == 4
    assert first[0].host == "10.0.0.1"
    with pytest.raises(InputError, match="free nodes: 1, needed for a trial: 2"):
        pool.acquire()
    assert pool.drop_unhealthy(first) == ["n2"]
    pool.release(first)
    assert {node.name for node in pool.acquire()} == {"n1", "n5"}
    assert pool.drop_unhealthy(second) == []
    # a check that finds no healthy node is itself broken, so no node is dropped
    pool_with_broken_check = NodePool.from_environment(
        2, 1, {"GFM_HARNESS_HEALTHY_NODES": str(node_list), "GFM_HARNESS_CHECK_NODES": f": > {node_list}"}
    )
    assert pool_with_broken_check.drop_unhealthy(pool_with_broken_check.acquire()) == []
    with pytest.raises(InputError, match="healthy nodes: 0, needed for a trial: 1"):
        NodePool.from_environment(1, 1, {"GFM_HARNESS_HEALTHY_NODES": str(node_list)})


def test_optimizer_does_not_import_mpi_uninitialized() -> None:
    """If mpi4py were imported but not initialized, the process would end when ASE queries it."""
    script = "import harness.reference.programs.hpo.optimizer, ase.parallel; assert ase.parallel.world.size == 1"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_objective_without_known_forces_is_that_of_the_energy() -> None:
    epoch = {"event": "epoch", "best": True, "structures_per_s": 5.0, "validation_energy_mae_ev_per_atom": 0.2}
    log = [{**epoch, "validation_force_mae_ev_per_angstrom": 0.4}, epoch]
    accuracies = [metrics.accuracy for metrics in (trial.read_metrics([event]) for event in log) if metrics]
    assert accuracies == pytest.approx([-0.3, -0.1])
