"""A screening of real candidates: what it tells, that kills and damage lose nothing, and that the proof is one."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms

from harness.protocol.errors import UsageError
from harness.protocol.events import last_run
from harness.protocol.programs.screening import Candidates
from harness.reference.data.neighbours import build_neighbour_list
from harness.reference.errors import InputError
from harness.reference.inference.calculator import ReferenceCalculator
from harness.reference.inference.prediction import batched_heads
from harness.reference.models import checkpoints
from harness.reference.models.coverage import OutsideTraining
from harness.reference.programs.screening import program, result_segments
from harness.reference.programs.screening.candidates.choice import build_workload
from harness.reference.programs.screening.index_partition import IndexPartition, checksum, checksum_of_range
from harness.reference.programs.screening.merge_results import global_top_k, results_files, top
from harness.reference.programs.screening.retention import Retention
from harness.reference.programs.screening.scoring import COLUMNS, Scores, concatenate_scores
from tests.conftest import needs
from tests.support.cluster import free_ports
from tests.support.programs import run_program

FEW: dict[str, Any] = {"kind": "prototypes", "elements": ["O", "Na", "Cl", "Fe"], "volumes": [1.1, 1.3]}
SMALL: dict[str, Any] = {
    "workload": FEW, "part": 64, "candidates": 640, "keep": {"what": "all"}, "compile": False, "edges": 5000,
}  # fmt: skip


def screened(folder: Path, **parameters: Any) -> list[dict[str, Any]]:
    folder.mkdir(exist_ok=True)
    return last_run(run_program("screening", SMALL | parameters, folder).path)


def kept_in(folder: Path) -> Scores:
    covered = [c for path in results_files(folder) for c in result_segments.read(path)]
    kept = [c.kept for c in sorted(covered, key=lambda c: c.part) if c.kept is not None]
    return Scores(kept[0].names, np.concatenate([k.index for k in kept]), np.concatenate([k.values for k in kept]))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    screened(folder)
    return folder


def test_what_is_told_is_what_the_model_says(whole: Path) -> None:
    """Energies and largest forces of some candidates against the inference stages, structure by structure."""
    from harness.reference.data.batch import build_batch

    model = checkpoints.load_named("painn-64")[0].float().requires_grad_(False).eval()
    workload = build_workload(Candidates(elements=("O", "Na", "Cl", "Fe"), volumes=(1.1, 1.3)), model)
    kept = kept_in(whole)
    assert kept.names == ("energy_ev_per_atom", "beyond_ev_per_atom", "spread_ev_per_atom", "force_max_ev_per_a")
    for place in (0, 101, 333, len(kept) - 1):
        structure = workload.structure(int(kept.index[place]))
        graph = build_neighbour_list(structure, cutoff=model.config.cutoff, max_neighbours=model.config.max_neighbours)
        batch = build_batch([graph]).to("cpu", torch.float32)
        found = batched_heads(model, batch, model.gate_weights(batch.composition))
        told = dict(zip(kept.names, kept.values[place].tolist(), strict=True))
        assert told["energy_ev_per_atom"] == pytest.approx(float(found.energy[0]) / len(structure), rel=2e-5, abs=1e-3)
        assert told["force_max_ev_per_a"] == pytest.approx(float(found.forces.norm(dim=1).max()), rel=1e-3, abs=1e-3)


def test_every_candidate_is_taken_once_and_that_is_proven(whole: Path) -> None:
    (proof,) = [e for e in last_run(whole / "events.jsonl") if e["event"] == "proof"]
    kept = kept_in(whole)
    assert len(kept) == proof["evaluated"] == proof["candidates"] == 640
    assert f"{checksum(kept.index):016x}" == proof["checksum"] == proof["expected"]
    assert len(set(kept.index.tolist())) == 640
    assert not (whole / "segments").exists()


@pytest.mark.parametrize("kind", ["left out", "twice", "another"])
def test_the_checksum_tells(kind: str) -> None:
    index = np.arange(1000, 5000)
    wrong = {
        "left out": np.delete(index, 17),
        "twice": np.append(index, 1003),
        "another": np.where(index == 1003, 999, index),
    }
    assert checksum(index) == checksum_of_range(1000, 5000)
    assert checksum(wrong[kind]) != checksum_of_range(1000, 5000)


def test_the_best_of_parts_are_the_best_of_all(whole: Path, tmp_path: Path) -> None:
    screened(tmp_path / "top", keep={"what": "top", "by": "spread_ev_per_atom", "count": 9, "highest": True})
    every = kept_in(whole)
    order = np.lexsort((every.index, -every.column("spread_ev_per_atom")))[:9]
    with (tmp_path / "top" / "best.csv").open() as file:
        best = [int(row["candidate"]) for row in csv.DictReader(file)]
    assert best == every.index[order].tolist()


def test_a_predicate_keeps_what_is_within(whole: Path, tmp_path: Path) -> None:
    screened(tmp_path / "in", keep={"what": "within", "by": "beyond_ev_per_atom", "low": -0.2, "high": 0.0})
    every = kept_in(whole)
    values = every.column("beyond_ev_per_atom")
    assert kept_in(tmp_path / "in").index.tolist() == every.index[(values >= -0.2) & (values <= 0.0)].tolist()
    screened(tmp_path / "none", keep={"what": "within", "by": "beyond_ev_per_atom", "low": 1e30})
    assert len(kept_in(tmp_path / "none")) == 0


@pytest.mark.slow
def test_ranks_that_are_killed_lose_nothing(whole: Path, tmp_path: Path) -> None:
    """Two ranks, killed twice in mid-course, go on to the very results of one that was left in peace."""
    case = {"id": "1", "program": "screening", "parameters": SMALL | {"commit_s": 0.0}}
    (tmp_path / "case.json").write_text(json.dumps(case))
    words = ["mpiexec", "-n", "2", sys.executable, "-m", "harness.reference", str(tmp_path)]
    programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PATH": programs, "MASTER_ADDR": "127.0.0.1"}
    for files in (2, 5):
        environment["MASTER_PORT"] = str(free_ports())
        run = subprocess.Popen(
            words, env=environment, start_new_session=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 200
        while len(list((tmp_path / "segments").glob("*.bp"))) < files:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        os.killpg(run.pid, signal.SIGKILL)
        run.wait(60)
    time.sleep(1.0)
    environment["MASTER_PORT"] = str(free_ports())
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr
    log = last_run(tmp_path / "events.jsonl")
    (found,) = [e for e in log if e["event"] == "found"]
    assert 5 <= found["parts"] < 10
    assert [e["candidates"] for e in log if e["event"] == "proof"] == [640]
    one, other = kept_in(whole), kept_in(tmp_path)
    assert one.index.tolist() == other.index.tolist()
    assert np.abs(one.values - other.values).max() < 1e-3


def test_a_damaged_file_is_made_again_and_a_foreign_one_is_not_thrown_away(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "segments").mkdir()
    identity = identity_in(whole)
    covered = [c for path in results_files(whole) for c in result_segments.read(path)]
    names = covered[0].kept.names if covered[0].kept else ()
    for k in range(3):
        result_segments.write(tmp_path / "segments" / f"{k}.bp", [covered[2 * k : 2 * k + 2]], names, identity)
    data = tmp_path / "segments" / "1.bp" / "data.0"
    data.write_bytes(data.read_bytes()[:-100])
    shutil.copytree(tmp_path / "segments" / "2.bp", tmp_path / "segments" / "9.bp.part")
    log = screened(tmp_path)
    (found,) = [e for e in log if e["event"] == "found"]
    assert (found["parts"], found["files"], len(found["useless"])) == (4, 2, 2)
    assert kept_in(tmp_path).index.tolist() == kept_in(whole).index.tolist()
    other = tmp_path / "other"
    (other / "segments").mkdir(parents=True)
    result_segments.write(other / "segments" / "0.bp", [covered[:1]], names, "another")
    with pytest.raises(InputError, match="results of another screening"):
        screened(other)
    assert (other / "segments" / "0.bp").exists()


def identity_in(folder: Path) -> str:
    from harness.reference.storage.adios.writer import BPFile

    with BPFile(results_files(folder)[0]) as file:
        return str(file.attributes["identity"])


def test_a_finished_screening_started_again_proves_itself_again(whole: Path, tmp_path: Path) -> None:
    place = tmp_path / "again"
    shutil.copytree(whole, place)
    log = screened(place)
    (proof,) = [e for e in log if e["event"] == "proof"]
    assert proof["before"] is True
    assert proof["candidates"] == 640


@pytest.mark.parametrize("energy_only", [False, True])
def test_fused_messages_tell_the_same(whole: Path, tmp_path: Path, energy_only: bool) -> None:
    """Up to rounding, and so results of both may stand in one file."""
    needs("g++")
    log = screened(tmp_path, messages="fused", energy_only=energy_only, compile=True)
    (model,) = [e["value"] for e in log if e["event"] == "fact" and e["name"] == "model"]
    assert (model["messages"], model.get("why_plain")) == ("fused", None)
    one, other = kept_in(whole), kept_in(tmp_path)
    assert one.index.tolist() == other.index.tolist()
    for name in other.names:
        assert other.column(name) == pytest.approx(one.column(name), rel=1e-4, abs=1e-3)


def test_where_there_is_no_operator_messages_are_plain_and_the_reason_is_told(tmp_path: Path) -> None:
    model = {"backbone": "egnn", "hidden_dim": 8, "num_conv_layers": 2, "cutoff": 5.0, "dim_headlayers": 8}
    log = screened(tmp_path, messages="fused", checkpoint=None, model=model, candidates=64)
    (told,) = [e["value"] for e in log if e["event"] == "fact" and e["name"] == "model"]
    assert told["messages"] == "plain"
    assert "not egnn" in told["why_plain"]


def test_without_a_compiler_that_works_it_goes_on_and_says_why(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("no compiler today\nand more")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: fail)
    log = screened(tmp_path, compile=True)
    (rank,) = [e for e in log if e["event"] == "rank"]
    assert rank["why_eager"] == "no compiler today"
    assert np.array_equal(kept_in(tmp_path).values, kept_in(whole).values)


@pytest.mark.parametrize(("highest", "count"), [(False, 5), (True, 5), (False, 100), (False, 500)])
def test_the_best_of_all_ranks_are_found_though_few_are_sent(highest: bool, count: int) -> None:
    """Four ranks, one of which has nothing, one less than is asked for, and ties between them."""
    rng = np.random.default_rng(0)
    keeping = Retention(count=count, highest=highest)
    own, first = [], 0
    for size in (40, 0, 3, 60):
        values = rng.integers(-9, 9, (size, len(COLUMNS))).astype(np.float32)
        own.append(top(Scores(tuple(COLUMNS), np.arange(first, first + size), values), keeping))
        first += size
    with ThreadPoolExecutor(4) as pool:
        team = Together(4)
        found = list(pool.map(lambda rank: global_top_k(own[rank], keeping, OneOf(team, rank)), range(4)))  # type: ignore[arg-type]
    expected = top(concatenate_scores(tuple(COLUMNS), own), keeping)
    assert found[0].index.tolist() == expected.index.tolist()
    assert [len(scores) for scores in found[1:]] == [0, 0, 0]
    assert sum(team.sent) <= max(2 * count, 20)


@dataclass
class Together:
    """What four threads have brought to a meeting."""

    size: int
    brought: dict[int, Any] = field(default_factory=dict)
    sent: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.barrier = threading.Barrier(self.size)

    def all(self, rank: int, value: Any) -> list[Any]:
        self.brought[rank] = value
        self.barrier.wait()
        found = [self.brought[k] for k in range(self.size)]
        self.barrier.wait()
        return found


@dataclass
class OneOf:
    """A rank of a team that meets in one process."""

    together: Together
    rank: int

    def all_reduce_max(self, numbers: torch.Tensor) -> torch.Tensor:
        return torch.stack(self.together.all(self.rank, numbers)).amax(0)

    def all_reduce_sum(self, numbers: torch.Tensor) -> torch.Tensor:
        return torch.stack(self.together.all(self.rank, numbers)).sum(0)

    def gather(self, value: Scores) -> list[Scores]:
        self.together.sent.append(len(value))
        found = self.together.all(self.rank, value)
        return found if self.rank == 0 else []


@pytest.mark.filterwarnings("ignore:the model takes")
def test_what_the_heads_do_not_know_is_counted_and_never_ranked(tmp_path: Path) -> None:
    """Iron is known to no head together with sodium; at volumes of a tenth, atoms are closer than in training."""
    model = checkpoints.load_named("painn-64")[0]
    sodium, iron = (model.known_elements[:, z].clone() for z in (11, 26))
    model.known_elements[:8, 11] = False
    model.known_elements[8:, 26] = False
    assert (sodium & iron).any()
    checkpoints.save(model, tmp_path / "parted.safetensors", {})
    workload = FEW | {"volumes": [0.1, 1.3]}
    options = {"checkpoint": str(tmp_path / "parted.safetensors"), "workload": workload, "precision": "fp64"}
    log = screened(tmp_path / "run", **options)
    (rank,) = [e for e in log if e["event"] == "rank"]
    kept = kept_in(tmp_path / "run")
    assert set(rank["unranked"]) == {"elements outside the heads", "atoms closer than in training"}
    assert rank["left_out"] == {}
    assert rank["evaluated"] == rank["candidates"] == 640
    assert len(kept) == 640 - sum(rank["unranked"].values()) > 0
    space = build_workload(Candidates(**workload), model)
    parts = IndexPartition.for_candidates(space.total, 64, 640)
    refused = []
    for index in [k for number in parts.selected for k in range(*parts.bounds(number))][::5]:
        structure = space.structure(index)
        calculator = ReferenceCalculator(model)
        atoms = Atoms(structure.numbers, structure.positions, cell=structure.cell, pbc=structure.periodic)
        try:
            energy = calculator.get_potential_energy(atoms)
        except OutsideTraining:
            refused.append(index)
            assert index not in kept.index
            continue
        row = kept.column("energy_ev_per_atom")[kept.index == index]
        assert row.tolist() == [pytest.approx(energy / len(atoms), rel=1e-5)]
    assert len(refused) > 10


def test_a_screening_of_which_nothing_is_known_ends_with_no_best(tmp_path: Path) -> None:
    log = screened(tmp_path, workload=FEW | {"volumes": [0.05]}, keep={"what": "top", "count": 5}, candidates=128)
    (rank,) = [e for e in log if e["event"] == "rank"]
    assert rank["unranked"] == {"atoms closer than in training": 128}
    assert not [e for e in log if e["event"] == "best"]
    assert program.read_best(tmp_path) == []


def test_random_streams_go_through_too(tmp_path: Path) -> None:
    workload = {"kind": "random", "streams": 2, "per_stream": 12, "atoms": [2, 20]}
    log = screened(tmp_path, workload=workload, part=12, candidates=None, energy_only=True)
    (proof,) = [e for e in log if e["event"] == "proof"]
    assert proof["candidates"] == 24
    (rank,) = [e for e in log if e["event"] == "rank"]
    assert rank["evaluated"] + rank["left_out"].get("not finite", 0) == 24


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"workload": FEW | {"elements": ["H", "Oo"]}}, "'Oo' is not the symbol of an element"),
        ({"workload": FEW | {"elements": ["H", "Og"]}}, "element 'Og': the model has not seen it"),
        ({"workload": FEW | {"filters": ["charge_balanced"]}}, r"did you mean 'charge_balance'\?"),
        ({"keep": {"what": "top", "by": "energy"}}, r"keep\.by is 'energy' \(there are: .*energy_ev_per_atom"),
        ({"keep": {"what": "top", "by": "distance"}}, "keep by 'distance': expected one of energy_ev_per_atom"),
        ({"workload": FEW | {"kind": "crystals"}}, r"workload\.kind is 'crystals' \(there are: prototypes, random\)$"),
        ({"part": 0}, "^part is 0, expected at least 1$"),
        ({"messages": "fussed"}, r"^messages is 'fussed' \(did you mean 'fused'\?\)$"),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, given: dict[str, Any], match: str) -> None:
    with pytest.raises((InputError, UsageError), match=match):
        screened(tmp_path, **given)


def test_parts_are_spread_over_the_space() -> None:
    parts = IndexPartition(total=1003, size=10, wanted=7)
    assert parts.n_parts == 101
    assert list(parts.selected) == [0, 14, 28, 43, 57, 72, 86]
    assert IndexPartition(1003, 10).candidates == 1003
    assert IndexPartition(1003, 10).bounds(100) == (1000, 1003)


def test_ties_go_to_the_first() -> None:
    values = np.zeros((6, len(COLUMNS)), dtype=np.float32)
    scores = Scores(tuple(COLUMNS), np.array([9, 3, 5, 1, 7, 2]), values)
    assert Retention(count=3).ranked(Retention(count=3).select(scores)).index.tolist() == [1, 2, 3]


def test_relaxation_passes_over_elements_that_the_model_has_not_seen(tmp_path: Path) -> None:
    from harness.reference.data.structure import Structure
    from harness.reference.programs.screening.spot_checks import relax

    model = checkpoints.load_named("painn-64")[0].double()
    cell, places = 4.0 * np.eye(3), np.array([[0.0, 0, 0], [2, 2, 2]])
    known, unknown = (Structure("s", np.array(z), places, cell, (True,) * 3) for z in ([11, 17], [11, 118]))
    close = Structure("s", np.array([17, 17]), places / 8, cell, (True,) * 3)
    candidates = [(5, unknown), (7, known), (8, close)]
    found, failed = relax(model, candidates, steps=5, folder=tmp_path)
    assert [r.candidate for r in found] == [7]
    assert list(failed.values()) == [2]
    assert found[0].after_ev_per_atom < found[0].before_ev_per_atom
    assert (tmp_path / "relaxed" / "7.cif").exists()
