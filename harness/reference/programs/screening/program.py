"""Screening: candidates by the million through the model, on every rank, in constant memory (suites/screening.yaml).

Events besides those of every program:
    found      parts that an earlier attempt has finished, and files of its that were of no use
    rank       what one rank has done: counts, seconds by what they went to, memory
    proof      that every candidate was taken once: counts, and the checksum over the indices
    best       one of the best candidates
Results stand in results-<node>.bp: candidates and scores, part by part; best.csv holds the best of all.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from harness.protocol.events import EventLog
from harness.reference.distributed import launch
from harness.reference.distributed.group import Team, own_device
from harness.reference.distributed.group import joined as joined_team
from harness.reference.distributed.launch import share
from harness.reference.errors import InputError
from harness.reference.inference.precision import precision
from harness.reference.models import checkpoints, sealed
from harness.reference.models.config import ModelConfig
from harness.reference.models.foundation import FoundationModel
from harness.reference.models.message_backend import Messages, chosen
from harness.reference.options import build
from harness.reference.programs.screening import result_segments
from harness.reference.programs.screening.assessment import Judged, TrustConfig, judge
from harness.reference.programs.screening.candidates.choice import WorkloadConfig, workload_of
from harness.reference.programs.screening.candidates.workload import Workload
from harness.reference.programs.screening.index_partition import Parts
from harness.reference.programs.screening.merge_results import best_of_all, combine, proven, results_files
from harness.reference.programs.screening.ood_distance import embedded, training_structures
from harness.reference.programs.screening.ood_distance import familiar as familiar_of
from harness.reference.programs.screening.retention import Keeping
from harness.reference.programs.screening.scoring import Familiar, Scores, columns, energies_only, joined, with_forces
from harness.reference.programs.screening.worker import Evaluator, Rank, Score
from harness.reference.training import continuation

BEST = "best.csv"
SHOWN = 20
PROGRESS = "progress"
FAMILIAR = "familiar.safetensors"


@dataclass(frozen=True)
class ScreeningConfig:
    """One screening. workload: as WorkloadConfig. checkpoint: of a model, or `model`, the sizes of an untrained one.

    candidates: about how many, in parts evenly spread over the space; all by default. part: candidates of a part.
    keep: as Keeping. energy_only: no forces. distance: of each candidate from the training sets, of which known_limit
    structures each are looked at. edges: of a batch, about. ahead: batches made ahead, 0 for none. messages: as
    one operator where there is one (fused), or plain; both give the same up to rounding. trust: as TrustConfig; how far
    to trust the results is found out by rank 0 alone, and so on many nodes better by a case of its own that judges: it
    screens nothing, and looks at the screening that it comes after.
    """

    workload: dict[str, Any]
    checkpoint: str | None = "painn-64"
    model: dict[str, Any] = field(default_factory=dict)
    candidates: int | None = None
    part: int = 4096
    keep: dict[str, Any] = field(default_factory=dict)
    energy_only: bool = False
    distance: bool = False
    known_limit: int = 200
    edges: int = 20_000
    ahead: int = 2
    commit_s: float = 60.0
    precision: str = "fp32"
    trust: dict[str, Any] | None = None
    judges: bool = False
    compile: bool = True
    messages: Messages = "plain"
    backend: str = "gloo"
    device: str = "cpu"
    seed: int = 0
    timeout_s: float = 3600.0


def run(parameters: dict[str, Any], log: EventLog, folder: Path) -> None:
    """The program: screen what no earlier attempt has, prove that nothing is missing, and put it together."""
    config = build(ScreeningConfig, parameters)
    place = launch.find(os.environ)
    if config.judges:
        if place.rank == 0:
            judge_earlier(continuation.before(folder), config.trust or {}, log, folder)
        return
    device = own_device(config.device, config.backend, place)
    model, notes = model_of(config)
    workload = workload_of(build(WorkloadConfig, config.workload), model)
    keeping = build(Keeping, config.keep)
    parts = Parts.about(workload.total, config.part, config.candidates)
    with joined_team(place, backend=config.backend, device=device, timeout_s=config.timeout_s) as team:
        evaluator = evaluator_of(model, config, device, team, folder)
        if keeping.by not in evaluator.names:
            raise InputError(f"keep by {keeping.by!r}: told are {', '.join(evaluator.names)}")
        if keeping.most_distance < float("inf") and not config.distance:
            raise InputError("keep: most_distance needs `distance: true`")
        identity = identity_of(model, workload, parts, evaluator.names, keeping)
        describe(config, workload, parts, evaluator, log)
        screen(Screening(config, workload, parts, evaluator, keeping, folder, identity, team, log))
        if config.trust is not None and place.rank == 0:
            judged = Judged(model, notes, workload, parts, best_in(folder))
            judge(build(TrustConfig, config.trust), judged, log, folder)
        team.meet()


def judge_earlier(earlier: Path, trust: dict[str, Any], log: EventLog, folder: Path) -> None:
    """How far to trust the screening in another folder; raises InputError where it has not come to its end."""
    if not (earlier / BEST).exists():
        raise InputError(f"judges: {earlier} holds no {BEST}, so that no screening has come to its end there")
    case = json.loads((earlier / "case.json").read_text(encoding="utf-8"))
    config = build(ScreeningConfig, case["parameters"])
    model, notes = model_of(config)
    workload = workload_of(build(WorkloadConfig, config.workload), model)
    parts = Parts.about(workload.total, config.part, config.candidates)
    log.fact("judged", earlier.name)
    judge(build(TrustConfig, trust), Judged(model, notes, workload, parts, best_in(earlier)), log, folder)


def model_of(config: ScreeningConfig) -> tuple[FoundationModel, dict[str, object]]:
    """The model in its precision, frozen, on the CPU, and the notes of its checkpoint."""
    notes: dict[str, object] = {}
    if config.checkpoint is not None:
        model, notes = checkpoints.named(config.checkpoint)
    else:
        torch.manual_seed(config.seed)
        model = FoundationModel(build(ModelConfig, config.model))
        model.know_everything()
    return precision(config.precision).of(model).eval().requires_grad_(False), notes


def evaluator_of(
    model: FoundationModel, config: ScreeningConfig, device: torch.device, team: Team, folder: Path
) -> Evaluator:
    """The model at work on the rank's device."""
    of_messages = chosen(config.messages, model.config.backbone, team)
    score: Score = partial(energies_only if config.energy_only else with_forces, fused=of_messages.fused)
    torch._dynamo.config.trace_autograd_ops = True
    compiled = torch.compile(score, dynamic=True) if config.compile else None
    familiar = distance_of(model, config, team, folder) if config.distance else None
    names = columns(forces=not config.energy_only, distance=config.distance)
    kind = precision(config.precision).dtype
    if familiar is not None:
        familiar = familiar.to(device, kind)
    return Evaluator(model.to(device), score, names, familiar, device, kind, of_messages, compiled)


def distance_of(model: FoundationModel, config: ScreeningConfig, team: Team, folder: Path) -> Familiar:
    """What the model was trained on, as embeddings; rank 0 looks at it for all."""
    path = folder / FAMILIAR
    if team.place.rank == 0:
        known = [s for of in training_structures(0, config.known_limit).values() for s in of]
        found = familiar_of(embedded(model, known))
        sealed.write(path, "gfm-harness embeddings", {"mean": found.mean, "whitening": found.whitening}, {})
    team.meet()
    return Familiar(**sealed.read_tensors(path))


def identity_of(model: nn.Module, workload: Workload, parts: Parts, names: Sequence[str], keeping: Keeping) -> str:
    """What results must have in common to stand in one file."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    plain = [workload.name, workload.total, parts.size, parts.wanted, list(names), str(asdict(keeping))]
    digest.update(json.dumps(plain).encode())
    return digest.hexdigest()[:32]


def describe(config: ScreeningConfig, workload: Workload, parts: Parts, evaluator: Evaluator, log: EventLog) -> None:
    """Facts of the whole case."""
    log.fact("workload", {"name": workload.name, "total": workload.total, **workload.facts})
    log.fact("screened", {"parts": len(parts.numbers), "part": parts.size, "candidates": parts.candidates})
    model = evaluator.model
    log.fact(
        "model",
        {
            "checkpoint": config.checkpoint, "config": model.config.asdict(), "precision": config.precision,
            "parameters": sum(p.numel() for p in model.parameters()), "columns": list(evaluator.names),
            "compiled": config.compile, "device": str(evaluator.device), "threads": torch.get_num_threads(),
            "messages": evaluator.messages.messages, "why_plain": evaluator.messages.why_plain,
        },
    )  # fmt: skip


@dataclass(frozen=True)
class Screening:
    """All that a rank needs."""

    config: ScreeningConfig
    workload: Workload
    parts: Parts
    evaluator: Evaluator
    keeping: Keeping
    folder: Path
    identity: str
    team: Team
    log: EventLog


def screen(at: Screening) -> None:
    """Everything that the ranks do together."""
    place, folder = at.team.place, at.folder / result_segments.FOLDER
    if at.team.told_by(0, place.rank == 0 and not folder.exists() and bool(results_files(at.folder))):
        at.log.write("proof", **proven(results_files(at.folder), at.parts, at.identity, at.team), before=True)
        return
    folder.mkdir(parents=True, exist_ok=True)
    before = found_before(at, folder)
    left = [number for number in at.parts.numbers if number not in before]
    total, done = at.parts.candidates, sum(before.values())

    def told(candidates: int) -> None:
        nonlocal done
        done += candidates * place.size
        at.log.write(PROGRESS, done=min(done, total), total=total, what="candidates")

    rank = Rank(
        at.workload, at.parts, at.evaluator, at.keeping, folder, at.identity, place.rank, at.config.edges,
        at.config.ahead, at.config.commit_s, told,
    )  # fmt: skip
    tally = rank.run(share(left, place.rank, place.size))
    for number, plain in enumerate(at.team.gathered_by_first(tally.plain())):
        at.log.write("rank", rank=number, **plain)
    at.team.meet()
    files = at.team.told_by(0, sorted(folder.glob("*.bp")) if place.rank == 0 else [])
    at.log.write("proof", **proven(files, at.parts, at.identity, at.team))
    together(at, files)


def found_before(at: Screening, folder: Path) -> dict[int, int]:
    """The parts that earlier attempts have left, with their candidates; what is of no use is cleared away.

    Each rank looks at its share of the files. Results that were being put together are, once more, from segments that
    are all there still.
    """
    place = at.team.place
    if place.rank == 0:
        result_segments.remove(results_files(at.folder))
    paths = at.team.told_by(0, sorted(folder.glob("*")) if place.rank == 0 else [])
    own = result_segments.found_in(share(paths, place.rank, place.size), at.identity)
    parts: dict[int, int] = {}
    useless: list[str] = []
    for some, lines in at.team.gathered(own):
        parts |= some
        useless += lines
    if paths:
        at.log.write("found", parts=len(parts), files=len(paths) - len(useless), useless=useless)
    return parts


def together(at: Screening, files: list[Path]) -> None:
    """One file a node in place of the segments, and the best of all."""
    hosts = at.team.gathered(platform.node())
    first_of = {host: rank for rank, host in reversed(list(enumerate(hosts)))}
    leaders = sorted(first_of.values())
    best = joined(at.evaluator.names, [])
    if at.team.place.rank in leaders:
        number = leaders.index(at.team.place.rank)
        mine = share(files, number, len(leaders))
        if mine:
            best = combine(at.folder, mine, number, at.evaluator.names, at.keeping, at.identity)
    every = best_of_all(best, at.keeping, at.team)
    place, gone = at.team.place, at.folder / f"{result_segments.FOLDER}.done"
    if place.rank == 0:
        write_best(at, every)
        os.replace(at.folder / result_segments.FOLDER, gone)  # all at once: half of them would say that more is to do
    at.team.meet()
    result_segments.remove(gone / path.name for path in share(files, place.rank, place.size))
    at.team.meet()
    if place.rank == 0:
        result_segments.remove([gone])


def write_best(at: Screening, best: Scores) -> None:
    """best.csv, and the first of it as events."""
    part = at.folder / f"{BEST}.part"
    with part.open("w", newline="", encoding="utf-8") as file:
        writer = None
        for k, (index, values) in enumerate(zip(best.index.tolist(), best.values.tolist(), strict=True)):
            told = dict(zip(best.names, values, strict=True))
            row = {"candidate": index, **at.workload.described(index), **told}
            if writer is None:
                writer = csv.DictWriter(file, list(row))
                writer.writeheader()
            writer.writerow(row)
            if k < SHOWN:
                at.log.write("best", place=k + 1, **row)
    os.replace(part, at.folder / BEST)


def best_in(folder: Path) -> list[int]:
    """The candidates of best.csv, best first."""
    with (folder / BEST).open(encoding="utf-8") as file:
        return [int(row["candidate"]) for row in csv.DictReader(file)]
