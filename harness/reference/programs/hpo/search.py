"""A search for hyperparameters (suites/hpo.yaml): trials start as nodes become free, until enough have ended.

The search is one process, which is not a rank of its trials. If the search is started again in the same folder, it
repeats all calls of the optimizer in the order that the file `order` records, so that the optimizer reaches the same
state. Then the search waits for trials that are still running, and continues.
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

from harness.protocol.events import EVENTS_FILE, CaseLog
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
from harness.reference.programs.hpo.halving import Halving
from harness.reference.programs.hpo.nodes import NodePool
from harness.reference.programs.hpo.optimizer import ASKED, TOLD, AskTellLog, Optimizer, list_objective_columns
from harness.reference.programs.hpo.space import BACKBONE, Space, describe, merge_spaces, select_active_parameters
from harness.reference.programs.hpo.trial import (
    Interrupted,
    Result,
    Trial,
    TrialMetrics,
    load_trial,
    read_accuracies,
    run_trial,
    save_result,
    write_trial,
)

TRIALS, RESULTS, ORDER = "trials", "results.csv", "order"  # order: the calls of the optimizer, in their order
FIRST_PORT, PORTS = 20000, 40000
MAX_ATTEMPTS = 2  # a trial whose nodes fail is run at most this many times


def run(config: HpoParameters, log: CaseLog, folder: Path) -> None:
    """Run the search, and write the runs of all trials to trials/, and results.csv in the format of DeepHyper."""
    space = merge_spaces(config.space, config.search_specific_space)
    pool = NodePool.from_environment(config.nodes_per_trial, config.max_concurrent_trials)
    optimizer = Optimizer.create(
        space, config.objectives, seed=config.seed, initial_points=config.initial_points, folder=folder / "deephyper"
    )
    counts = optimizer.warm_up([Path(path).expanduser() for path in config.warm_start])
    plain = config.model_dump(mode="json", exclude={"space", "search_specific_space", "trial"})
    plain["trial"] = config.trial.model_dump(mode="json", exclude_unset=True)
    fact = msgspec.convert(plain, SearchFact)
    fact.space = {name: describe(choices) for name, choices in space.items()}
    log.record_facts(HpoFacts(warm_start=WarmStart(files=list(config.warm_start), **asdict(counts)), search=fact))
    search = Search(config, space, pool, optimizer, log, folder.resolve())
    with _set_on_signal(search.stop):
        search.run()


@contextmanager
def _set_on_signal(stop: threading.Event) -> Iterator[None]:
    """Set the event on SIGTERM and SIGINT."""
    before = {kind: signal.signal(kind, lambda *_: stop.set()) for kind in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)


@dataclass
class Search:
    """The state of a search.

    Attributes:
        config: Parameters of the case.
        space: The search space.
        pool: The nodes.
        optimizer: The optimizer.
        log: The log of the case.
        folder: The folder of the case.
        stop: The event that is set when the search must end.
        results: The trials that have ended and their results, by number.
    """

    config: HpoParameters
    space: Space
    pool: NodePool
    optimizer: Optimizer
    log: CaseLog
    folder: Path
    stop: threading.Event = field(default_factory=threading.Event)
    results: dict[int, tuple[Trial, Result]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.started = time.monotonic()
        self.calls = AskTellLog(self.folder / ORDER)
        halving = self.config.halving
        self.halving = Halving(halving.eta, halving.min_epochs) if halving else None
        self.waiting: list[Trial] = []
        self.node_failures: Counter[int] = Counter()
        self.next_number = 0

    def run(self) -> None:
        """Run trials until enough have ended, time is up, or the search must end."""
        self._restore()
        running: dict[Future[Result], Trial] = {}
        with ThreadPoolExecutor(max(1, self.pool.capacity)) as threads:
            while True:
                while len(running) < self.pool.capacity and (trial := self._next_trial(len(running))) is not None:
                    running[threads.submit(self._run_trial, trial)] = trial
                if not running:
                    break
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    self._finish_trial(running.pop(future), future)
        if self.stop.is_set():
            raise InputError("interrupted; submit the same job again to continue")
        states = [result.state for _, result in self.results.values()]
        if len(states) < self.config.max_trials and not self._has_time():
            self.log.record_facts(
                HpoFacts(early_stop_reason=f"{self.config.time_limit_minutes:g} minutes have passed, the time limit")
            )
        elif len(states) < self.config.max_trials:
            raise InputError(
                f"{self.pool.capacity} trials fit on the remaining healthy nodes;"
                f" {len(states)} of {self.config.max_trials} have ended"
            )
        if not any(state in ("done", "pruned") for state in states):
            reasons = {result.reason for _, result in self.results.values()}
            raise InputError(f"none of {len(states)} trials reached an objective: {'; '.join(map(str, reasons))[:300]}")
        overhead = Overhead(optimizer_s=self.optimizer.seconds, search_s=time.monotonic() - self.started)
        self.log.record_facts(HpoFacts(overhead=overhead))

    def _restore(self) -> None:
        """Repeat the calls of the optimizer by earlier attempts of this search, in their order."""
        trials: dict[int, tuple[Trial, Result | None]] = {}
        for path in sorted((self.folder / TRIALS).glob("*/configuration.json"), key=lambda p: int(p.parent.name)):
            number = int(path.parent.name)
            configuration, result = load_trial(path.parent)
            trials[number] = (self._make_trial(number, configuration), result)
            self._restore_rungs(number, path.parent)
        for call, number in self.calls.read():
            if call == ASKED:
                point = self.optimizer.ask()
                if number not in trials:
                    trial = self._make_trial(number, point)
                    self._write_trial(trial)
                    trials[number] = (trial, None)
            elif number in trials and (result := trials[number][1]) is not None:
                self._record(trials[number][0], result)
        for number, (trial, result) in sorted(trials.items()):
            if result is None:
                self.waiting.append(trial)
            elif number not in self.results:
                self.calls.append(TOLD, number)
                self._record(trial, result)
        self.next_number = max(trials, default=-1) + 1

    def _restore_rungs(self, number: int, folder: Path) -> None:
        """Pass the accuracies of a trial at its rungs to the successive halving."""
        if self.halving is not None:
            for epochs, accuracy in read_accuracies(folder / EVENTS_FILE):
                self.halving.should_continue(number, epochs, accuracy)

    def _make_trial(self, number: int, configuration: dict[str, Any]) -> Trial:
        folder = self.folder / TRIALS / f"{number:04d}"
        return Trial(number, configuration, folder, 60.0 * self.config.trial_timeout_minutes)

    def _has_time(self) -> bool:
        """Return whether a trial that starts now would end within the time of the search."""
        if self.config.time_limit_minutes is None:
            return True
        minutes = (time.monotonic() - self.started) / 60.0
        return minutes + self.config.trial_timeout_minutes <= self.config.time_limit_minutes

    def _next_trial(self, running: int) -> Trial | None:
        """Return the next trial, or None if no trial may start now."""
        if self.stop.is_set() or not self._has_time():
            return None
        if self.waiting:
            return self.waiting.pop(0)
        if len(self.results) + running >= self.config.max_trials:
            return None
        trial = self._make_trial(self.next_number, self.optimizer.ask())
        self.next_number += 1
        self.calls.append(ASKED, trial.number)
        self._write_trial(trial)
        return trial

    def _write_trial(self, trial: Trial) -> None:
        """Write the folder of a new trial."""
        fixed = self.config.trial.model_dump(mode="json", exclude_unset=True)
        backbone = trial.configuration.get(BACKBONE, self.config.backbone)
        fixed["model"] = select_active_parameters({**fixed.get("model", {}), BACKBONE: backbone}, backbone)
        active = select_active_parameters(trial.configuration, self.config.backbone)
        write_trial(trial, fixed, active, search=self.folder.name)

    def _run_trial(self, trial: Trial) -> Result:
        """Run a trial on its nodes; if the trial fails and a node is no longer healthy, the state is "lost"."""
        nodes = self.pool.acquire()
        try:
            attempt = trial.number * MAX_ATTEMPTS + self.node_failures[trial.number]
            port = FIRST_PORT + (os.getpid() * 64 + attempt) % PORTS
            result = run_trial(trial, nodes, port, self.halving, self.stop)
            unhealthy = self.pool.drop_unhealthy(nodes) if result.state == "failed" else []
        finally:
            self.pool.release(nodes)
        return replace(result, state="lost", reason=f"lost with {', '.join(unhealthy)}") if unhealthy else result

    def _finish_trial(self, trial: Trial, future: Future[Result]) -> None:
        """Save and record the result of a trial, or schedule the trial again if its node failed."""
        try:
            result = future.result()
        except Interrupted:
            return
        self.node_failures[trial.number] += result.state == "lost"
        if result.state == "lost" and self.node_failures[trial.number] < MAX_ATTEMPTS:
            self.waiting.append(trial)
            return
        save_result(trial, result)
        if result.measured is not None:  # a trial with metrics is never resumed, so its large state can be deleted
            for state in trial.folder.glob("training*.safetensors"):
                state.unlink()
        self.calls.append(TOLD, trial.number)
        self._record(trial, result)

    def _record(self, trial: Trial, result: Result) -> None:
        """Count a trial as ended: tell the optimizer, log the event, and write results.csv."""
        self.results[trial.number] = (trial, result)
        self.optimizer.tell(trial.configuration, compute_objectives(result))
        metrics = asdict(result.measured) if result.measured else {}
        nodes = self.config.nodes_per_trial if result.nodes else 1.0 / self.config.max_concurrent_trials
        self.log.write(
            TrialEvent(
                trial=trial.number,
                configuration=select_active_parameters(trial.configuration, self.config.backbone),
                backbone=trial.configuration.get(BACKBONE, self.config.backbone),
                state=result.state,
                reason=result.reason,
                objective=result.measured.accuracy if result.measured else None,
                **metrics,
                start_time_s=result.start_time_s,
                end_time_s=result.end_time_s,
                nodes=result.nodes,
                node_hours=nodes * (result.end_time_s - result.start_time_s) / 3600.0,
                folder=str(trial.folder.relative_to(self.folder)),
            )
        )
        self.log.write(Progress(done=len(self.results), total=self.config.max_trials, activity="trials"))
        self._write_table()

    def _write_table(self) -> None:
        """Write results.csv, which any search by DeepHyper can use for a warm start."""
        names = list(self.space)
        columns = [f"p:{n}" for n in names] + list_objective_columns(len(self.config.objectives))
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow([*columns, "job_id", "job_status", "m:timestamp_submit", "m:timestamp_gather", "m:reason"])
        first_s = min(result.start_time_s for _, result in self.results.values())
        for trial, result in self.results.values():
            values = compute_objectives(result)
            failure = f"F_{result.state.replace(' ', '_')}"
            objectives = [values[objective] if values else failure for objective in self.config.objectives]
            times = (result.start_time_s - first_s, result.end_time_s - first_s)
            status = "DONE" if values else "FAILED"
            writer.writerow(
                [*(trial.configuration[n] for n in names), *objectives, trial.number, status, *times, result.reason]
            )
        part = self.folder / f"{RESULTS}.part"
        part.write_text(text.getvalue(), encoding="utf-8")
        os.replace(part, self.folder / RESULTS)


OBJECTIVES: Mapping[Objective, Callable[[TrialMetrics], float]] = {
    "accuracy": lambda metrics: metrics.accuracy,
    "throughput": lambda metrics: metrics.structures_per_s,
}


def compute_objectives(result: Result) -> dict[str, float] | None:
    """Return the value of each objective, or None for a trial without metrics."""
    if result.measured is None:
        return None
    return {name: evaluate(result.measured) for name, evaluate in OBJECTIVES.items()}
