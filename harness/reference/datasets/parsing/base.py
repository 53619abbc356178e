"""The interface of readers of official formats: files -> chunks -> tables, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from harness.reference.data.structure_table import RejectedStructure, StructureTable

TABLE_STRUCTURES = 1024  # approximate number of structures in a table of a reader
TABLE_ATOMS = 1 << 18  # approximate number of atoms in a table, which limits the memory of large structures
MAX_ATOMS = 100_000  # atoms in a structure; official ones have a few hundred
MAX_STRUCTURE_BYTES = 16 << 20  # size of a decompressed structure; MAX_ATOMS atoms need a tenth of it
ProgressCallback = Callable[[int, int, str], None]  # takes a count, the total, and the name of what is counted
VOIGT = np.array([[0, 5, 4], [5, 1, 3], [4, 3, 2]])  # positions of ASE's stress components xx yy zz yz xz xy


@dataclass(frozen=True)
class FileChunk:
    """A piece of a dataset's files that one process reads as one part of a conversion: a file, or a range of a file.

    The same files always give the same chunks in the same order.

    Attributes:
        path: The file.
        key: The range of the file, in a notation of the reader.
    """

    path: Path
    key: str = ""


@dataclass(frozen=True)
class DatasetFormat:
    """An official format.

    Attributes:
        name: The name of the format.
        files: The names of its files.
        list_chunks: Returns the chunks of files or folders; raises InputError if they have another format.
        read_chunk: Yields the content of a chunk in a fixed order: tables of about TABLE_STRUCTURES structures,
            a RejectedStructure for one that cannot be read, and a Remark for a note on readable ones. It raises
            InputError, with file and position, if the rest of the chunk cannot be read.
    """

    name: str
    files: str
    list_chunks: Callable[[Sequence[Path]], list[FileChunk]]
    read_chunk: Callable[[FileChunk], Iterator[StructureTable | RejectedStructure]]
