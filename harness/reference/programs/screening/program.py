"""Screen millions of candidates with a model on every rank, in constant memory (suites/screening.yaml).

Candidates and scores are written to the journal of each node. At the end, the journals are merged into
results-<number>.bp, one for every MAX_NODES nodes, and the best candidates are written to best.csv.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec

from harness.protocol.case import upgrade_case
from harness.protocol.events import CaseLog
from harness.protocol.programs.assessment import Assessment
from harness.protocol.programs.screening import EarlierParts, RankWork, ScreeningFacts, ScreeningParameters
from harness.protocol.records import Progress
from harness.protocol.registry import parse_parameters
from harness.reference.distributed import launch
from harness.reference.distributed.group import ProcessGroup, process_group, select_device
from harness.reference.distributed.launch import shard
from harness.reference.errors import InputError
from harness.reference.programs.screening import journals, part_results
from harness.reference.programs.screening.assessment import FinishedScreening, assess
from harness.reference.programs.screening.best_results import BEST, read_best, write_best
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
from harness.reference.programs.screening.model_setup import (
    build_scorer,
    find_hull_head,
    load_model,
    load_reference_phases,
    load_risk_of_checkpoint,
    log_facts,
)
from harness.reference.programs.screening.part_results import IndexPartition
from harness.reference.programs.screening.reference_phases import ReferencePhases
from harness.reference.programs.screening.scoring import Retention, concatenate_scores
from harness.reference.programs.screening.worker import ModelScorer, ScreeningWorker
from harness.reference.training import state

# Journals whose results are merged, until they are deleted.
MERGED_JOURNALS = f"{journals.FOLDER}.done"


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
        if rank_info.rank == 0:
            part_results.remove([screening.folder / MERGED_JOURNALS])
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
    folder, merged = screening.folder / journals.FOLDER, screening.folder / MERGED_JOURNALS
    if rank_info.rank == 0:
        model, phases, log = screening.scorer.model, screening.phases, screening.log
        write_best(screening.folder, best_of_all, screening.workload, model, phases=phases, log=log)
        os.replace(folder, merged)  # at once, since some of the journals would look like an unfinished screening
    screening.world.barrier()
    part_results.remove(merged / path.relative_to(folder) for path in screening.world.deal(files))
    screening.world.barrier()
    if rank_info.rank == 0:
        part_results.remove([merged])


def assign_journals(hosts: Sequence[str], files: Sequence[Path]) -> list[tuple[int, Sequence[Path]]]:
    """Return the number of the file and the journals that each rank merges.

    The first rank of every MAX_NODES-th node merges as many journals as that many nodes write; other ranks merge none.
    """
    nodes = list(dict.fromkeys(hosts))
    mergers = {host: number for number, host in enumerate(nodes[::MAX_NODES])}
    n_files = len(mergers)
    shares: list[tuple[int, Sequence[Path]]] = []
    for host in hosts:
        number = mergers.pop(host, None)
        shares.append((0, []) if number is None else (number, files[number::n_files]))
    return shares
