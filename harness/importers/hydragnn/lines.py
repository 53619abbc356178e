"""Lines of standard output and run.log -> what they say."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from harness.importers.hydragnn.files import Line

Kind = Literal["epoch", "tasks", "timer", "rate", "command", "launch", "cut"]
NUMBER = r"([-+]?(?:\d{1,30}(?:[.,]\d{0,40})?(?:[eE][-+]?\d{1,4})?|nan|inf))"
# `0: ` is the rank that the logger writes, and before it the task that `srun -l` writes.
RANKS = r"(?:^|[^\w:])((?:\d{1,8}:\s*)*)"
EPOCH = re.compile(
    rf"{RANKS}Epoch:\s*(\d{{1,9}}),\s*Train Loss:\s*{NUMBER},\s*Val Loss:\s*{NUMBER},\s*Test Loss:\s*{NUMBER}", re.A
)
TASKS = re.compile(rf"{RANKS}Tasks (Train|Val|Test) Loss:\s*\[([^\]]{{0,4000}})\]", re.A)
TIMER = re.compile(rf"Process (\d{{1,8}}) - Local timer:\s*(\S{{1,200}})\s*:\s*{NUMBER}", re.A)
RATE = re.compile(rf"Throughput:\s*{NUMBER}\s*structures/s", re.A)
COMPONENTS = re.compile(rf"{RANKS}LossComponents\s(.*)", re.A)
COMMAND = re.compile(r"Command(?: line)?:\s+(\S+\.py)(?:\s+(.*))?$")
LAUNCH = re.compile(r"(?:^|\s)(srun|mpiexec|mpirun|aprun)\s(.*)")
ANNOUNCED = re.compile(r"NUM_OF_NODES=\s*(\d{1,8})\s+TOTAL_NUM_RANKS=\s*(\d{1,8})", re.A)
# A line with one of these that none of the patterns reads is counted.
WORDS = ("Train Loss:", "Tasks ", "Local timer:", "structures/s", "LossComponents ")
OTHERS = ("Command", "srun ", "mpiexec ", "mpirun ", "aprun ", "TOTAL_NUM_RANKS")
SPLITS = {"train": "train", "training": "train", "val": "validation", "valid": "validation", "validation": "validation",
          "test": "test"}  # fmt: skip
LOSSES = {"train": "loss", "validation": "validation_loss", "test": "test_loss"}
COUNTS = {
    "nodes": re.compile(r"(?:^|\s)(?:-N\s*|--nodes[= ])(\d{1,8})(?=\s|$)", re.A),
    "ranks": re.compile(r"(?:^|\s)(?:-np?\s*|--ntasks[= ])(\d{1,8})(?=\s|$)", re.A),
    "ranks_per_node": re.compile(r"(?:^|\s)(?:--ppn[= ]|-ppn\s+|--ntasks-per-node[= ])(\d{1,8})(?=\s|$)", re.A),
}
# What the logger prints of a loss; fewer decimals on the last line of a file: it was cut off.
DECIMALS = 8


@dataclass(frozen=True)
class Statement:
    """What a line says.

    losses: name -> value, None where it is no number. errors: of the tasks, in order or by name. words: options of a
    command line. counts: nodes, ranks and ranks_per_node of a launcher's.
    """

    kind: Kind
    rank: int = 0
    epoch: int = -1
    losses: Mapping[str, float | None] = field(default_factory=dict)
    split: str = ""
    errors: tuple[float | None, ...] = ()
    name: str = ""
    value: float | None = None
    words: Mapping[str, str] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)


def parse_line(line: Line) -> Statement | None:
    """Return what a line says: None where it is not one of interest, kind `cut` where it cannot be read."""
    text = line.text
    if any(word in text for word in WORDS):
        result = _parse_result(line)
        if result is None and not any(word in text for word in WORDS[:1] + WORDS[2:]):
            return None
        return result or Statement("cut")
    return _parse_launch(text) if any(word in text for word in OTHERS) else None


def _parse_result(line: Line) -> Statement | None:
    result = _parse_losses(line)
    if result is not None:
        return result
    if match := RATE.search(line.text):
        return Statement("rate", value=finite(match[1]))
    if line.is_whole and (match := TIMER.search(line.text)):
        return Statement("timer", rank=int(match[1]), name=match[2], value=finite(match[3]))
    return None


def _parse_losses(line: Line) -> Statement | None:
    if match := EPOCH.search(line.text):
        numbers = match.groups()[2:]
        last = numbers[-1]
        if not line.is_whole and line.text.endswith(last) and len(re.split("[.,]", last)[-1]) < DECIMALS:
            return None
        losses = dict(zip(LOSSES.values(), map(finite, numbers), strict=True))
        return Statement("epoch", rank=_rank(match[1]), epoch=int(match[2]), losses=losses)
    if match := TASKS.search(line.text):
        errors = tuple(finite(v) for v in match[3].split(","))
        return Statement("tasks", rank=_rank(match[1]), split=SPLITS[match[2].lower()], errors=errors)
    if line.is_whole and (match := COMPONENTS.search(line.text)):
        return _parse_components(_rank(match[1]), match[2])
    return None


def _parse_components(rank: int, text: str) -> Statement | None:
    """Read `epoch=04 split=validation total=0.1 supervised.energy.raw=0.1 weight=1 weighted=0.1`."""
    pairs = dict(word.split("=", 1) for word in text.split() if "=" in word)
    split, epoch = SPLITS.get(pairs.get("split", "")), pairs.get("epoch", "")
    if split is None or not re.fullmatch(r"\d{1,9}", epoch, re.A) or "total" not in pairs:
        return None
    named: dict[str, float | None] = {}
    for key, value in pairs.items():
        if key.endswith(".raw"):
            named.setdefault(_task_of(key), finite(value))
    tasks = ("energy", "energy_per_atom", "force")
    errors = tuple(named[task] for task in tasks) if all(task in named for task in tasks) else ()
    return Statement("epoch", rank, int(epoch), {LOSSES[split]: finite(pairs["total"])}, split, errors)


def _task_of(key: str) -> str:
    plain = key.lower().replace("_", "")
    if "force" in plain:
        return "force"
    return "energy_per_atom" if "peratom" in plain else "energy" if "energy" in plain else key


def _parse_launch(text: str) -> Statement | None:
    """Read a command line as the program or the job script printed it."""
    if match := COMMAND.search(text):
        return Statement("command", words=options_of(match[2] or ""))
    if match := ANNOUNCED.search(text):
        return Statement("launch", counts={"nodes": int(match[1]), "ranks": int(match[2])})
    if match := LAUNCH.search(text):
        before, script, after = match[2].partition(".py ")
        counts = {name: int(result[1]) for name, pattern in COUNTS.items() if (result := pattern.search(before))}
        if script and counts:
            return Statement("launch", words=options_of(after), counts=counts)
    return None


def options_of(text: str) -> dict[str, str]:
    """Return the options of a command line: `--name=value`, `--name value`, or `--name` alone, which is `true`."""
    result: dict[str, str] = {}
    words = text.split()
    for k, word in enumerate(words):
        if word.startswith("--") and len(word) > 2:
            name, equals, value = word[2:].partition("=")
            follows = words[k + 1] if k + 1 < len(words) and not words[k + 1].startswith("--") else "true"
            result[name] = value if equals else follows
    return result


def finite(text: str) -> float | None:
    """Return the number, or None where it is none or not finite."""
    try:
        value = float(text.strip().replace(",", "."))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _rank(prefix: str) -> int:
    numbers = re.findall(r"\d+", prefix)
    return int(numbers[-1]) if numbers else 0
