"""Parse the lines of standard output and run.log, and divide them into runs."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from harness.importers.hydragnn.files import Line

Kind = Literal["epoch", "tasks", "timer", "rate", "command", "launch", "damaged"]
NUMBER = r"([-+]?(?:\d{1,30}(?:[.,]\d{0,40})?(?:[eE][-+]?\d{1,4})?|nan|inf))"
# `0: ` is the rank that the logger writes; `srun -l` adds the number of the task before it.
RANK_PREFIX = r"(?:^|[^\w:])((?:\d{1,8}:\s*)*)"
EPOCH = re.compile(
    rf"{RANK_PREFIX}Epoch:\s*(\d{{1,9}}),\s*Train Loss:\s*{NUMBER},\s*Val Loss:\s*{NUMBER},\s*Test Loss:\s*{NUMBER}",
    re.A,
)
TASKS = re.compile(rf"{RANK_PREFIX}Tasks (Train|Val|Test) Loss:\s*\[([^\]]{{0,4000}})\]", re.A)
TIMER = re.compile(rf"Process (\d{{1,8}}) - Local timer:\s*(\S{{1,200}})\s*:\s*{NUMBER}", re.A)
RATE = re.compile(rf"Throughput:\s*{NUMBER}\s*structures/s", re.A)
COMPONENTS = re.compile(rf"{RANK_PREFIX}LossComponents\s(.*)", re.A)
COMMAND = re.compile(r"Command(?: line)?:\s+(\S+\.py)(?:\s+(.*))?$")
LAUNCH = re.compile(r"(?:^|\s)(srun|mpiexec|mpirun|aprun)\s(.*)")
JOB_SIZE = re.compile(r"NUM_OF_NODES=\s*(\d{1,8})\s+TOTAL_NUM_RANKS=\s*(\d{1,8})", re.A)
# A line with a result marker counts as damaged if no pattern matches it; "Tasks" is too common a word for that.
RESULT_MARKERS, TASKS_MARKER = ("Train Loss:", "Local timer:", "structures/s", "LossComponents "), "Tasks "
LAUNCH_MARKERS = ("Command", "srun ", "mpiexec ", "mpirun ", "aprun ", "TOTAL_NUM_RANKS")
SPLITS = {"train": "train", "training": "train", "val": "validation", "valid": "validation", "validation": "validation",
          "test": "test"}  # fmt: skip
LOSSES = {"train": "loss", "validation": "validation_loss", "test": "test_loss"}
SIZE_OPTIONS = {
    "nodes": re.compile(r"(?:^|\s)(?:-N\s*|--nodes[= ])(\d{1,8})(?=\s|$)", re.A),
    "ranks": re.compile(r"(?:^|\s)(?:-np?\s*|--ntasks[= ])(\d{1,8})(?=\s|$)", re.A),
    "ranks_per_node": re.compile(r"(?:^|\s)(?:--ppn[= ]|-ppn\s+|--ntasks-per-node[= ])(\d{1,8})(?=\s|$)", re.A),
}
# The logger prints a loss with this many decimals; if the last line of a file has fewer, it is truncated.
DECIMALS = 8


@dataclass(frozen=True)
class Statement:
    """The content of a line.

    Attributes:
        losses: Losses by name; None if a loss is not finite.
        errors: Errors of the tasks (in HydraGNN, the outputs of a model, such as energy and forces), in their order.
        options: Options of a command line of the program.
        sizes: nodes, ranks and ranks_per_node in a command line of a launcher.
    """

    kind: Kind
    rank: int = 0
    epoch: int = -1
    losses: Mapping[str, float | None] = field(default_factory=dict)
    split: str = ""
    errors: tuple[float | None, ...] = ()
    name: str = ""
    value: float | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)


def parse_line(line: Line) -> Statement | None:
    """Return the content of a line: None for an irrelevant line, kind `damaged` for an unreadable one."""
    text = line.text
    if TASKS_MARKER in text or any(marker in text for marker in RESULT_MARKERS):
        is_damaged = any(marker in text for marker in RESULT_MARKERS)
        return _parse_result(line) or (Statement("damaged") if is_damaged else None)
    return _parse_launch(text) if any(marker in text for marker in LAUNCH_MARKERS) else None


def _parse_result(line: Line) -> Statement | None:
    result = _parse_losses(line)
    if result is not None:
        return result
    if match := RATE.search(line.text):
        return Statement("rate", value=parse_finite(match[1]))
    if line.is_whole and (match := TIMER.search(line.text)):
        return Statement("timer", rank=int(match[1]), name=match[2], value=parse_finite(match[3]))
    return None


def _parse_losses(line: Line) -> Statement | None:
    if match := EPOCH.search(line.text):
        numbers = match.groups()[2:]
        last = numbers[-1]
        if not line.is_whole and line.text.endswith(last) and len(re.split("[.,]", last)[-1]) < DECIMALS:
            return None
        losses = dict(zip(LOSSES.values(), map(parse_finite, numbers), strict=True))
        return Statement("epoch", rank=_parse_rank(match[1]), epoch=int(match[2]), losses=losses)
    if match := TASKS.search(line.text):
        errors = tuple(parse_finite(v) for v in match[3].split(","))
        return Statement("tasks", rank=_parse_rank(match[1]), split=SPLITS[match[2].lower()], errors=errors)
    if line.is_whole and (match := COMPONENTS.search(line.text)):
        return _parse_components(_parse_rank(match[1]), match[2])
    return None


def _parse_components(rank: int, text: str) -> Statement | None:
    """Parse `epoch=04 split=validation total=0.1 supervised.energy.raw=0.1 weight=1 weighted=0.1`."""
    pairs = dict(word.split("=", 1) for word in text.split() if "=" in word)
    split, epoch = SPLITS.get(pairs.get("split", "")), pairs.get("epoch", "")
    if split is None or not re.fullmatch(r"\d{1,9}", epoch, re.A) or "total" not in pairs:
        return None
    by_task: dict[str, float | None] = {}
    for key, value in pairs.items():
        if key.endswith(".raw"):
            by_task.setdefault(_get_task_name(key), parse_finite(value))
    tasks = ("energy", "energy_per_atom", "force")
    errors = tuple(by_task[task] for task in tasks) if all(task in by_task for task in tasks) else ()
    losses = {LOSSES[split]: parse_finite(pairs["total"])}
    return Statement("epoch", rank=rank, epoch=int(epoch), losses=losses, split=split, errors=errors)


def _get_task_name(key: str) -> str:
    plain = key.lower().replace("_", "")
    if "force" in plain:
        return "force"
    return "energy_per_atom" if "peratom" in plain else "energy" if "energy" in plain else key


def _parse_launch(text: str) -> Statement | None:
    """Parse a command line that the program or the job script printed."""
    if match := COMMAND.search(text):
        return Statement("command", options=parse_options(match[2] or ""))
    if match := JOB_SIZE.search(text):
        return Statement("launch", sizes={"nodes": int(match[1]), "ranks": int(match[2])})
    if match := LAUNCH.search(text):
        before, script, after = match[2].partition(".py ")
        sizes = {name: int(result[1]) for name, pattern in SIZE_OPTIONS.items() if (result := pattern.search(before))}
        if script and sizes:
            return Statement("launch", options=parse_options(after), sizes=sizes)
    return None


def parse_options(text: str) -> dict[str, str]:
    """Return the options of a command line: `--name=value`, `--name value`, or `--name` alone as `true`."""
    result: dict[str, str] = {}
    parts = text.split()
    for k, word in enumerate(parts):
        if word.startswith("--") and len(word) > 2:
            name, equals, value = word[2:].partition("=")
            next_value = parts[k + 1] if k + 1 < len(parts) and not parts[k + 1].startswith("--") else "true"
            result[name] = value if equals else next_value
    return result


def parse_finite(text: str) -> float | None:
    """Return the number, or None if the text is not a finite number."""
    try:
        value = float(text.strip().replace(",", "."))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _parse_rank(prefix: str) -> int:
    numbers = re.findall(r"\d+", prefix)
    return int(numbers[-1]) if numbers else 0


# LossComponents and Epoch lines print the same loss with different numbers of digits.
RELATIVE_TOLERANCE, ABSOLUTE_TOLERANCE = 1e-6, 1e-8


@dataclass
class Row:
    """One epoch in a file: losses by name, errors of the tasks by split, and the location in the file."""

    source: Path
    line: int
    losses: dict[str, float | None] = field(default_factory=dict)
    errors: dict[str, tuple[float | None, ...]] = field(default_factory=dict)

    def agrees(self, other: Row) -> bool:
        """Return whether all losses that both rows contain are equal."""
        return all(_is_same_loss(self.losses[k], other.losses[k]) for k in self.losses.keys() & other.losses.keys())

    def add(self, other: Row) -> None:
        """Add the losses and errors that this row lacks."""
        self.losses = {**other.losses, **self.losses}
        self.errors = {**other.errors, **self.errors}


# The rows of each epoch; a restart of the run leaves several rows for one epoch.
Versions = dict[int, list[Row]]


@dataclass
class Segment:
    """The part of a file that belongs to one run.

    Attributes:
        rows: The rows of each epoch, by rank.
        timers: Seconds by rank and name of the timer.
        rates: Throughput of inference in structures/s.
        faults: Counts of unreadable lines, by kind.
    """

    source: Path
    options: dict[str, str] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    rows: dict[int, Versions] = field(default_factory=dict)
    timers: dict[tuple[int, str], float] = field(default_factory=dict)
    rates: list[float] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)

    @property
    def name(self) -> str:
        """The name of the run and of its log folder; empty if no command line gives the name."""
        return self.options.get("log", "")

    @property
    def has_results(self) -> bool:
        """Whether the segment contains more than a command line."""
        return bool(self.rows or self.timers or self.rates)

    @property
    def epochs(self) -> Versions:
        """The rows of the lowest rank that prints epochs."""
        return self.rows[min(self.rows)] if self.rows else {}

    def is_new_run(self, epoch: Statement) -> bool:
        """Return whether an epoch starts another run: it has the number of the first one, but different losses."""
        rows = self.rows.get(epoch.rank, {})
        if not rows or epoch.epoch != min(rows):
            return False
        return not rows[epoch.epoch][-1].agrees(Row(self.source, 0, dict(epoch.losses)))


def split_runs(lines: Iterable[Line], source: Path) -> Iterator[Segment]:
    """Yield a segment for each run in a file, in the order of the lines."""
    current = Segment(source)
    for line in lines:
        statement = parse_line(line)
        if statement is None:
            continue
        is_next = current.has_results and statement.kind in ("command", "launch")
        is_other = statement.kind == "command" and current.name not in ("", statement.options.get("log", ""))
        if is_next or is_other or (statement.kind == "epoch" and current.is_new_run(statement)):
            yield current
            current = Segment(source)
        _add_statement(current, statement, line)
    yield current


def _add_statement(segment: Segment, statement: Statement, line: Line) -> None:
    match statement.kind:
        case "command" | "launch":
            segment.options.update(statement.options)
            segment.sizes.update(statement.sizes)
        case "damaged":
            segment.faults["lines that could not be read" if line.is_whole else "last line cut off"] += 1
        case "epoch":
            row = Row(segment.source, line.number, dict(statement.losses))
            if statement.errors:
                row.errors[SPLITS[statement.split]] = statement.errors
            add_version(segment.rows.setdefault(statement.rank, {}), statement.epoch, row)
        case "tasks":
            rows = segment.rows.get(statement.rank)
            if rows:
                rows[next(reversed(rows))][-1].errors.setdefault(statement.split, statement.errors)
            else:
                segment.faults["lines of tasks before any epoch"] += 1
        case _ if statement.value is None or statement.value < 0:
            segment.faults["timers and rates that are not a number of 0 or more"] += 1
        case "timer":
            segment.timers[statement.rank, statement.name] = statement.value
        case "rate":
            segment.rates.append(statement.value)


def add_version(versions: Versions, epoch: int, row: Row) -> None:
    """Add an epoch as its latest version; a row that agrees with an earlier version completes it instead."""
    rows = versions.pop(epoch, [])
    index = next((k for k, other in enumerate(rows) if other.agrees(row)), None)
    if index is not None:
        duplicate, row = row, rows.pop(index)
        row.add(duplicate)
    versions[epoch] = [*rows, row]


def _is_same_loss(a: float | None, b: float | None) -> bool:
    if a is None or b is None:
        return a is b
    return math.isclose(a, b, rel_tol=RELATIVE_TOLERANCE, abs_tol=ABSOLUTE_TOLERANCE)
