"""Screening: candidates by the million through the model, on every rank, in constant memory (suites/screening.yaml).
Results stand in results-<node>.bp: candidates and scores, part by part; best.csv holds the best of all.
"""

from __future__ import annotations

import csv
import json
import os
import platform
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec
import torch

from harness.protocol.events import CaseLog
from harness.protocol.programs.assessment import Trust
from harness.protocol.programs.screening import (
    BestCandidate,
    FoundParts,
    RankWork,
    Screened,
    ScreeningFacts,
    ScreeningModel,
    ScreeningParameters,
    ScreeningWorkload,
)
from harness.protocol.records import Progress
from harness.protocol.registry import parse_parameters
from harness.reference.distributed import launch
from harness.reference.distributed.group import ProcessGroup, local_device, process_group
from harness.reference.distributed.launch import shard
from harness.reference.errors import InputError
from harness.reference.inference.precision import precision
from harness.reference.models import checkpoints
from harness.reference.models.config import ModelConfig
from harness.reference.models.foundation import FoundationModel
from harness.reference.models.message_backend import select_backend
from harness.reference.programs.screening import result_segments
from harness.reference.programs.screening.assessment import FinishedScreening, assess
from harness.reference.programs.screening.candidates.choice import build_workload
from harness.reference.programs.screening.candidates.workload import Workload
from harness.reference.programs.screening.index_partition import IndexPartition
from harness.reference.programs.screening.merge_results import (
    global_top_k,
    merge_segments,
    results_files,
    screening_identity,
    verify_coverage,
)
from harness.reference.programs.screening.ood_distance import fit_training_distance
from harness.reference.programs.screening.retention import Retention
from harness.reference.programs.screening.scoring import (
    Scores,
    column_names,
    concatenate_scores,
    energies_only,
    with_forces,
)
from harness.reference.programs.screening.worker import ModelScorer, Score, ScreeningWorker
from harness.reference.training import continuation

BEST = "best.csv"
SHOWN = 20
FAMILIAR = "familiar.safetensors"


def run(config: ScreeningParameters, log: CaseLog, folder: Path) -> None:
    """Screen what no earlier attempt has, prove that nothing is missing, and merge the results."""
    place = launch.detect_rank(os.environ)
    if config.judges:
        if place.rank == 0:
            assess_earlier(continuation.previous_case(folder), config.trust or Trust(), log, folder)
        return
    device = local_device(config.device, config.backend, place)
    model, notes = load_model(config)
    workload = build_workload(config.workload, model)
    keeping = Retention.from_parameters(config.keep)
    parts = IndexPartition.for_candidates(workload.total, config.part, config.candidates)
    with process_group(place, backend=config.backend, device=device, timeout_s=config.timeout_s) as team:
        evaluator = build_scorer(model, config, device, team, folder)
        if keeping.by not in evaluator.names:
            raise InputError(f"keep by {keeping.by!r}: expected one of {', '.join(evaluator.names)}")
        if keeping.most_distance < float("inf") and not config.distance:
            raise InputError("keep: most_distance needs `distance: true`")
        identity = screening_identity(model, workload, parts, evaluator.names, keeping)
        describe(config, workload, parts, evaluator, log)
        screen(
            Screening(
                config=config, workload=workload, parts=parts, evaluator=evaluator, keeping=keeping, folder=folder,
                identity=identity, team=team, log=log,
            )
        )  # fmt: skip
        if config.trust is not None and place.rank == 0:
            judged = FinishedScreening(model, notes, workload, parts, read_best(folder))
            assess(config.trust, judged, log, folder)
        team.barrier()


def assess_earlier(earlier: Path, trust: Trust, log: CaseLog, folder: Path) -> None:
    """Assess the screening in another folder; raise InputError if it is not finished."""
    if not (earlier / BEST).exists():
        raise InputError(f"judges: {earlier} holds no {BEST}, so that no screening has come to its end there")
    case = json.loads((earlier / "case.json").read_text(encoding="utf-8"))
    config = parse_parameters("screening", case["parameters"])
    assert isinstance(config, ScreeningParameters)
    model, notes = load_model(config)
    workload = build_workload(config.workload, model)
    parts = IndexPartition.for_candidates(workload.total, config.part, config.candidates)
    log.record_facts(ScreeningFacts(judged=earlier.name))
    assess(trust, FinishedScreening(model, notes, workload, parts, read_best(earlier)), log, folder)


def load_model(config: ScreeningParameters) -> tuple[FoundationModel, dict[str, object]]:
    """Return the frozen model in its precision on the CPU, and the notes of its checkpoint."""
    notes: dict[str, object] = {}
    if config.checkpoint is not None:
        model, notes = checkpoints.load_named(config.checkpoint)
    else:
        torch.manual_seed(config.seed)
        model = FoundationModel(ModelConfig.from_parameters(config.model))
        model.mark_all_elements_known()
    return precision(config.precision).apply(model).eval().requires_grad_(False), notes


def build_scorer(
    model: FoundationModel, config: ScreeningParameters, device: torch.device, team: ProcessGroup, folder: Path
) -> ModelScorer:
    """Build the scorer of batches on the device of this rank; collective."""
    of_messages = select_backend(config.messages, model.config.backbone, team)
    score: Score = partial(energies_only if config.energy_only else with_forces, fused=of_messages.fused)
    torch._dynamo.config.trace_autograd_ops = True
    compiled = torch.compile(score, dynamic=True) if config.compile else None
    distance = fit_training_distance(model, config.known_limit, team, folder / FAMILIAR) if config.distance else None
    names = column_names(forces=not config.energy_only, distance=config.distance)
    kind = precision(config.precision).dtype
    if distance is not None:
        distance = distance.to(device, kind)
    return ModelScorer(
        model=model.to(device),
        score=score,
        names=names,
        distance=distance,
        device=device,
        dtype=kind,
        messages=of_messages,
        compiled=compiled,
    )


def describe(
    config: ScreeningParameters, workload: Workload, parts: IndexPartition, evaluator: ModelScorer, log: CaseLog
) -> None:
    """Log facts of the whole case."""
    space = {"name": workload.name, "total": workload.total, **workload.facts}
    model = evaluator.model
    log.record_facts(
        ScreeningFacts(
            workload=msgspec.convert(space, ScreeningWorkload),
            screened=Screened(parts=len(parts.selected), part=parts.size, candidates=parts.candidates),
            model=ScreeningModel(
                checkpoint=config.checkpoint, config=model.config.asdict(), precision=config.precision,
                parameters=sum(p.numel() for p in model.parameters()), columns=list(evaluator.names),
                compiled=config.compile, device=str(evaluator.device), threads=torch.get_num_threads(),
                messages=evaluator.messages.messages, why_plain=evaluator.messages.why_plain,
            ),
        )
    )  # fmt: skip


@dataclass(frozen=True)
class Screening:
    """The state of a screening on one rank."""

    config: ScreeningParameters
    workload: Workload
    parts: IndexPartition
    evaluator: ModelScorer
    keeping: Retention
    folder: Path
    identity: str
    team: ProcessGroup
    log: CaseLog


def screen(at: Screening) -> None:
    """Screen the remaining parts on all ranks, verify the coverage, and merge the results; collective."""
    place, folder = at.team.rank_info, at.folder / result_segments.FOLDER
    if at.team.broadcast_object(0, place.rank == 0 and not folder.exists() and bool(results_files(at.folder))):
        proof = verify_coverage(results_files(at.folder), at.parts, at.identity, at.team)
        at.log.write(msgspec.structs.replace(proof, before=True))
        return
    folder.mkdir(parents=True, exist_ok=True)
    before = scan_earlier_results(at, folder)
    remaining = [number for number in at.parts.selected if number not in before]
    total, done = at.parts.candidates, sum(before.values())

    def report_progress(candidates: int) -> None:
        nonlocal done
        done += candidates * place.size
        at.log.write(Progress(done=min(done, total), total=total, what="candidates"))

    worker = ScreeningWorker(
        workload=at.workload, parts=at.parts, evaluator=at.evaluator, keeping=at.keeping, folder=folder,
        identity=at.identity, rank=place.rank, edges=at.config.edges, ahead=at.config.ahead,
        commit_s=at.config.commit_s, on_progress=report_progress,
    )  # fmt: skip
    stats = worker.run(shard(remaining, place.rank, place.size))
    for number, plain in enumerate(at.team.gather(stats.plain())):
        at.log.write(msgspec.convert({"event": "rank", "rank": number, **plain}, RankWork))
    at.team.barrier()
    files = at.team.broadcast_object(0, sorted(folder.glob("*.bp")) if place.rank == 0 else [])
    at.log.write(verify_coverage(files, at.parts, at.identity, at.team))
    merge_results(at, files)


def scan_earlier_results(at: Screening, folder: Path) -> dict[int, int]:
    """Return the candidates of each part that earlier attempts finished, and delete unusable files; collective.

    Each rank checks its share of the files. Merged results are deleted and merged again, as all segments still exist.
    """
    place = at.team.rank_info
    if place.rank == 0:
        result_segments.remove(results_files(at.folder))
    paths = at.team.broadcast_object(0, sorted(folder.glob("*")) if place.rank == 0 else [])
    own = result_segments.scan_segments(shard(paths, place.rank, place.size), at.identity)
    parts: dict[int, int] = {}
    useless: list[str] = []
    for some, lines in at.team.all_gather(own):
        parts |= some
        useless += lines
    if paths:
        at.log.write(FoundParts(parts=len(parts), files=len(paths) - len(useless), useless=useless))
    return parts


def merge_results(at: Screening, files: list[Path]) -> None:
    """Merge the segments into one file per node, and write the best results; collective."""
    hosts = at.team.all_gather(platform.node())
    first_of = {host: rank for rank, host in reversed(list(enumerate(hosts)))}
    leaders = sorted(first_of.values())
    best = concatenate_scores(at.evaluator.names, [])
    if at.team.rank in leaders:
        number = leaders.index(at.team.rank)
        mine = shard(files, number, len(leaders))
        if mine:
            best = merge_segments(
                at.folder, mine, number, names=at.evaluator.names, keeping=at.keeping, identity=at.identity
            )
    every = global_top_k(best, at.keeping, at.team)
    place, gone = at.team.rank_info, at.folder / f"{result_segments.FOLDER}.done"
    if place.rank == 0:
        write_best(at, every)
        os.replace(
            at.folder / result_segments.FOLDER, gone
        )  # in one step: a part of the segments would look like unfinished work
    at.team.barrier()
    result_segments.remove(gone / path.name for path in shard(files, place.rank, place.size))
    at.team.barrier()
    if place.rank == 0:
        result_segments.remove([gone])


def write_best(at: Screening, best: Scores) -> None:
    """Write best.csv, and its first rows as events."""
    part = at.folder / f"{BEST}.part"
    with part.open("w", newline="", encoding="utf-8") as file:
        writer = None
        for k, (index, values) in enumerate(zip(best.index.tolist(), best.values.tolist(), strict=True)):
            scores = dict(zip(best.names, values, strict=True))
            row = {"candidate": index, **at.workload.describe(index), **scores}
            if writer is None:
                writer = csv.DictWriter(file, list(row))
                writer.writeheader()
            writer.writerow(row)
            if k < SHOWN:
                at.log.write(msgspec.convert({"event": "best", "place": k + 1, **row}, BestCandidate))
    os.replace(part, at.folder / BEST)


def read_best(folder: Path) -> list[int]:
    """Return the candidates of best.csv, best first."""
    with (folder / BEST).open(encoding="utf-8") as file:
        return [int(row["candidate"]) for row in csv.DictReader(file)]
