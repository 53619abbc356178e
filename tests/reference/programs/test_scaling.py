"""Data-parallel training: ranks detect their number, share one gradient, and do not wait for ranks that have ended."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.drills.ports import find_free_ports
from harness.protocol import events
from harness.protocol.errors import UsageError
from harness.protocol.registry import parse_parameters
from harness.reference import __main__ as program
from harness.reference.data.neighbours import NeighbourSpec
from harness.reference.datasets.__main__ import main as run_datasets_command
from harness.reference.datasets.collection import Dataset, DatasetCollection, load_shipped
from harness.reference.distributed.group import process_group
from harness.reference.distributed.launch import LostRank, RankInfo
from harness.reference.storage.samples import Samples
from harness.reference.storage.sampling.sampler import MixtureSampler, SampleIndices, SamplingSpec
from harness.reference.storage.schema import Sample
from harness.reference.training.loader import BatchLoader, LabelledBatch
from harness.reference.training.loss import MultiTaskLoss, PerGraphErrors
from tests.conftest import ROOT
from tests.reference.conftest import SMALL, make_model
from tests.support.mpi import environment_without_launcher, find_mpiexec

BATCH, STEPS, EPOCHS = 4, 3, 2
TINY: dict[str, Any] = {
    "precision": "fp64",
    "model": {"hidden_dim": 16, "num_conv_layers": 2, "cutoff": 4.0, "num_sharedlayers": 0, "dim_headlayers": 8},
    "datasets": ["alexandria", "ani1x"],
    "steps": STEPS,
    "epochs": EPOCHS,
    "timeout_s": 20,
}
CPU = torch.device("cpu")
Log = list[events.Event]


def make_rank_environment(rank: int | None = None, size: int = 1, port: int = 0) -> dict[str, str]:
    """Return the environment of a job script and, for a rank, the variables that Open MPI sets."""
    variables = environment_without_launcher() | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "MASTER_ADDR": "127.0.0.1",
    }
    variables["MASTER_PORT"] = str(port or find_free_ports())
    if rank is None:
        return variables
    return variables | {
        f"OMPI_COMM_WORLD_{k}": str(v) for k, v in (("RANK", rank), ("SIZE", size), ("LOCAL_RANK", rank))
    }


def write_case(folder: Path, **parameters: object) -> Path:
    content = {"id": "1", "program": "data_parallel", "parameters": TINY | {"batch_size": BATCH} | parameters}
    (folder / "case.json").write_text(json.dumps(content))
    return folder


def launch_case(folder: Path, count: int) -> subprocess.CompletedProcess[str]:
    """Run a case with `count` ranks, without a launcher if `count` is 1."""
    command = [sys.executable, "-m", "harness.reference", str(folder)]
    if count > 1:
        command = [find_mpiexec(), "-n", str(count), *command]
    return subprocess.run(
        command, env=make_rank_environment(), capture_output=True, text=True, timeout=120, check=False
    )


def run_case(folder: Path, count: int, **parameters: object) -> Log:
    result = launch_case(write_case(folder, **parameters), count)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    log = list(events.read(folder / "events.jsonl"))
    assert [e["event"] for e in log if e["event"] in ("start", "done", "error")] == ["start", "done"]
    return log


def get_fact(log: Log, name: str) -> Any:
    (value,) = [e["value"] for e in log if e["event"] == "fact" and e["name"] == name]
    return value


def select_events(log: Log, kind: str) -> Log:
    return [e for e in log if e["event"] == kind]


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory: pytest.TempPathFactory) -> Log:
    return run_case(tmp_path_factory.mktemp("one"), 1)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Log:
    return run_case(tmp_path_factory.mktemp("two"), 2, batch_size=BATCH // 2)


def test_without_a_launcher_there_is_one_rank(one_rank: Log) -> None:
    assert [r["rank"] for r in get_fact(one_rank, "ranks")] == [0]
    assert get_fact(one_rank, "runtime")["world_size"] == 1
    assert get_fact(one_rank, "gradient_error") < 1e-12


def test_two_ranks_are_two_processes_with_the_gradient_of_one(two_ranks: Log) -> None:
    ranks = get_fact(two_ranks, "ranks")
    assert [(r["rank"], r["local_rank"]) for r in ranks] == [(0, 0), (1, 1)]
    assert all(r["node"] and r["host"] and r["cores"] >= 1 for r in ranks)
    assert get_fact(two_ranks, "runtime")["world_size"] == 2
    assert get_fact(two_ranks, "gradient_check") == {"ranks": 2, "structures": 4}
    assert 0 < get_fact(two_ranks, "gradient_error") < 1e-10
    assert get_fact(two_ranks, "parameter_divergence") == 0.0


def test_every_step_is_a_sample_and_the_first_epoch_is_discarded(two_ranks: Log) -> None:
    samples = select_events(two_ranks, "sample")
    assert [(s["epoch"], s["step"]) for s in samples] == [(e, k) for e in range(EPOCHS) for k in range(STEPS)]
    assert all(s["is_warmup"] == (s["epoch"] == 0) for s in samples)
    assert all(0 < s["duration_mean_s"] <= s["duration_s"] for s in samples)
    assert all(s["structures"] == BATCH and s["atoms"] > BATCH and s["edges"] > s["atoms"] for s in samples)
    compute_only, by_rank = select_events(two_ranks, "compute_only"), select_events(two_ranks, "rank_steps")
    assert len(compute_only) == len(by_rank) == STEPS
    for slowest, ranks in zip(compute_only, by_rank, strict=True):
        assert len(ranks["edges"]) == len(ranks["duration_s"]) == 2
        assert slowest["duration_s"] == max(ranks["duration_s"])


def test_throughput_is_graphs_over_the_time_of_the_slowest_rank(two_ranks: Log) -> None:
    epochs = [e for e in select_events(two_ranks, "epoch") if not e["is_warmup"]]
    assert get_fact(two_ranks, "throughput_structures_per_s") == [BATCH * STEPS / e["train_s"] for e in epochs]
    for epoch in epochs:
        steps = [s["duration_mean_s"] for s in select_events(two_ranks, "sample") if s["epoch"] == epoch["epoch"]]
        assert sum(steps) == pytest.approx(epoch["train_mean_s"], rel=0.2)


def test_one_and_two_ranks_with_the_same_total_batch_have_the_same_losses(one_rank: Log, two_ranks: Log) -> None:
    """Every step has the same graphs and, up to rounding, the same loss."""
    for a, b in zip(select_events(one_rank, "sample"), select_events(two_ranks, "sample"), strict=True):
        assert (a["atoms"], a["edges"]) == (b["atoms"], b["edges"])
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-7)
    assert select_events(one_rank, "sample")[0]["loss"] == pytest.approx(
        select_events(two_ranks, "sample")[0]["loss"], rel=1e-12
    )


def test_three_ranks_in_single_precision(tmp_path: Path) -> None:
    log = run_case(tmp_path, 3, precision="fp32", batch_size=1, model=TINY["model"] | {"num_conv_layers": 1})
    assert sorted(r["rank"] for r in get_fact(log, "ranks")) == [0, 1, 2]
    assert get_fact(log, "runtime")["parameters"] == ["torch.float32"]
    assert get_fact(log, "gradient_error") < 1e-4
    assert get_fact(log, "parameter_divergence") == 0.0


def test_bad_input_ends_all_ranks_and_is_logged_once(tmp_path: Path) -> None:
    result = launch_case(write_case(tmp_path, datasets=["nowhere"]), 2)
    assert result.returncode == 2
    # mpiexec may join the lines of two ranks
    assert result.stderr.count("error: ") == result.stderr.count("no shipped set") == 2
    assert result.stderr.count("rank 1 of 2: ") == 1
    (error,) = select_events(list(events.read(tmp_path / "events.jsonl")), "error")
    assert error["message"].startswith("no shipped set 'nowhere'")


def test_other_ranks_end_when_one_is_killed(tmp_path: Path) -> None:
    """The ranks are started without a launcher, which would end the other ranks itself."""
    write_case(tmp_path, steps=50, epochs=10000, batch_size=1)
    command, port = [sys.executable, "-m", "harness.reference", str(tmp_path)], find_free_ports()
    processes = [
        subprocess.Popen(command, env=make_rank_environment(r, 2, port), stderr=subprocess.PIPE, text=True)
        for r in (0, 1)
    ]
    try:
        wait_until(lambda: bool(select_events(list(events.read(tmp_path / "events.jsonl")), "epoch")))
        processes[1].send_signal(signal.SIGKILL)
        output = processes[0].communicate(timeout=30)[1]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert processes[0].returncode == 1
    (error,) = select_events(list(events.read(tmp_path / "events.jsonl")), "error")
    assert error["message"].startswith("another rank has ended or no longer answers: nothing from rank 1 for 2 s (")
    assert output == f"error: {error['message']}\n"


def wait_until(condition: Any) -> None:
    limit = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.05)


def synchronize_twice(rank_info: RankInfo) -> None:
    with process_group(rank_info, backend="gloo", device=CPU, timeout_s=20) as world:
        world.barrier()
        world.barrier()


def test_error_of_a_failing_rank_is_reported_by_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    script = """
from harness.reference.distributed import group, launch
import os, torch
with group.process_group(launch.detect_rank(os.environ), backend="gloo", device=torch.device("cpu"), timeout_s=20) as t:
    t.barrier()
    raise ZeroDivisionError("one\\ntwo")
"""
    port = find_free_ports()
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(port))
    other = subprocess.Popen(
        [sys.executable, "-c", script], env=make_rank_environment(1, 2, port), stderr=subprocess.DEVNULL
    )
    with pytest.raises(LostRank, match=r"^rank 1 failed: ZeroDivisionError: one \("):
        synchronize_twice(RankInfo(0, 2, 0))
    assert other.wait(timeout=20) == 1


def test_other_ranks_end_after_the_timeout_when_one_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_PORT", str(find_free_ports()))
    with (
        pytest.raises(LostRank, match=r"the 2 ranks did not all connect within 1 s"),
        process_group(RankInfo(0, 2, 0), backend="gloo", device=CPU, timeout_s=1),
    ):
        pass


def test_only_rank_0_writes_to_the_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "LINGER_S", 0.0)
    for name, value in make_rank_environment(rank=1, size=2).items():
        monkeypatch.setenv(name, value)
    assert program.main([str(write_case(tmp_path, datasets=["nowhere"]))]) == 2
    assert capsys.readouterr().err.startswith("error: rank 1 of 2: no shipped set 'nowhere'")
    assert [p.name for p in tmp_path.iterdir()] == ["case.json"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"precision": "fp16"},
        {"epochs": 1},
        {"steps": 0},
        {"datasets": []},
        {"widht": 3},
        {"store_folder": "x", "atoms": (1, 2)},
    ],
)
def test_parameters_out_of_bounds_are_bad_input(wrong: dict[str, object]) -> None:
    parse_parameters("data_parallel", {"batch_size": 1, "precision": "fp64"})
    with pytest.raises(UsageError):
        parse_parameters("data_parallel", {"batch_size": 1, "precision": "fp64"} | wrong)


def remove_forces(dataset: Dataset) -> Dataset:
    records = [{k: v for k, v in r.items() if k != "forces"} for r in dataset.samples.get(range(len(dataset.samples)))]
    return replace(dataset, samples=ListedSamples(records))


class ListedSamples(Samples):
    """Samples that are held in a list of records."""

    def __init__(self, records: list[Sample]) -> None:
        self.records = records

    def __len__(self) -> int:
        return len(self.records)

    def get(self, indices: Any) -> list[Sample]:
        return [self.records[int(k)] for k in indices]


def make_loader(ranks: int, batch_size: int) -> BatchLoader:
    collection = DatasetCollection(
        [load_shipped("mptrj"), remove_forces(load_shipped("ani1x"))], NeighbourSpec(SMALL.cutoff, None)
    )
    references = torch.zeros(16, 119, dtype=torch.float64)
    return BatchLoader(
        collection, MixtureSampler(SamplingSpec(collection.counts), ranks, batch_size), torch.float64, references
    )


def test_ranks_divide_the_batches_of_a_single_rank() -> None:
    single, divided = make_loader(1, 6), make_loader(3, 2)
    for step in range(12):
        pairs = [pair for rank in range(3) for pair in list_pairs(divided.select_indices(step, rank))]
        assert pairs == list_pairs(single.select_indices(step, 0))


def list_pairs(indices: SampleIndices) -> list[tuple[int, int]]:
    return list(zip(indices.dataset.tolist(), indices.index.tolist(), strict=True))


def test_mean_over_ranks_is_the_loss_of_all_graphs() -> None:
    """The graphs have different sizes, and some have no forces."""
    loader, module = make_loader(1, 8), PerGraphErrors(make_model(SMALL))

    def loss(labelled: LabelledBatch, graphs: int) -> torch.Tensor:
        return MultiTaskLoss(10.0, graphs)(module(*labelled), labelled[0].head)

    indices = loader.select_indices(0, 0)
    structures = [g.structure for g in loader.collection.load_graphs(indices)]
    assert {s.forces is None for s in structures} == {True, False}
    assert len({len(s) for s in structures}) > 1
    whole_loss = loss(loader.load_batch(indices, CPU), 8)
    parts = [loss(loader.load_batch(indices[k : k + 2], CPU), 2) for k in range(0, 8, 2)]
    torch.testing.assert_close(torch.stack(parts).mean(), whole_loss, rtol=1e-12, atol=0)
    uneven = [loss(loader.load_batch(indices[first:last], CPU), 2) for first, last in ((0, 1), (1, 2), (2, 3), (3, 8))]
    torch.testing.assert_close(torch.stack(uneven).mean(), whole_loss, rtol=1e-12, atol=0)


@pytest.mark.parametrize("mode", ["preload", "on_demand", "shared", "distributed"])
def test_training_on_stores_is_the_same_in_every_read_mode(
    tmp_path: Path, mode: str, stores: Path, single_rank_log: Log
) -> None:
    log = run_case(tmp_path, 2, batch_size=BATCH // 2, store_folder=str(stores), read_mode=mode)
    assert get_fact(log, "workload")["read_mode"] == mode
    assert {s["dataset"]: s["data_origin"] for s in get_fact(log, "workload")["datasets"]} == {
        "mptrj": "sample of MPTrj",
        "ani1x": "stand-in for ANI1x",
    }
    for a, b in zip(select_events(single_rank_log, "sample"), select_events(log, "sample"), strict=True):
        assert (a["atoms"], a["edges"]) == (b["atoms"], b["edges"])
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-7)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return two stores, one with the neighbour lists of the model and one without."""
    folder = tmp_path_factory.mktemp("stores")
    assert (
        run_datasets_command(["convert", "mptrj", "--to", str(folder), "--cutoff", "4", "--max-neighbours", "20", "-q"])
        == 0
    )
    assert run_datasets_command(["convert", "ani1x", "--to", str(folder), "-q"]) == 0
    return folder


@pytest.fixture(scope="module")
def single_rank_log(tmp_path_factory: pytest.TempPathFactory, stores: Path) -> Log:
    """Return the events of one rank that reads both stores into memory."""
    return run_case(tmp_path_factory.mktemp("single-rank"), 1, store_folder=str(stores))


def test_ranks_with_assigned_datasets_stay_synchronized(tmp_path: Path, stores: Path) -> None:
    log = run_case(tmp_path, 2, store_folder=str(stores), sampling="assigned")
    assert get_fact(log, "workload")["sampling"] == "assigned"
    assert get_fact(log, "parameter_divergence") == 0.0


def test_step_time_includes_waiting_for_data(two_ranks: Log) -> None:
    for epoch in select_events(two_ranks, "epoch"):
        waits = [s["wait_mean_s"] for s in select_events(two_ranks, "sample") if s["epoch"] == epoch["epoch"]]
        assert sum(waits) == pytest.approx(epoch["wait_mean_s"])
        assert 0 < epoch["wait_mean_s"] < epoch["train_mean_s"]
