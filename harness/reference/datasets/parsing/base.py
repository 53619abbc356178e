"""What a reader of an official format is: files -> parts -> frames, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.reference.data.structure_table import Fault, Frames

BLOCK = 1024  # frames that a reader hands on at once, about
BLOCK_ATOMS = 1 << 18  # and atoms: a block of the largest structures must not fill the memory
MOST_ATOMS = 100_000  # of a structure; official ones have a few hundred
MOST_BYTES = 16 << 20  # of a structure as text or as a record, unpacked: ten times what MOST_ATOMS need


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
    be read is a Fault, what users should know of one that can is a Remark; where the rest of a part is lost, InputError
    is raised with file and place.
    """

    name: str
    files: str
    parts: Callable[[Sequence[Path]], list[Part]]
    read: Callable[[Part], Iterator[Frames | Fault]]
