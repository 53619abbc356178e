"""When and on which nodes a case ran, and its trials, epochs, stages and precisions: from its records alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from harness.results.runs import Record
from harness.telemetry.metrics import short

What = Literal["case", "epoch", "trial", "stage", "precision"]
NODES = "nodes"
Nodes = tuple[frozenset[str], ...]


@dataclass(frozen=True)
class Window:
    """What a piece of a case is, when it ran (Unix seconds, in as many pieces as it had), and on which nodes.

    nodes: of each node the short names that it goes by; None where the records do not say, and then all of a file are
    taken.
    """

    folder: str
    what: What
    name: str
    pieces: tuple[tuple[float, float], ...]
    nodes: Nodes | None = None

    @property
    def seconds(self) -> float:
        """All pieces together."""
        return sum(end - start for start, end in self.pieces)


def windows_of(record: Record) -> Iterator[Window]:
    """The case's own window first; none for a case that has not begun."""
    if record.began_s is None or record.ended_s is None or record.ended_s <= record.began_s:
        return
    folder, nodes = str(record.folder), nodes_of(record.folder)
    yield Window(folder, "case", "", ((record.began_s, record.ended_s),), nodes)
    for event in record.others.get("trial", []):
        if event.get("began_s") and event.get("ended_s"):
            own = _named([[name] for name in event["nodes"]], nodes) if event.get("nodes") else nodes
            yield Window(folder, "trial", str(event["trial"]), ((event["began_s"], event["ended_s"]),), own)
    yield from (Window(folder, "epoch", name, (piece,), nodes) for name, piece in _epochs(record))
    yield from (Window(folder, what, name, pieces, nodes) for what, name, pieces in _sampled(record))


def nodes_of(folder: Path) -> Nodes | None:
    """The case's nodes as its job wrote them: a line each, its name and perhaps its host's."""
    try:
        lines = (folder / NODES).read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return tuple(frozenset(map(short, line.split())) for line in lines if line.split()) or None


def _named(names: Sequence[Sequence[str]], known: Nodes | None) -> Nodes:
    """Nodes by name, with the other names that the case's list has for them."""
    own = [frozenset(map(short, words)) for words in names]
    return tuple(next((node for node in known or () if node & words), words) for words in own)


def _epochs(record: Record) -> Iterator[tuple[str, tuple[float, float]]]:
    """Each from its own seconds where it tells them, else from the end of the one before."""
    before = record.began_s
    for event in record.others.get("epoch", []):
        end, took = event.get("time_s"), event.get("train_s")
        if end is None:
            continue
        start = end - took if took is not None else before
        if start is not None and end > start:
            yield str(event["epoch"]), (start, end)
        before = end


def _sampled(record: Record) -> Iterator[tuple[What, str, tuple[tuple[float, float], ...]]]:
    """Stages of the ladder and precisions of a study take turns: many pieces each."""
    pieces: dict[tuple[What, str], list[tuple[float, float]]] = {}
    for sample in record.samples:
        if "stage" in sample and sample.get("ended_s"):
            piece = (sample["ended_s"] - sample["device_s"], sample["ended_s"])
            pieces.setdefault(("stage", sample["stage"]), []).append(piece)
        elif "precision" in sample and not sample.get("discarded") and sample.get("seconds") and "time_s" in sample:
            piece = (sample["time_s"] - sample["seconds"], sample["time_s"])
            name = f"{sample.get('task', 'all')} {sample['precision']}"
            pieces.setdefault(("precision", name), []).append(piece)
    yield from ((what, name, tuple(found)) for (what, name), found in pieces.items())
