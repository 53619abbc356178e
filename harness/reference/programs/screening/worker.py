"""One rank's way through its parts of the index space: candidates made ahead in a thread, evaluated, put on disk."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import psutil
import torch
from torch import Tensor

from harness.reference.data.batch import Batch
from harness.reference.distributed.group import synchronize
from harness.reference.distributed.launch import first_line
from harness.reference.models.coverage import Coverage
from harness.reference.models.foundation import FoundationModel
from harness.reference.models.message_backend import PLAIN, Chosen
from harness.reference.profiling import fom_client
from harness.reference.programs.screening import result_segments
from harness.reference.programs.screening.candidates.workload import Made, Workload
from harness.reference.programs.screening.index_partition import Parts, checksum_of_range
from harness.reference.programs.screening.result_segments import Covered
from harness.reference.programs.screening.retention import Keeping
from harness.reference.programs.screening.scoring import Familiar, Scores, joined
from harness.reference.storage.prefetch import Prefetch

Score = Callable[[FoundationModel, Batch, Familiar | None], Tensor]


@dataclass
class Evaluator:
    """A model with what it is to tell. score: energies_only or with_forces, with the messages that were chosen.

    compiled: the same through the compiler; batches of one structure or edge, which it would compile anew, go without.
    why_eager: why all do, where the compiler has failed.
    """

    model: FoundationModel
    score: Score
    names: tuple[str, ...]
    familiar: Familiar | None
    device: torch.device
    dtype: torch.dtype
    messages: Chosen = PLAIN
    compiled: Score | None = None
    why_eager: str | None = None

    def warm_up(self, batch: Batch) -> None:
        """A first call, which compiles; if that cannot be done, all calls go without."""
        try:
            self(batch)
        except Exception as error:  # compilers fail in as many ways as there are compilers
            if self.compiled is None:
                raise
            self.compiled, self.why_eager = None, first_line(error)[:300]
            self(batch)

    def __call__(self, batch: Batch) -> tuple[np.ndarray[tuple[int, int], np.dtype[np.float32]], float, float]:
        """What is told of each structure, [g, columns], and the seconds for transfer and on the device."""
        began = time.perf_counter()
        there = batch.to(self.device, self.dtype)
        synchronize(self.device)
        moved = time.perf_counter()
        few = len(batch.composition) < 2 or len(batch.receiver) < 2
        score = self.score if self.compiled is None or few else self.compiled
        told = score(self.model, there, self.familiar)
        synchronize(self.device)
        ended = time.perf_counter()
        return told.float().cpu().numpy(), moved - began, ended - moved


@dataclass
class Tally:
    """What a rank has done: counts, and seconds by what they went to.

    evaluated: all that the model was run on, but those whose results are not finite. unranked: of these, what the model
    cannot know anything of, by reason; they have no results. make_s: in the thread that makes candidates. wait_s: of
    evaluation for it. write_s: for results on disk. warm_up_s: of the first batch, compilation included, evaluated once
    more before; in no other of these. why_eager: as of Evaluator.
    """

    candidates: int = 0
    evaluated: int = 0
    atoms: int = 0
    edges: int = 0
    batches: int = 0
    make_s: float = 0.0
    wait_s: float = 0.0
    transfer_s: float = 0.0
    device_s: float = 0.0
    write_s: float = 0.0
    wall_s: float = 0.0
    warm_up_s: float = 0.0
    left_out: Counter[str] = field(default_factory=Counter)
    unranked: Counter[str] = field(default_factory=Counter)
    memory_bytes: list[int] = field(default_factory=list)
    why_eager: str | None = None

    def plain(self) -> dict[str, object]:
        """As an event tells it; of the memory the first, the median, the largest and the last sample."""
        memory = sorted(self.memory_bytes) or [0]
        told = {k: v for k, v in vars(self).items() if k not in ("left_out", "unranked", "memory_bytes")}
        told = {k: round(v, 4) if isinstance(v, float) else v for k, v in told.items()}
        first = self.memory_bytes[0] if self.memory_bytes else 0
        ends = {"memory_first_bytes": first, "memory_bytes": memory[len(memory) // 2], "memory_peak_bytes": memory[-1]}
        ends["memory_last_bytes"] = self.memory_bytes[-1] if self.memory_bytes else 0
        return told | ends | {"left_out": dict(self.left_out), "unranked": dict(self.unranked)}


@dataclass(frozen=True)
class Rank:
    """A rank at work. edges: of a batch, at most about. commit_s: after so many seconds finished parts go to disk."""

    workload: Workload
    parts: Parts
    evaluator: Evaluator
    keeping: Keeping
    folder: Path
    identity: str
    number: int
    edges: int
    ahead: int
    commit_s: float
    told: Callable[[int], None]

    def run(self, mine: Sequence[int]) -> Tally:
        """Screen these parts."""
        tally = Tally()
        pending: list[Covered] = []
        results: list[Scores] = []
        began = committed = time.perf_counter()
        with Prefetch(_itself, self._made(mine, tally), depth=self.ahead) as ahead:
            for item in ahead:
                if isinstance(item, Made):
                    results.append(self._evaluated(item, tally))
                    continue
                pending.append(self._part(item, results, tally))
                results = []
                if time.perf_counter() - committed > self.commit_s:
                    self._commit(pending, tally)
                    pending, committed = [], time.perf_counter()
            tally.wait_s = ahead.waited_s
        self._commit(pending, tally)
        tally.wall_s = time.perf_counter() - began - tally.warm_up_s
        return tally

    def _made(self, mine: Sequence[int], tally: Tally) -> Iterator[Made | int]:
        """Batch after batch, and the number of each part after its last; runs ahead in a thread."""
        coverage = Coverage(self.evaluator.model)
        for number in mine:
            batches = self.workload.batches(*self.parts.bounds(number), self.edges)
            while True:
                began = time.perf_counter()
                made = next(batches, None)
                if made is not None and made.batch is not None:
                    made = replace(made, outside=coverage.outside(made.batch))
                tally.make_s += time.perf_counter() - began
                if made is None:
                    break
                yield made
            yield number

    def _evaluated(self, made: Made, tally: Tally) -> Scores:
        """The results of a batch; what is outside the training or no number has none, and is counted."""
        tally.left_out.update(made.left_out)
        if made.batch is None:
            return joined(self.evaluator.names, [])
        if not tally.batches:
            began = time.perf_counter()
            self.evaluator.warm_up(made.batch)
            tally.warm_up_s = time.perf_counter() - began
            tally.why_eager = self.evaluator.why_eager
        values, transfer_s, device_s = self.evaluator(made.batch)
        tally.transfer_s += transfer_s
        tally.device_s += device_s
        fom_client.post("candidates_per_s_of_a_rank", len(made.index) / device_s)
        tally.batches += 1
        tally.atoms += len(made.batch.numbers)
        tally.edges += len(made.batch.receiver)
        scores = Scores(self.evaluator.names, made.index, values)
        inside = ~np.any([np.zeros(len(values), dtype=bool), *made.outside.values()], axis=0)
        finite = np.asarray(np.isfinite(values).all(axis=1))
        tally.unranked.update({why: int(mask.sum()) for why, mask in made.outside.items() if mask.any()})
        if (inside & ~finite).any():
            tally.left_out["not finite"] += int((inside & ~finite).sum())
        tally.evaluated += int((finite | ~inside).sum())
        return scores[inside & finite]

    def _part(self, number: int, results: Sequence[Scores], tally: Tally) -> Covered:
        """A part that is through."""
        first, stop = self.parts.bounds(number)
        scores = joined(self.evaluator.names, results)
        tally.candidates += stop - first
        tally.memory_bytes.append(psutil.Process().memory_info().rss)
        self.told(stop - first)
        covered = checksum_of_range(first, stop)
        return Covered(number, stop - first, len(scores), covered, self.keeping.of(scores))

    def _commit(self, pending: Sequence[Covered], tally: Tally) -> None:
        """Put finished parts on disk, where a kill cannot take them."""
        if not pending:
            return
        began = time.perf_counter()
        # of the best of a segment, those of a part alone are too many
        kept = self.keeping.of(joined(self.evaluator.names, [c.kept for c in pending if c.kept is not None]))
        trimmed = [Covered(c.part, c.candidates, c.evaluated, c.checksum, _within(c, kept)) for c in pending]
        path = self.folder / f"{pending[0].part:08d}-{self.number}.bp"
        result_segments.write(path, [trimmed], self.evaluator.names, self.identity)
        tally.write_s += time.perf_counter() - began


def _itself(item: Made | int) -> Made | int:
    return item


def _within(covered: Covered, kept: Scores) -> Scores | None:
    """What of a part's results is among the kept."""
    if covered.kept is None:
        return None
    return covered.kept[np.isin(covered.kept.index, kept.index)]
