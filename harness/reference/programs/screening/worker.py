"""The worker of one rank, which generates candidates in a thread, scores them on the device and writes the results."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import psutil
import torch
from torch import Tensor

from harness.reference.data.batch import Batch
from harness.reference.distributed.group import synchronize
from harness.reference.errors import get_first_line
from harness.reference.inference.risk import RiskModel
from harness.reference.models.coverage import Coverage
from harness.reference.models.foundation import FoundationModel
from harness.reference.models.message_backend import UNFUSED, MessageBackend
from harness.reference.profiling import fom_client
from harness.reference.programs.screening.candidates.workload import CandidateBatch, Workload
from harness.reference.programs.screening.journals import Append, encode_parts
from harness.reference.programs.screening.part_results import IndexPartition, PartEntry, compute_range_checksum
from harness.reference.programs.screening.scoring import MahalanobisDistance, Retention, Scores, concatenate_scores
from harness.reference.storage.prefetch import Prefetch

Score = Callable[[FoundationModel, Batch, MahalanobisDistance | None, RiskModel | None], Tensor]
TOO_RISKY = "risk above the threshold"


@dataclass
class ModelScorer:
    """A function that scores batches with a model.

    Attributes:
        model: The model on its device.
        score: `score_energies` or `score_energies_and_forces`, with the selected message backend.
        names: Names of the columns.
        distance: The distance from the training sets, or None.
        device: The device.
        dtype: Type of the batches.
        message_backend: The message backend.
        risk: The risk of the model, or None.
        compiled: The compiled score function, or None. Batches of one structure or edge, which would need another
            compilation, use `score`.
        eager_reason: Why the compilation failed; None if it did not.
    """

    model: FoundationModel
    score: Score
    names: tuple[str, ...]
    distance: MahalanobisDistance | None
    device: torch.device
    dtype: torch.dtype
    message_backend: MessageBackend = UNFUSED
    risk: RiskModel | None = None
    compiled: Score | None = None
    eager_reason: str | None = None

    def warm_up(self, batch: Batch) -> None:
        """Score a first batch, which triggers the compilation; if that fails, use the eager function from now on."""
        try:
            self(batch)
        except Exception as error:  # each compiler raises its own errors
            if self.compiled is None:
                raise
            self.compiled, self.eager_reason = None, get_first_line(error)[:300]
            self(batch)

    def __call__(self, batch: Batch) -> tuple[np.ndarray[tuple[int, int], np.dtype[np.float32]], float, float]:
        """Return the scores [g, columns], and the seconds of the transfer and of the computation."""
        started = time.perf_counter()
        on_device = batch.to(self.device, self.dtype)
        synchronize(self.device)
        copied = time.perf_counter()
        is_tiny = len(batch.composition) < 2 or len(batch.receiver) < 2
        score = self.score if self.compiled is None or is_tiny else self.compiled
        scores = score(self.model, on_device, self.distance, self.risk)
        synchronize(self.device)
        finished = time.perf_counter()
        return scores.float().cpu().numpy(), copied - started, finished - copied


@dataclass
class WorkerStats:
    """Counts and times of a rank.

    Attributes:
        candidates: Number of candidates in the finished parts.
        evaluated: Number of candidates with finite results or outside the training sets; `PartEntry.evaluated`
            excludes the latter.
        atoms: Number of atoms in the scored batches.
        edges: Number of edges in the scored batches.
        batches: Number of scored batches.
        generation_s: Seconds in the thread that generates candidates.
        wait_s: Seconds of waiting for that thread.
        transfer_s: Seconds of copying batches to the device.
        device_s: Seconds of scoring.
        write_s: Seconds of writing results.
        wall_s: Seconds in total, without the warm-up.
        warm_up_s: Seconds of an additional evaluation of the first batch, including compilation.
        left_out: Number of candidates without results, by reason.
        unranked: Number of evaluated candidates that are outside the training sets or too risky, which have no results,
            by reason.
        memory_bytes: Resident memory after each part.
        eager_reason: Why the compilation failed; None if it did not.
    """

    candidates: int = 0
    evaluated: int = 0
    atoms: int = 0
    edges: int = 0
    batches: int = 0
    generation_s: float = 0.0
    wait_s: float = 0.0
    transfer_s: float = 0.0
    device_s: float = 0.0
    write_s: float = 0.0
    wall_s: float = 0.0
    warm_up_s: float = 0.0
    left_out: Counter[str] = field(default_factory=Counter)
    unranked: Counter[str] = field(default_factory=Counter)
    memory_bytes: list[int] = field(default_factory=list)
    eager_reason: str | None = None

    def to_dict(self) -> dict[str, object]:
        """Return plain data for an event, with the first, median, largest and last sample of the memory."""
        memory = sorted(self.memory_bytes) or [0]
        values = {k: v for k, v in vars(self).items() if k not in ("left_out", "unranked", "memory_bytes")}
        values = {k: round(v, 4) if isinstance(v, float) else v for k, v in values.items()}
        first = self.memory_bytes[0] if self.memory_bytes else 0
        ends = {
            "memory_first_bytes": first,
            "memory_median_bytes": memory[len(memory) // 2],
            "memory_peak_bytes": memory[-1],
        }
        ends["memory_last_bytes"] = self.memory_bytes[-1] if self.memory_bytes else 0
        return values | ends | {"excluded": dict(self.left_out), "outside_coverage": dict(self.unranked)}


@dataclass(frozen=True, kw_only=True)
class ScreeningWorker:
    """A worker that screens parts of the index space on one rank.

    Attributes:
        workload: The candidates.
        parts: The division of the candidates into parts.
        scorer: The scorer of batches.
        retention: The rule by which results are retained.
        append: The function that appends finished parts to the journal of the node.
        edges: Approximate maximum number of edges of a batch.
        prefetch_depth: Number of batches to generate in advance.
        write_interval_s: Seconds between writes of finished parts.
        on_progress: The function that gets the number of candidates of each finished part.
    """

    workload: Workload
    parts: IndexPartition
    scorer: ModelScorer
    retention: Retention
    append: Append
    edges: int
    prefetch_depth: int
    write_interval_s: float
    on_progress: Callable[[int], None]

    def run(self, part_numbers: Sequence[int]) -> WorkerStats:
        """Screen the parts with these numbers."""
        stats = WorkerStats()
        pending: list[PartEntry] = []
        results: list[Scores] = []
        started = committed = time.perf_counter()
        with Prefetch(_return_unchanged, self._generate(part_numbers, stats), depth=self.prefetch_depth) as prefetched:
            for item in prefetched:
                if isinstance(item, CandidateBatch):
                    results.append(self._evaluate(item, stats))
                    continue
                pending.append(self._finish_part(item, results, stats))
                results = []
                if time.perf_counter() - committed > self.write_interval_s:
                    self._commit(pending, stats)
                    pending, committed = [], time.perf_counter()
            stats.wait_s = prefetched.waited_s
        self._commit(pending, stats)
        stats.wall_s = time.perf_counter() - started - stats.warm_up_s
        return stats

    def _generate(self, numbers: Sequence[int], stats: WorkerStats) -> Iterator[CandidateBatch | int]:
        """Yield the batches of each part, then the number of the part; this runs in a thread."""
        coverage = Coverage(self.scorer.model)
        for number in numbers:
            batches = self.workload.batches(*self.parts.bounds(number), self.edges)
            while True:
                started = time.perf_counter()
                candidates = next(batches, None)
                if candidates is not None and candidates.batch is not None:
                    candidates = replace(candidates, outside=coverage.find_outside(candidates.batch))
                stats.generation_s += time.perf_counter() - started
                if candidates is None:
                    break
                yield candidates
            yield number

    def _evaluate(self, candidates: CandidateBatch, stats: WorkerStats) -> Scores:
        """Score a batch; candidates outside the training sets, or without finite scores, are counted and dropped."""
        stats.left_out.update(candidates.left_out)
        if candidates.batch is None:
            return concatenate_scores(self.scorer.names, [])
        if not stats.batches:
            started = time.perf_counter()
            self.scorer.warm_up(candidates.batch)
            stats.warm_up_s = time.perf_counter() - started
            stats.eager_reason = self.scorer.eager_reason
        values, transfer_s, device_s = self.scorer(candidates.batch)
        stats.transfer_s += transfer_s
        stats.device_s += device_s
        fom_client.post_figure_of_merit("candidates_per_s_of_a_rank", len(candidates.index) / device_s)
        stats.batches += 1
        stats.atoms += len(candidates.batch.numbers)
        stats.edges += len(candidates.batch.receiver)
        scores = Scores(self.scorer.names, candidates.index, values)
        inside = ~np.any([np.zeros(len(values), dtype=bool), *candidates.outside.values()], axis=0)
        finite = np.asarray(np.isfinite(values).all(axis=1))
        stats.unranked.update({reason: int(mask.sum()) for reason, mask in candidates.outside.items() if mask.any()})
        if (inside & ~finite).any():
            stats.left_out["not finite"] += int((inside & ~finite).sum())
        stats.evaluated += int((finite | ~inside).sum())
        scores = scores[inside & finite]
        if self.scorer.risk is not None:
            is_risky = scores.column("risk_ev_per_atom") > self.retention.max_risk_ev_per_atom
            stats.unranked.update({TOO_RISKY: int(is_risky.sum())} if is_risky.any() else {})
        return scores

    def _finish_part(self, number: int, results: Sequence[Scores], stats: WorkerStats) -> PartEntry:
        """Return the entry of a finished part, and report the progress."""
        first, stop = self.parts.bounds(number)
        scores = concatenate_scores(self.scorer.names, results)
        stats.candidates += stop - first
        stats.memory_bytes.append(psutil.Process().memory_info().rss)
        self.on_progress(stop - first)
        checksum = compute_range_checksum(first, stop)
        return PartEntry(number, stop - first, len(scores), checksum, self.retention.select(scores))

    def _commit(self, pending: Sequence[PartEntry], stats: WorkerStats) -> None:
        """Write finished parts to disk."""
        if not pending:
            return
        started = time.perf_counter()
        # of the best results of each part, only those among the best of all pending parts are written
        retained = self.retention.select(
            concatenate_scores(self.scorer.names, [e.results for e in pending if e.results is not None])
        )
        trimmed = [replace(entry, results=_select_retained(entry, retained)) for entry in pending]
        self.append(encode_parts(trimmed, self.scorer.names))
        stats.write_s += time.perf_counter() - started


def _return_unchanged(item: CandidateBatch | int) -> CandidateBatch | int:
    return item


def _select_retained(entry: PartEntry, retained: Scores) -> Scores | None:
    """Return the results of a part that are among those retained."""
    if entry.results is None:
        return None
    return entry.results[np.isin(entry.results.index, retained.index)]
