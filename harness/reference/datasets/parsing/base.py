"""The interface of readers of official formats: files -> chunks -> tables, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from harness.reference.data.structure_table import RejectedStructure, StructureTable

TABLE_STRUCTURES = 1024  # approximate number of structures in a table of a reader
TABLE_ATOMS = 1 << 18  # and of atoms, so that tables of the largest structures do not fill the memory
MAX_ATOMS = 100_000  # atoms in a structure; official ones have a few hundred
MAX_STRUCTURE_BYTES = 16 << 20  # a decompressed structure as text or record: ten times what MAX_ATOMS need
ProgressCallback = Callable[[int, int, str], None]  # takes a count, the total, and the name of what is counted
VOIGT = np.array([[0, 5, 4], [5, 1, 3], [4, 3, 2]])  # positions of ASE's stress components xx yy zz yz xz xy


@dataclass(frozen=True)
class FileChunk:
    """A piece of a dataset that one process reads from its beginning: a file, or a range of a file.

    key: which piece of the file, in the reader's own notation; the same files always give the same chunks in the same
    order.
    """

    path: Path
    key: str = ""


@dataclass(frozen=True)
class DatasetFormat:
    """An official format: how its files are split into chunks, and how a chunk is read.

    list_chunks: files or folders as the user names them -> chunks; raises InputError for files of another format.
    read_chunk: a chunk -> tables of about TABLE_STRUCTURES structures and rejections, in an order that never changes. A
    structure that cannot be read is a rejection, a note on a readable one is a Remark; if the rest of a chunk cannot be
    read, InputError is raised with file and position.
    """

    name: str
    files: str
    list_chunks: Callable[[Sequence[Path]], list[FileChunk]]
    read_chunk: Callable[[FileChunk], Iterator[StructureTable | RejectedStructure]]
