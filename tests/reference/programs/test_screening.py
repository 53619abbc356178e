"""A screening of real candidates: its scores, the check that it is complete, and recovery from kills and damage."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms

from harness.drills.ports import find_free_ports
from harness.protocol.errors import UsageError
from harness.protocol.events import read_last_events
from harness.protocol.programs.screening import Candidates
from harness.reference.data.neighbours import build_neighbour_list
from harness.reference.errors import InputError
from harness.reference.inference.calculator import ReferenceCalculator
from harness.reference.inference.prediction import batched_heads
from harness.reference.inference.risk import load_risk
from harness.reference.models import checkpoints
from harness.reference.models.coverage import OutsideTraining
from harness.reference.programs.screening import journals, part_results, program
from harness.reference.programs.screening.candidates.choice import build_workload
from harness.reference.programs.screening.merge_results import gather_best, list_results, select_best
from harness.reference.programs.screening.part_results import (
    IndexPartition,
    compute_checksum,
    compute_range_checksum,
)
from harness.reference.programs.screening.scoring import COLUMNS, Retention, Scores, concatenate_scores
from tests.conftest import require_program
from tests.support.mpi import find_mpiexec
from tests.support.programs import run_program

CANDIDATES: dict[str, Any] = {
    "kind": "prototypes", "elements": ["O", "Na", "Cl", "Fe"], "volumes": [1.1, 1.3], "filters": [],
}  # fmt: skip
SMALL: dict[str, Any] = {
    "workload": CANDIDATES, "part_size": 64, "max_candidates": 640, "retention": {"mode": "all"}, "compile": False,
    "edges_per_batch": 5000, "hull_head": None,
}  # fmt: skip


def run_screening(folder: Path, **parameters: Any) -> list[dict[str, Any]]:
    folder.mkdir(exist_ok=True)
    return read_last_events(run_program("screening", SMALL | parameters, folder).path)


def read_scores(folder: Path) -> Scores:
    covered = [c for path in list_results(folder) for c in part_results.read(path)]
    parts = [c.results for c in sorted(covered, key=lambda c: c.part) if c.results is not None]
    return Scores(parts[0].names, np.concatenate([k.index for k in parts]), np.concatenate([k.values for k in parts]))


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    run_screening(folder)
    return folder


def test_scores_match_the_models_predictions(finished_run: Path) -> None:
    """Energies and largest forces of some candidates match those of batched_heads for single structures."""
    from harness.reference.data.batch import build_batch

    model = checkpoints.load_named("painn-64")[0].float().requires_grad_(False).eval()
    workload = build_workload(Candidates(elements=("O", "Na", "Cl", "Fe"), volumes=(1.1, 1.3)), model)
    scores = read_scores(finished_run)
    assert scores.names == (
        "energy_ev_per_atom",
        "residual_energy_ev_per_atom",
        "spread_ev_per_atom",
        "force_max_ev_per_angstrom",
    )
    for row_number in (0, 101, 333, len(scores) - 1):
        structure = workload.structure(int(scores.index[row_number]))
        graph = build_neighbour_list(structure, cutoff=model.config.cutoff, max_neighbours=model.config.max_neighbours)
        batch = build_batch([graph]).to("cpu", torch.float32)
        prediction = batched_heads(model, batch, model.gate_weights(batch.composition))
        row = dict(zip(scores.names, scores.values[row_number].tolist(), strict=True))
        assert row["energy_ev_per_atom"] == pytest.approx(
            float(prediction.energy[0]) / len(structure), rel=2e-5, abs=1e-3
        )
        assert row["force_max_ev_per_angstrom"] == pytest.approx(
            float(prediction.forces.norm(dim=1).max()), rel=1e-3, abs=1e-3
        )


def test_verification_shows_that_every_candidate_was_evaluated_once(finished_run: Path) -> None:
    (verification,) = [e for e in read_last_events(finished_run / "events.jsonl") if e["event"] == "verification"]
    scores = read_scores(finished_run)
    assert len(scores) == verification["evaluated"] == verification["candidates"] == 640
    assert f"{compute_checksum(scores.index):016x}" == verification["checksum"] == verification["expected"]
    assert len(set(scores.index.tolist())) == 640
    assert not (finished_run / "journals").exists()


@pytest.mark.parametrize("kind", ["missing", "repeated", "foreign"])
def test_the_checksum_detects_missing_repeated_and_foreign_candidates(kind: str) -> None:
    index = np.arange(1000, 5000)
    wrong = {
        "missing": np.delete(index, 17),
        "repeated": np.append(index, 1003),
        "foreign": np.where(index == 1003, 999, index),
    }
    assert compute_checksum(index) == compute_range_checksum(1000, 5000)
    assert compute_checksum(wrong[kind]) != compute_range_checksum(1000, 5000)


def test_best_candidates_of_the_parts_are_the_best_of_all(finished_run: Path, tmp_path: Path) -> None:
    run_screening(
        tmp_path / "top", retention={"mode": "top", "column": "spread_ev_per_atom", "count": 9, "descending": True}
    )
    all_scores = read_scores(finished_run)
    order = np.lexsort((all_scores.index, -all_scores.column("spread_ev_per_atom")))[:9]
    with (tmp_path / "top" / "best.csv").open() as file:
        best = [int(row["candidate"]) for row in csv.DictReader(file)]
    assert best == all_scores.index[order].tolist()


def test_retention_keeps_only_scores_within_its_bounds(finished_run: Path, tmp_path: Path) -> None:
    run_screening(
        tmp_path / "in", retention={"mode": "within", "column": "residual_energy_ev_per_atom", "min": -0.2, "max": 0.0}
    )
    all_scores = read_scores(finished_run)
    values = all_scores.column("residual_energy_ev_per_atom")
    assert read_scores(tmp_path / "in").index.tolist() == all_scores.index[(values >= -0.2) & (values <= 0.0)].tolist()
    run_screening(tmp_path / "none", retention={"mode": "within", "column": "residual_energy_ev_per_atom", "min": 1e30})
    assert len(read_scores(tmp_path / "none")) == 0


@pytest.mark.slow
def test_killed_ranks_lose_no_results(finished_run: Path, tmp_path: Path) -> None:
    """A run of two ranks that is killed twice has the results of an uninterrupted run."""
    case = {"id": "1", "program": "screening", "parameters": SMALL | {"write_interval_s": 0.0}}
    (tmp_path / "case.json").write_text(json.dumps(case))
    command = [find_mpiexec(), "-n", "2", sys.executable, "-m", "harness.reference", str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}
    for frames in (2, 5):
        environment["MASTER_PORT"] = str(find_free_ports())
        run = subprocess.Popen(
            command, env=environment, start_new_session=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 200
        while count_frames(tmp_path) < frames:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        os.killpg(run.pid, signal.SIGKILL)
        run.wait(60)
    time.sleep(1.0)
    environment["MASTER_PORT"] = str(find_free_ports())
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400, check=False)
    assert result.returncode == 0, result.stderr
    log = read_last_events(tmp_path / "events.jsonl")
    (resumed,) = [e for e in log if e["event"] == "earlier_parts"]
    assert 5 <= resumed["parts"] < 10
    assert [e["candidates"] for e in log if e["event"] == "verification"] == [640]
    expected, actual = read_scores(finished_run), read_scores(tmp_path)
    assert expected.index.tolist() == actual.index.tolist()
    assert np.abs(expected.values - actual.values).max() < 1e-3


def count_frames(folder: Path) -> int:
    """Return the number of frames with parts in all journals of a screening."""
    count = 0
    for path in journals.list_journals(folder / "journals"):
        with path.open("rb") as file:
            count += max(0, len(list(journals._read_frames(file))) - 1)
    return count


def test_damaged_frames_are_recomputed_and_a_foreign_journal_is_refused(finished_run: Path, tmp_path: Path) -> None:
    identity = read_identity(finished_run)
    covered = [c for path in list_results(finished_run) for c in part_results.read(path)]
    assert covered[0].results is not None
    names = covered[0].results.names
    for k in range(2):  # two frames with two parts each
        journal = journals.Journal(tmp_path / "journals", k, journals.Header(identity, names))
        for first in (4 * k, 4 * k + 2):
            journal.append(journals.encode_parts(covered[first : first + 2], names))
        journal.close()
    cut = journals.list_journals(tmp_path / "journals")[1]
    cut.write_bytes(cut.read_bytes()[:-100])
    log = run_screening(tmp_path)
    (resumed,) = [e for e in log if e["event"] == "earlier_parts"]
    assert (resumed["parts"], resumed["files"], len(resumed["unusable_files"])) == (6, 1, 1)
    assert read_scores(tmp_path).index.tolist() == read_scores(finished_run).index.tolist()
    other = tmp_path / "other"
    journal = journals.Journal(other / "journals", 0, journals.Header("another", names))
    journal.append(journals.encode_parts(covered[:1], names))
    journal.close()
    with pytest.raises(InputError, match="results of another screening"):
        run_screening(other)
    assert len(journals.list_journals(other / "journals")) == 1


def test_a_damaged_length_ends_the_journal(tmp_path: Path) -> None:
    content = b"parts"
    frame = journals.FRAME.pack(len(content), zlib.crc32(content)) + content
    (tmp_path / "journal").write_bytes(frame + journals.FRAME.pack(2**63, 0) + content)
    with (tmp_path / "journal").open("rb") as file:
        assert list(journals._read_frames(file)) == [content]


def read_identity(folder: Path) -> str:
    from harness.reference.storage.adios.reader import BPFile

    with BPFile(list_results(folder)[0]) as file:
        return str(file.attributes["identity"])


def test_finished_screening_is_verified_again_when_restarted(finished_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "restarted"
    shutil.copytree(finished_run, folder)
    (folder / program.MERGED_JOURNALS).mkdir()  # the attempt was killed before it had deleted its journals
    log = run_screening(folder)
    assert not (folder / program.MERGED_JOURNALS).exists()
    (verification,) = [e for e in log if e["event"] == "verification"]
    assert verification["finished_earlier"] is True
    assert verification["candidates"] == 640


@pytest.mark.parametrize("energy_only", [False, True])
@pytest.mark.slow
def test_fused_messages_give_the_same_scores(finished_run: Path, tmp_path: Path, energy_only: bool) -> None:
    """Fused and unfused scores agree up to rounding, so that one file may contain both."""
    require_program("g++")
    log = run_screening(tmp_path, message_backend="fused", energy_only=energy_only, compile=True)
    (model,) = [e["value"] for e in log if e["event"] == "fact" and e["name"] == "model"]
    assert (model["message_backend"], model.get("unfused_reason")) == ("fused", None)
    expected, actual = read_scores(finished_run), read_scores(tmp_path)
    assert expected.index.tolist() == actual.index.tolist()
    for name in actual.names:
        assert actual.column(name) == pytest.approx(expected.column(name), rel=1e-4, abs=1e-3)


def test_backbones_without_fused_messages_record_the_reason(tmp_path: Path) -> None:
    model = {"backbone": "egnn", "hidden_dim": 8, "num_conv_layers": 2, "cutoff": 5.0, "dim_headlayers": 8}
    log = run_screening(tmp_path, message_backend="fused", checkpoint=None, model=model, max_candidates=64)
    (fact,) = [e["value"] for e in log if e["event"] == "fact" and e["name"] == "model"]
    assert fact["message_backend"] == "unfused"
    assert "not egnn" in fact["unfused_reason"]


def test_a_failing_compiler_falls_back_to_eager_code(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("no compiler today\nand more")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: fail)
    log = run_screening(tmp_path, compile=True)
    (rank,) = [e for e in log if e["event"] == "rank_summary"]
    assert rank["eager_reason"] == "no compiler today"
    assert np.array_equal(read_scores(tmp_path).values, read_scores(finished_run).values)


@pytest.mark.parametrize(("descending", "count"), [(False, 5), (True, 5), (False, 100), (False, 500)])
def test_global_top_k_sends_few_scores(descending: bool, count: int) -> None:
    """One of four ranks has no scores, one has fewer than requested, and there are ties."""
    rng = np.random.default_rng(0)
    retention = Retention(count=count, descending=descending)
    rank_scores, first = [], 0
    for size in (40, 0, 3, 60):
        values = rng.integers(-9, 9, (size, len(COLUMNS))).astype(np.float32)
        rank_scores.append(select_best(Scores(tuple(COLUMNS), np.arange(first, first + size), values), retention))
        first += size
    with ThreadPoolExecutor(4) as pool:
        world = ThreadWorld(4)
        results = list(
            pool.map(lambda rank: gather_best(rank_scores[rank], retention, ThreadRank(world, rank)), range(4))
        )  # type: ignore[arg-type]
    expected = select_best(concatenate_scores(tuple(COLUMNS), rank_scores), retention)
    assert results[0].index.tolist() == expected.index.tolist()
    assert [len(scores) for scores in results[1:]] == [0, 0, 0]
    assert sum(world.sent) <= max(2 * count, 20)


@dataclass
class ThreadWorld:
    """A group of ranks that are threads of one process, with the value that each contributes to an exchange."""

    size: int
    contributions: dict[int, Any] = field(default_factory=dict)
    sent: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.barrier = threading.Barrier(self.size)

    def exchange(self, rank: int, value: Any) -> list[Any]:
        self.contributions[rank] = value
        self.barrier.wait()
        values = [self.contributions[k] for k in range(self.size)]
        self.barrier.wait()
        return values


@dataclass
class ThreadRank:
    """One rank of a ThreadWorld."""

    world: ThreadWorld
    rank: int

    def all_reduce_max(self, numbers: torch.Tensor) -> torch.Tensor:
        return torch.stack(self.world.exchange(self.rank, numbers)).amax(0)

    def all_reduce_sum(self, numbers: torch.Tensor) -> torch.Tensor:
        return torch.stack(self.world.exchange(self.rank, numbers)).sum(0)

    def gather(self, value: Any) -> list[Any]:
        self.world.sent.append(len(value) if isinstance(value, Scores) else 0)
        values = self.world.exchange(self.rank, value)
        return values if self.rank == 0 else []

    def scatter(self, values: Sequence[Any]) -> Any:
        return self.world.exchange(self.rank, values)[0][self.rank]

    def broadcast_object(self, value: Any) -> Any:
        return self.world.exchange(self.rank, value)[0]


def test_ranks_of_a_node_append_to_one_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two nodes with three ranks each have two journals, and an error of the disk reaches the rank that appends."""
    names = ("energy_ev_per_atom",)
    header = journals.Header("identity", names)
    world = ThreadWorld(6)
    hosts = threading.local()
    monkeypatch.setattr(journals.platform, "node", lambda: hosts.name)
    monkeypatch.setattr(journals.os, "fsync", lambda _: None)

    def append_parts(rank: int) -> str:
        hosts.name = f"n{rank // 3}"
        with journals.open_journal(tmp_path, ThreadRank(world, rank), header) as append:  # type: ignore[arg-type]
            for part in (rank, rank + 6):
                results = Scores(names, np.array([part]), np.array([[part]], dtype=np.float32))
                append(journals.encode_parts([part_results.PartEntry(part, 10, 1, 2**64 - 1, results)], names))
            world.exchange(rank, None)
            if rank == 1:
                monkeypatch.setattr(journals.os, "fsync", fail_with_full_disk)
            world.exchange(rank, None)
            try:
                append(journals.encode_parts([part_results.PartEntry(99, 1, 1, 1)], names))
            except OSError as error:
                message = str(error)
            world.exchange(rank, None)
        return message

    with ThreadPoolExecutor(6) as pool:
        messages = list(pool.map(append_parts, range(6)))
    assert all("No space left" in message for message in messages)
    first, second = journals.list_journals(tmp_path)
    for path, ranks in ((first, range(3)), (second, range(3, 6))):
        parts = {e.part: e for e in journals.read_parts(path, "identity")}
        assert sorted(parts) == [*ranks, *(rank + 6 for rank in ranks)]
        assert all(e.results is not None and e.results.index.tolist() == [e.part] for e in parts.values())
        assert {e.checksum for e in parts.values()} == {2**64 - 1}
    assert journals.scan([first, second], "identity") == (dict.fromkeys(range(12), 10), [])


def fail_with_full_disk(_: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.filterwarnings("ignore:the model takes")
def test_candidates_outside_the_training_data_are_counted_and_not_ranked(tmp_path: Path) -> None:
    """No head knows both iron and sodium; at a tenth of the volume, atoms are closer than in training."""
    model = checkpoints.load_named("painn-64")[0]
    sodium, iron = (model.known_elements[:, z].clone() for z in (11, 26))
    model.known_elements[:8, 11] = False
    model.known_elements[8:, 26] = False
    assert (sodium & iron).any()
    checkpoints.save(model, tmp_path / "parted.safetensors", {})
    workload = CANDIDATES | {"volumes": [0.1, 1.3]}
    options = {"checkpoint": str(tmp_path / "parted.safetensors"), "workload": workload, "precision": "fp64"}
    log = run_screening(tmp_path / "run", **options)
    (rank,) = [e for e in log if e["event"] == "rank_summary"]
    scores = read_scores(tmp_path / "run")
    assert set(rank["outside_coverage"]) == {"elements outside the heads", "atoms closer than in training"}
    assert rank["excluded"] == {}
    assert rank["evaluated"] == rank["candidates"] == 640
    assert len(scores) == 640 - sum(rank["outside_coverage"].values()) > 0
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
            assert index not in scores.index
            continue
        row = scores.column("energy_ev_per_atom")[scores.index == index]
        assert row.tolist() == [pytest.approx(energy / len(atoms), rel=1e-5)]
    assert len(refused) > 10


def test_risky_candidates_are_counted_and_not_ranked(tmp_path: Path) -> None:
    """The best candidates have risks up to the threshold, as the calculator computes them, and an interval."""
    events = run_screening(tmp_path / "risk", risk=True, retention={"mode": "top", "count": 20}, precision="fp64")
    threshold = float(load_risk("painn-64")[0].threshold_ev_per_atom)
    (summary,) = [e for e in events if e["event"] == "rank_summary"]
    assert 0 < summary["outside_coverage"]["risk above the threshold"] < 640
    scores = read_scores(tmp_path / "risk")
    assert len(scores) == 20
    assert scores.column("risk_ev_per_atom").max() <= threshold
    with (tmp_path / "risk" / "best.csv").open() as file:
        best = next(csv.DictReader(file))
    model = checkpoints.load_named("painn-64")[0]
    workload = build_workload(Candidates.model_validate(CANDIDATES), model)
    structure = workload.structure(int(best["candidate"]))
    atoms = Atoms(structure.numbers, structure.positions, cell=structure.cell, pbc=True)
    atoms.calc = ReferenceCalculator("painn-64", risk=True)
    energy = atoms.get_potential_energy() / len(atoms)
    risk = atoms.calc.results["risk_ev_per_atom"]
    assert float(best["risk_ev_per_atom"]) == pytest.approx(risk, rel=1e-5)
    assert float(best["energy_low_ev_per_atom"]) == pytest.approx(energy - risk, rel=1e-5)
    assert float(best["energy_high_ev_per_atom"]) == pytest.approx(energy + risk, rel=1e-5)


def test_screening_without_ranked_candidates_has_no_best_candidates(tmp_path: Path) -> None:
    log = run_screening(
        tmp_path, workload=CANDIDATES | {"volumes": [0.02]}, retention={"mode": "top", "count": 5}, max_candidates=128
    )
    (rank,) = [e for e in log if e["event"] == "rank_summary"]
    assert rank["outside_coverage"] == {"atoms closer than in training": 128}
    assert not [e for e in log if e["event"] == "best"]
    assert program.read_best(tmp_path) == []


def test_random_structures_are_screened(tmp_path: Path) -> None:
    workload = {"kind": "random", "streams": 2, "per_stream": 12, "atoms": [2, 20]}
    log = run_screening(tmp_path, workload=workload, part_size=12, max_candidates=None, energy_only=True)
    (verification,) = [e for e in log if e["event"] == "verification"]
    assert verification["candidates"] == 24
    (rank,) = [e for e in log if e["event"] == "rank_summary"]
    assert rank["evaluated"] + rank["excluded"].get("not finite", 0) == 24


@pytest.mark.parametrize(
    ("parameters", "match"),
    [
        ({"workload": CANDIDATES | {"elements": ["H", "Oo"]}}, "'Oo' is not the symbol of an element"),
        ({"workload": CANDIDATES | {"elements": ["H", "Og"]}}, "element 'Og': the model was not trained on it"),
        ({"workload": CANDIDATES | {"filters": ["charge_balanced"]}}, r"did you mean 'charge_balance'\?"),
        (
            {"retention": {"mode": "top", "column": "energy"}},
            r"retention\.column is 'energy' \(there are: .*energy_ev_per_atom",
        ),
        (
            {"retention": {"mode": "top", "column": "distance"}},
            "retention.column 'distance': expected one of energy_ev_per_atom",
        ),
        (
            {"workload": CANDIDATES | {"kind": "crystals"}},
            r"workload\.kind is 'crystals' \(there are: prototypes, random\)$",
        ),
        ({"part_size": 0}, "^part_size is 0, expected at least 1$"),
        ({"message_backend": "fussed"}, r"^message_backend is 'fussed' \(did you mean 'fused'\?\)$"),
    ],
)
def test_bad_input_gives_one_line_errors(tmp_path: Path, parameters: dict[str, Any], match: str) -> None:
    with pytest.raises((InputError, UsageError), match=match):
        run_screening(tmp_path, **parameters)


def test_parts_are_spread_over_the_space() -> None:
    parts = IndexPartition(total=1003, size=10, n_selected=7)
    assert parts.n_parts == 101
    assert list(parts.selected) == [0, 14, 28, 43, 57, 72, 86]
    assert IndexPartition(1003, 10).candidates == 1003
    assert IndexPartition(1003, 10).bounds(100) == (1000, 1003)


def test_ties_are_ranked_by_index() -> None:
    values = np.zeros((6, len(COLUMNS)), dtype=np.float32)
    scores = Scores(tuple(COLUMNS), np.array([9, 3, 5, 1, 7, 2]), values)
    assert Retention(count=3).sort(Retention(count=3).select(scores)).index.tolist() == [1, 2, 3]


def test_relaxation_skips_candidates_outside_the_training_data(tmp_path: Path) -> None:
    from harness.reference.data.structure import Structure
    from harness.reference.programs.screening.relaxation import relax

    model = checkpoints.load_named("painn-64")[0].double()
    cell, positions = 4.0 * np.eye(3), np.array([[0.0, 0, 0], [2, 2, 2]])
    known, unknown = (Structure("s", np.array(z), positions, cell, (True,) * 3) for z in ([11, 17], [11, 118]))
    close = Structure("s", np.array([17, 17]), positions / 8, cell, (True,) * 3)
    candidates = [(5, unknown), (7, known), (8, close)]
    relaxed, _, failed = relax(model, candidates, steps=5, folder=tmp_path)
    assert [r.candidate for r in relaxed] == [7]
    assert list(failed.values()) == [2]
    assert relaxed[0].final_energy_ev_per_atom < relaxed[0].initial_energy_ev_per_atom
    assert (tmp_path / "relaxed" / "7.cif").exists()
