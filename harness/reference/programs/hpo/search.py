"""The search (suites/hpo.yaml): trials handed out as nodes come free, until as many have ended as were asked for.

It runs as one process, beside the ranks of its trials and not as one of them. Started again in the same folder it asks
and tells once more in the order of before, which is in the file `order`, so that the optimizer knows what it knew; it
lets trials in flight end, and goes on.
"""

from __future__ import annotations

import csv
import io
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from harness.protocol.events import FILE_NAME, CaseLog
from harness.protocol.programs.hpo import (
    HpoFacts,
    HpoParameters,
    Objective,
    Overhead,
    SearchFact,
    TrialEvent,
    WarmStart,
)
from harness.protocol.records import Progress
from harness.reference.errors import InputError
from harness.reference.programs.hpo import trial as trials
from harness.reference.programs.hpo.ask_tell_log import ASKED, TOLD, Order
from harness.reference.programs.hpo.halving import Halving
from harness.reference.programs.hpo.nodes import Pool
from harness.reference.programs.hpo.optimizer import Optimizer, objective_columns
from harness.reference.programs.hpo.space import BACKBONE, Space, active, describe, merge_spaces
from harness.reference.programs.hpo.trial import Interrupted, Result, Trial

TRIALS, RESULTS, ORDER = "trials", "results.csv", "order"
FIRST_PORT, PORTS = 20000, 40000
TRIES = 2


def run(config: HpoParameters, log: CaseLog, folder: Path) -> None:
    """Search, and leave every trial's run in trials/, and results.csv as DeepHyper writes it."""
    space = merge_spaces(config.space, config.own_space)
    pool = Pool.of_job(config.nodes_per_trial, config.at_once)
    optimizer = Optimizer.of(
        space, config.objectives, seed=config.seed, initial_points=config.initial_points, folder=folder / "deephyper"
    )
    warmth = optimizer.warm_up([Path(path).expanduser() for path in config.warm_start])
    plain = config.model_dump(mode="json", exclude={"space", "own_space", "trial"})
    plain["trial"] = config.trial.model_dump(mode="json", exclude_unset=True)
    fact = msgspec.convert(plain, SearchFact)
    fact.space = {name: describe(choices) for name, choices in space.items()}
    log.record_facts(HpoFacts(warm_start=WarmStart(files=list(config.warm_start), **asdict(warmth)), search=fact))
    search = Search(config, space, pool, optimizer, log, folder.resolve())
    with _stoppable(search.stop):
        search.run()


@contextmanager
def _stoppable(stop: threading.Event) -> Iterator[None]:
    """On SIGTERM and SIGINT, trials end, and the search with them."""
    before = {kind: signal.signal(kind, lambda *_: stop.set()) for kind in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)


@dataclass
class Search:
    """A search at work."""

    config: HpoParameters
    space: Space
    pool: Pool
    optimizer: Optimizer
    log: CaseLog
    folder: Path
    stop: threading.Event = field(default_factory=threading.Event)
    ended: dict[int, tuple[Trial, Result]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.began = time.monotonic()
        self.order = Order(self.folder / ORDER)
        asked = self.config.halving
        self.halving = Halving(asked.eta, asked.least_epochs) if asked else None
        self.left_over: list[Trial] = []
        self.losses: Counter[int] = Counter()
        self.next_number = 0

    def run(self) -> None:
        """Hand out trials until enough have ended, time is up, or the search is told to end."""
        self._recall()
        running: dict[Future[Result], Trial] = {}
        with ThreadPoolExecutor(max(1, self.pool.capacity)) as threads:
            while True:
                while len(running) < self.pool.capacity and (trial := self._next(len(running))) is not None:
                    running[threads.submit(self._carry_out, trial)] = trial
                if not running:
                    break
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    self._end(running.pop(future), future)
        if self.stop.is_set():
            raise InputError("told to end; the same job goes on from here")
        states = [result.state for _, result in self.ended.values()]
        if len(states) < self.config.evaluations and not self._time_left():
            self.log.record_facts(HpoFacts(ended_early=f"{self.config.minutes:g} minutes are up"))
        elif len(states) < self.config.evaluations:
            raise InputError(
                f"{self.pool.capacity} trials can run on the nodes that are left; {len(states)} have ended"
            )
        if not any(state in ("done", "stopped") for state in states):
            reasons = {result.reason for _, result in self.ended.values()}
            raise InputError(f"none of {len(states)} trials came to an objective: {'; '.join(map(str, reasons))[:300]}")
        overhead = Overhead(optimizer_s=self.optimizer.seconds, search_s=time.monotonic() - self.began)
        self.log.record_facts(HpoFacts(overhead=overhead))

    def _recall(self) -> None:
        """Ask and tell what an earlier attempt of this search has asked and told, in its order."""
        found: dict[int, tuple[Trial, Result | None]] = {}
        for path in sorted((self.folder / TRIALS).glob("*/configuration.json"), key=lambda p: int(p.parent.name)):
            number = int(path.parent.name)
            configuration, result = trials.load_trial(path.parent)
            found[number] = (self._trial(number, configuration), result)
            self._recall_epochs(number, path.parent)
        for word, number in self.order.read():
            if word == ASKED:
                point = self.optimizer.ask()
                if number not in found:
                    found[number] = (self._written(self._trial(number, point)), None)
            elif number in found and (result := found[number][1]) is not None:
                self._tell(found[number][0], result)
        for number, (trial, result) in sorted(found.items()):
            if result is None:
                self.left_over.append(trial)
            elif number not in self.ended:
                self.order.note(TOLD, number)
                self._tell(trial, result)
        self.next_number = max(found, default=-1) + 1

    def _recall_epochs(self, number: int, folder: Path) -> None:
        """What the trial had come to at the rungs of the halving."""
        if self.halving is not None:
            for epochs, accuracy in trials.after_epochs(folder / FILE_NAME):
                self.halving.goes_on(number, epochs, accuracy)

    def _trial(self, number: int, configuration: dict[str, Any]) -> Trial:
        folder = self.folder / TRIALS / f"{number:04d}"
        return Trial(number, configuration, folder, 60.0 * self.config.trial_minutes)

    def _time_left(self) -> bool:
        """Whether a trial that is begun now would end in time."""
        if self.config.minutes is None:
            return True
        spent = (time.monotonic() - self.began) / 60.0
        return spent + self.config.trial_minutes <= self.config.minutes

    def _next(self, running: int) -> Trial | None:
        """The next trial, or None if none is to be begun now."""
        if self.stop.is_set() or not self._time_left():
            return None
        if self.left_over:
            return self.left_over.pop(0)
        if len(self.ended) + running >= self.config.evaluations:
            return None
        trial = self._trial(self.next_number, self.optimizer.ask())
        self.next_number += 1
        self.order.note(ASKED, trial.number)
        return self._written(trial)

    def _written(self, trial: Trial) -> Trial:
        """The trial, its folder made."""
        chosen = active(trial.configuration, self.config.backbone)
        fixed = self.config.trial.model_dump(mode="json", exclude_unset=True)
        fixed["model"] = {**fixed.get("model", {}), BACKBONE: self.config.backbone}
        trials.write(trial, fixed, chosen, of=self.folder.name)
        return trial

    def _carry_out(self, trial: Trial) -> Result:
        """On nodes of its own; a failure on a node that is no longer well is laid to the node."""
        nodes = self.pool.take()
        try:
            port = FIRST_PORT + (os.getpid() * 64 + trial.number * TRIES + self.losses[trial.number]) % PORTS
            result = trials.run_trial(trial, nodes, port, self.halving, self.stop)
            lost = self.pool.lost(nodes) if result.state == "failed" else []
        finally:
            self.pool.give_back(nodes)
        return replace(result, state="lost", reason=f"lost with {', '.join(lost)}") if lost else result

    def _end(self, trial: Trial, future: Future[Result]) -> None:
        """Keep and tell a result; a trial that was lost with a node waits for another instead, but not for ever."""
        try:
            result = future.result()
        except Interrupted:
            return
        self.losses[trial.number] += result.state == "lost"
        if result.state == "lost" and self.losses[trial.number] < TRIES:
            self.left_over.append(trial)
            return
        trials.save_result(trial, result)
        if result.measured is not None:  # nobody goes on from there, and two hundred such states fill a disk
            for state in trial.folder.glob("training*.safetensors"):
                state.unlink()
        self.order.note(TOLD, trial.number)
        self._tell(trial, result)

    def _tell(self, trial: Trial, result: Result) -> None:
        """Count a trial as ended: to the optimizer, to the event log, to results.csv."""
        self.ended[trial.number] = (trial, result)
        self.optimizer.tell(trial.configuration, values(result))
        measured = asdict(result.measured) if result.measured else {}
        share = self.config.nodes_per_trial if result.nodes else 1.0 / self.config.at_once
        self.log.write(
            TrialEvent(
                trial=trial.number,
                configuration=active(trial.configuration, self.config.backbone),
                backbone=trial.configuration.get(BACKBONE, self.config.backbone),
                state=result.state,
                reason=result.reason,
                objective=result.measured.accuracy if result.measured else None,
                **measured,
                began_s=result.began_s,
                ended_s=result.ended_s,
                nodes=result.nodes,
                node_hours=share * (result.ended_s - result.began_s) / 3600.0,
                folder=str(trial.folder.relative_to(self.folder)),
            )
        )
        self.log.write(Progress(done=len(self.ended), total=self.config.evaluations, what="trials"))
        self._write_table()

    def _write_table(self) -> None:
        """results.csv, so that any DeepHyper search can start from this one."""
        names = list(self.space)
        columns = [f"p:{n}" for n in names] + objective_columns(len(self.config.objectives))
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow([*columns, "job_id", "job_status", "m:timestamp_submit", "m:timestamp_gather", "m:reason"])
        first = min(result.began_s for _, result in self.ended.values())
        for trial, result in self.ended.values():
            found = values(result)
            word = f"F_{result.state.replace(' ', '_')}"
            objectives = [found[aim] if found else word for aim in self.config.objectives]
            times = (result.began_s - first, result.ended_s - first)
            status = "DONE" if found else "FAILED"
            writer.writerow(
                [*(trial.configuration[n] for n in names), *objectives, trial.number, status, *times, result.reason]
            )
        part = self.folder / f"{RESULTS}.part"
        part.write_text(text.getvalue(), encoding="utf-8")
        os.replace(part, self.folder / RESULTS)


MEASURES: Mapping[Objective, Callable[[trials.Measured], float]] = {
    "accuracy": lambda m: m.accuracy,
    "throughput": lambda m: m.graphs_per_s,
}


def values(result: Result) -> dict[str, float] | None:
    """Each aim's value, or None for a trial that came to none."""
    if result.measured is None:
        return None
    return {aim: of(result.measured) for aim, of in MEASURES.items()}
