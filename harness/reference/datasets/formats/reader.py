"""What a reader of an official format is: files -> parts -> frames, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.reference.frames import Fault, Frames

BLOCK = 1024  # frames that a reader hands on at once, about


@dataclass(frozen=True)
class Part:
    """A piece of a dataset that one process reads from its beginning: a file, or a range of a file.

    key: what piece of the file, in the reader's own words; the same files always make the same parts in the same order.
    """

    path: Path
    key: str = ""


@dataclass(frozen=True)
class Format:
    """An official format: how its files fall into parts, and how a part is read.

    parts: files or folders as the user names them -> parts; raises InputError for what is not of this format.
    read: a part -> frames of about BLOCK structures and faults, in an order that never changes. A structure that cannot
    be read is a Fault; where the rest of a part is lost, InputError is raised with file and place.
    """

    name: str
    files: str
    parts: Callable[[Sequence[Path]], list[Part]]
    read: Callable[[Part], Iterator[Frames | Fault]]
