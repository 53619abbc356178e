"""Screen millions of candidates with a model on every rank, in constant memory (suites/screening.yaml).

Candidates and scores are written to the journal of each node, then to results-<number>.bp, of which each has those of
up to MAX_NODES nodes, and the best of all to best.csv.
"""

from __future__ import annotations

import copy
import csv
import json
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import torch

from harness.protocol.case import upgrade_case
from harness.protocol.events import CaseLog
from harness.protocol.programs.assessment import Assessment
from harness.protocol.programs.screening import (
    BestCandidate,
    EarlierParts,
    RankWork,
    ScreeningFacts,
    ScreeningModel,
    ScreeningParameters,
    ScreeningScope,
    ScreeningWorkload,
)
from harness.protocol.records import Progress
from harness.protocol.registry import parse_parameters
from harness.reference.distributed import launch
from harness.reference.distributed.group import ProcessGroup, process_group, select_device
from harness.reference.distributed.launch import shard
from harness.reference.errors import InputError
from harness.reference.inference.calculator import resolve_head
from harness.reference.inference.precision import find_precision
from harness.reference.inference.risk import RiskModel, load_risk
from harness.reference.models import checkpoints
from harness.reference.models.config import ModelConfig
from harness.reference.models.foundation import FoundationModel
from harness.reference.models.message_backend import select_backend
from harness.reference.ops import segment_sums
from harness.reference.ops.cache_tag import tag_compiled_code
from harness.reference.programs.screening import journals, part_results
from harness.reference.programs.screening.assessment import FinishedScreening, assess
from harness.reference.programs.screening.candidates.choice import build_workload
from harness.reference.programs.screening.candidates.workload import Workload
from harness.reference.programs.screening.journals import Header, list_journals, open_journal, read_parts, scan
from harness.reference.programs.screening.merge_results import (
    MAX_NODES,
    compute_identity,
    gather_best,
    list_results,
    merge_journals,
    verify_coverage,
)
from harness.reference.programs.screening.ood_distance import fit_training_distance
from harness.reference.programs.screening.part_results import IndexPartition
from harness.reference.programs.screening.ranking import find_suspicious, rank
from harness.reference.programs.screening.reference_phases import ReferencePhases
from harness.reference.programs.screening.scoring import (
    Retention,
    Scores,
    concatenate_scores,
    list_columns,
    score_energies,
    score_energies_and_forces,
)
from harness.reference.programs.screening.worker import ModelScorer, Score, ScreeningWorker
from harness.reference.training import state

BEST = "best.csv"
LOGGED_ROWS = 20


def run(config: ScreeningParameters, log: CaseLog, folder: Path) -> None:
    """Screen the parts that no earlier attempt has screened, verify the coverage, and merge the results."""
    rank_info = launch.detect_rank(os.environ)
    if config.assess_only:
        if rank_info.rank == 0:
            assess_earlier(state.find_previous_case(folder), config.assessment or Assessment(), log, folder)
        return
    device = select_device(config.device, config.backend, rank_info)
    model, notes = load_model(config)
    workload = build_workload(config.workload, model, find_hull_head(config))
    risk = load_risk_of_checkpoint(config)
    threshold = float("inf") if risk is None else float(risk.threshold_ev_per_atom)
    retention = Retention.from_parameters(config.retention, threshold)
    parts = IndexPartition.for_candidates(workload.total, config.part_size, config.max_candidates)
    with process_group(rank_info, backend=config.backend, device=device, timeout_s=config.timeout_s) as world:
        scorer = build_scorer(model, config, world, risk)
        if retention.column not in scorer.names:
            raise InputError(f"retention.column {retention.column!r}: expected one of {', '.join(scorer.names)}")
        if retention.max_distance < float("inf") and not config.distance:
            raise InputError("retention: max_distance needs `distance: true`")
        identity = compute_identity(model, workload, parts, scorer.names, retention)
        phases = load_reference_phases(config, model)
        log_facts(config, workload, parts, scorer, log)
        if phases is not None:
            log.record_facts(ScreeningFacts(hull=phases.describe()))
        screen(
            Screening(
                config=config, workload=workload, parts=parts, scorer=scorer, retention=retention, phases=phases,
                folder=folder, identity=identity, world=world, log=log,
            )
        )  # fmt: skip
        if config.assessment is not None and rank_info.rank == 0:
            finished = FinishedScreening(model, notes, workload, parts, read_best(folder), phases, risk)
            assess(config.assessment, finished, log, folder)
        world.barrier()


def assess_earlier(earlier: Path, assessment: Assessment, log: CaseLog, folder: Path) -> None:
    """Assess the screening in another folder; raise InputError if it is not finished."""
    if not (earlier / BEST).exists():
        raise InputError(f"assess_only: {earlier} has no {BEST}: no screening has finished there")
    case = upgrade_case(json.loads((earlier / "case.json").read_text(encoding="utf-8")))
    config = parse_parameters("screening", case["parameters"])
    assert isinstance(config, ScreeningParameters)
    model, notes = load_model(config)
    workload = build_workload(config.workload, model, find_hull_head(config))
    parts = IndexPartition.for_candidates(workload.total, config.part_size, config.max_candidates)
    log.record_facts(ScreeningFacts(assessed_folder=earlier.name))
    phases, risk = load_reference_phases(config, model), load_risk_of_checkpoint(config)
    finished = FinishedScreening(model, notes, workload, parts, read_best(earlier), phases, risk)
    assess(assessment, finished, log, folder)


def load_model(config: ScreeningParameters) -> tuple[FoundationModel, dict[str, object]]:
    """Return the frozen model in its precision on the CPU, and the notes of its checkpoint."""
    notes: dict[str, object] = {}
    if config.checkpoint is not None:
        model, notes = checkpoints.load_named(config.checkpoint)
    else:
        torch.manual_seed(config.seed)
        model = FoundationModel(ModelConfig.from_parameters(config.model))
        model.mark_all_elements_known()
    return find_precision(config.precision).apply(model).eval().requires_grad_(False), notes


def find_hull_head(config: ScreeningParameters) -> int | None:
    """Return the index of the head that ranks crystals, or None if none does."""
    is_ranked = config.workload.kind != "random" and config.checkpoint is not None and config.hull_head is not None
    return resolve_head(str(config.hull_head)) if is_ranked else None


def load_reference_phases(config: ScreeningParameters, model: FoundationModel) -> ReferencePhases | None:
    """Return the reference phases of the hull, or None without crystals, a trained model or a head."""
    if find_hull_head(config) is None:
        return None
    phases = ReferencePhases.load(str(config.hull_head), config.reference_phases)
    if not bool(model.trained[phases.head]):
        raise InputError(f"hull_head {config.hull_head!r}: this head of the model was never trained")
    return phases


def load_risk_of_checkpoint(config: ScreeningParameters) -> RiskModel | None:
    """Return the risk of the checkpoint, or None if the case does not use it; raise InputError if it does not fit."""
    return load_risk(config.checkpoint)[0] if config.risk and config.checkpoint is not None else None


def build_scorer(
    model: FoundationModel, config: ScreeningParameters, world: ProcessGroup, risk: RiskModel | None
) -> ModelScorer:
    """Build the scorer of batches on the device of this rank; collective."""
    device = world.device
    message_backend = select_backend(config.message_backend, model, world)
    score: Score = partial(
        score_energies if config.energy_only else score_energies_and_forces, fused=message_backend.fused
    )
    torch._dynamo.config.trace_autograd_ops = True
    tag_compiled_code()
    compiled = torch.compile(score, dynamic=True) if config.compile else None
    distance = fit_training_distance(model, config.reference_structures_per_dataset, world) if config.distance else None
    names = list_columns(forces=not config.energy_only, distance=config.distance, risk=risk is not None)
    dtype = find_precision(config.precision).dtype
    if distance is not None:
        distance = distance.to(device, dtype)
    if risk is not None:
        risk = risk.to(device, dtype)
    return ModelScorer(
        model=model.to(device),
        score=score,
        names=names,
        distance=distance,
        risk=risk,
        device=device,
        dtype=dtype,
        message_backend=message_backend,
        compiled=compiled,
    )


def log_facts(
    config: ScreeningParameters, workload: Workload, parts: IndexPartition, scorer: ModelScorer, log: CaseLog
) -> None:
    """Log the facts of the case."""
    plain = {"name": workload.name, "total": workload.total, **workload.facts}
    model = scorer.model
    log.record_facts(
        ScreeningFacts(
            workload=msgspec.convert(plain, ScreeningWorkload),
            scope=ScreeningScope(parts=len(parts.selected), part_size=parts.size, candidates=parts.candidates),
            model=ScreeningModel(
                checkpoint=config.checkpoint, config=model.config.asdict(), precision=config.precision,
                parameters=sum(p.numel() for p in model.parameters()), columns=list(scorer.names),
                compiled=config.compile, device=str(scorer.device), threads=torch.get_num_threads(),
                message_backend=scorer.message_backend.name, unfused_reason=scorer.message_backend.unfused_reason,
                default_sums_reason=segment_sums.find_default_reason(scorer.device),
            ),
        )
    )  # fmt: skip


@dataclass(frozen=True)
class Screening:
    """The settings of a screening on one rank.

    Attributes:
        config: Parameters of the case.
        workload: The candidates.
        parts: The division of the candidates into parts.
        scorer: The scorer of batches.
        retention: The rule by which results are retained.
        phases: The reference phases of the hull that ranks the best candidates, or None.
        folder: The folder of the case.
        identity: Hash of everything that results must have in common to be merged (`compute_identity`).
        world: The ranks.
        log: The log of the case.
    """

    config: ScreeningParameters
    workload: Workload
    parts: IndexPartition
    scorer: ModelScorer
    retention: Retention
    phases: ReferencePhases | None
    folder: Path
    identity: str
    world: ProcessGroup
    log: CaseLog


def screen(screening: Screening) -> None:
    """Screen the remaining parts on all ranks, verify the coverage, and merge the results; collective."""
    rank_info, folder = screening.world.rank_info, screening.folder / journals.FOLDER
    is_merged = rank_info.rank == 0 and not folder.exists() and bool(list_results(screening.folder))
    if screening.world.broadcast_object(is_merged):
        files = list_results(screening.folder) if rank_info.rank == 0 else []
        read_summary = partial(part_results.read_summary, identity=screening.identity)
        verification = verify_coverage(files, read_summary, screening.parts, screening.world)
        screening.log.write(msgspec.structs.replace(verification, finished_earlier=True))
        return
    finished = scan_earlier_results(screening, folder)
    remaining = [number for number in screening.parts.selected if number not in finished]
    total, done = screening.parts.candidates, sum(finished.values())

    def report_progress(candidates: int) -> None:
        nonlocal done
        done += candidates * rank_info.size
        screening.log.write(Progress(done=min(done, total), total=total, activity="candidates"))

    header = Header(screening.identity, screening.scorer.names)
    with open_journal(folder, screening.world, header) as append:
        worker = ScreeningWorker(
            workload=screening.workload, parts=screening.parts, scorer=screening.scorer, retention=screening.retention,
            append=append, edges=screening.config.edges_per_batch,
            prefetch_depth=screening.config.prefetch_batches, write_interval_s=screening.config.write_interval_s,
            on_progress=report_progress,
        )  # fmt: skip
        stats = worker.run(shard(remaining, rank_info.rank, rank_info.size))
        summaries = screening.world.gather(stats.to_dict())
        screening.world.barrier()
    for number, plain in enumerate(summaries):
        screening.log.write(msgspec.convert({"event": "rank_summary", "rank": number, **plain}, RankWork))
    files = list_journals(folder) if rank_info.rank == 0 else []
    read_journal = partial(read_parts, identity=screening.identity)
    screening.log.write(verify_coverage(files, read_journal, screening.parts, screening.world))
    merge_results(screening, files)


def scan_earlier_results(screening: Screening, folder: Path) -> dict[int, int]:
    """Cut damaged journals, and return the number of candidates of each part that earlier attempts finished.

    The call is collective; each rank checks its share of the journals. Incomplete merged results are deleted, since all
    journals still exist.
    """
    rank_info = screening.world.rank_info
    if rank_info.rank == 0:
        part_results.remove(list_results(screening.folder))
    paths = list_journals(folder) if rank_info.rank == 0 else []
    parts: dict[int, int] = {}
    damage: list[str] = []
    for parts_of_rank, damage_of_rank in screening.world.gather(scan(screening.world.deal(paths), screening.identity)):
        parts |= parts_of_rank
        damage += damage_of_rank
    parts = screening.world.broadcast_object(parts)
    if paths:
        screening.log.write(EarlierParts(parts=len(parts), files=len(paths) - len(damage), unusable_files=damage))
    return parts


def merge_results(screening: Screening, files: list[Path]) -> None:
    """Merge the journals that rank 0 passes into few files, and write the best results; collective."""
    hosts = screening.world.gather(platform.node())
    number, share = screening.world.scatter(assign_journals(hosts, files))
    best = concatenate_scores(screening.scorer.names, [])
    if share:
        best = merge_journals(
            screening.folder,
            share,
            number,
            names=screening.scorer.names,
            retention=screening.retention,
            identity=screening.identity,
        )
    best_of_all = gather_best(best, screening.retention, screening.world)
    rank_info = screening.world.rank_info
    folder, trash = screening.folder / journals.FOLDER, screening.folder / f"{journals.FOLDER}.done"
    if rank_info.rank == 0:
        write_best(screening, best_of_all)
        os.replace(folder, trash)  # at once, since some of the journals would look like an unfinished screening
    screening.world.barrier()
    part_results.remove(trash / path.relative_to(folder) for path in screening.world.deal(files))
    screening.world.barrier()
    if rank_info.rank == 0:
        part_results.remove([trash])


def assign_journals(hosts: Sequence[str], files: Sequence[Path]) -> list[tuple[int, Sequence[Path]]]:
    """Return the number of the file and the journals that each rank merges.

    The first rank of every MAX_NODES-th node merges the journals of so many nodes; other ranks merge none.
    """
    nodes = list(dict.fromkeys(hosts))
    mergers = {host: number for number, host in enumerate(nodes[::MAX_NODES])}
    n_files = len(mergers)
    shares: list[tuple[int, Sequence[Path]]] = []
    for host in hosts:
        number = mergers.pop(host, None)
        shares.append((0, []) if number is None else (number, files[number::n_files]))
    return shares


def write_best(screening: Screening, best: Scores) -> None:
    """Write best.csv, and log its first rows."""
    part = screening.folder / f"{BEST}.part"
    with part.open("w", newline="", encoding="utf-8") as file:
        writer = None
        best, energies = rank_best(screening, best)
        for k, (index, values) in enumerate(zip(best.index.tolist(), best.values.tolist(), strict=True)):
            scores = dict(zip(best.names, values, strict=True))
            row = {"candidate": index, **screening.workload.describe(index), **scores, **compute_interval(scores)}
            row |= energies[k] if energies else {}
            if writer is None:
                writer = csv.DictWriter(file, list(row))
                writer.writeheader()
            writer.writerow(row)
            if k < LOGGED_ROWS:
                screening.log.write(msgspec.convert({"event": "best", "position": k + 1, **row}, BestCandidate))
    os.replace(part, screening.folder / BEST)


def rank_best(screening: Screening, best: Scores) -> tuple[Scores, list[dict[str, object]]]:
    """Return the best results in the order of `rank`, with a row on the hull for each; no rows without a hull."""
    if screening.phases is None or not len(best):
        return best, []
    model = copy.deepcopy(screening.scorer.model).to("cpu").double()
    model.autocast = None
    structures = [screening.workload.structure(k) for k in best.index.tolist()]
    energies = screening.phases.compute_energies_above_hull(model, structures)
    order = rank(energies)
    rows: list[dict[str, object]] = [
        {"energy_above_hull_mev_per_atom": None if np.isnan(e) else round(1e3 * e, 3), "suspicious": bool(suspicious)}
        for e, suspicious in zip(energies[order].tolist(), find_suspicious(energies)[order].tolist(), strict=True)
    ]
    return best[order], rows


def compute_interval(scores: dict[str, float]) -> dict[str, float]:
    """Return the ends of the interval that the risk gives for the energy; empty if the scores have no risk."""
    if "risk_ev_per_atom" not in scores:
        return {}
    energy, risk = scores["energy_ev_per_atom"], scores["risk_ev_per_atom"]
    return {"energy_low_ev_per_atom": energy - risk, "energy_high_ev_per_atom": energy + risk}


def read_best(folder: Path) -> list[int]:
    """Return the candidates of best.csv, best first."""
    with (folder / BEST).open(encoding="utf-8") as file:
        return [int(row["candidate"]) for row in csv.DictReader(file)]
