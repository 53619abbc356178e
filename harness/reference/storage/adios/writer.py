"""Write BP files that HydraGNN can read, in constant memory; an incomplete file never gets its final name.

If ADIOS2 is built with MPI, several ranks can write one file, each rank a range of consecutive samples.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from harness.reference.errors import InputError
from harness.reference.storage import collectives
from harness.reference.storage.adios.handle import ATTRIBUTE_PREFIX, Engine
from harness.reference.storage.adios.integrity import (
    PART,
    BlockSums,
    Table,
    get_inner_seal_paths,
    sync_files,
    write_seal,
)
from harness.reference.storage.adios.reader import BPFile
from harness.reference.storage.adios.split import Split
from harness.reference.storage.schema import FORMAT_VERSION

RESERVE_BYTES = 1 << 20  # bytes to free when the disk is full, so that the file can be closed
HYDRAGNN_ATTRIBUTES = ("pna_deg", "energy_linear_regression_coeff")


class BPWriter:
    """A writer of a BP file: it writes next to the final path, checks the file at the end, and renames it.

        with BPWriter(path, {"dataset": "qm9", "cutoff": 5.0}) as writer:
            for table in tables:
                writer.split("trainset").put(encode_table(table))
            writer.set_attribute("left_out", 12)

    Args:
        path: The final path.
        attributes: Facts of the file, which BPFile.attributes returns. `dataset` is required; None values are omitted,
            mappings are stored as JSON.
        comm: The communicator (mpi4py) of the ranks that write together; None for one rank. It needs an ADIOS2 that is
            built with MPI, and every rank must announce its samples and rows (`split`).

    Raises:
        InputError: A block cannot be stored, or the path exists. No files remain.
        OSError: The disk is full. No files remain.
    """

    def __init__(self, path: Path | str, attributes: Mapping[str, Any], *, comm: Any = None) -> None:
        self.path = Path(path)
        self.comm = comm if comm is not None and comm.Get_size() > 1 else None
        if not attributes.get("dataset"):
            raise InputError(f"{self.path}: the attribute 'dataset' is missing")
        if self.path.exists():
            raise InputError(f"{self.path}: exists already")
        self._part = self.path.with_name(self.path.name + PART)
        self._reserve = self.path.with_name(self.path.name + ".reserve")
        self._engine = Engine(self.path, self._part, self.comm)
        if self._first_rank:
            shutil.rmtree(self._part, ignore_errors=True)
        self._splits: dict[str, Split] = {}
        self._attributes = dict(attributes)
        try:
            self._begin()
        except BaseException:
            self._discard()
            raise

    def _begin(self) -> None:
        if self._first_rank:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._reserve.write_bytes(b" " * RESERVE_BYTES)
        self._engine.begin()

    def __enter__(self) -> BPWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._discard()
            return
        try:
            self._finish()
        except BaseException:
            self._discard()
            raise

    @property
    def _first_rank(self) -> bool:
        return self.comm is None or self.comm.Get_rank() == 0

    def split(self, name: str, *, samples: int | None = None, totals: Mapping[str, int] | None = None) -> Split:
        """Return the split of this name; blocks of several splits may be written in any order.

        Args:
            name: The name of the split.
            samples: Number of samples that this rank will write. It is checked at the end, and required if several
                ranks write together.
            totals: Number of rows of each key along its axis that this rank will write; checked and required likewise.
        """
        if name not in self._splits:
            if not name or "/" in name:
                raise InputError(f"{self.path}: {name!r} is not the name of a split")
            self._splits[name] = Split(self._engine, name, samples, totals)
        return self._splits[name]

    def set_attribute(self, name: str, value: Any) -> None:
        """Set an attribute of the file; those in HYDRAGNN_ATTRIBUTES get the name under which HydraGNN reads them."""
        self._attributes[name] = value

    def _finish(self) -> None:
        splits = [split for split in self._splits.values() if split.finish()]
        if not splits:
            raise InputError(f"{self.path}: nothing was written")
        self._engine.define_attribute("dataset_name", str(self._attributes["dataset"]).lower())
        self._engine.define_attribute("total_ndata", np.array(sum(split.all_samples for split in splits)))
        for name, value in {**self._attributes, "format": FORMAT_VERSION, "complete": 1}.items():
            self._define_attribute(name, value)
        self._engine.end()
        collectives.run_collectively(self.comm, lambda: self._publish(splits) if self._first_rank else None)

    def _publish(self, splits: Sequence[Split]) -> None:
        """Seal the file, check it, and rename it to its final path."""
        self._reserve.unlink()
        if self.comm is None:
            tables = {name: table for split in splits for name, table in split.tables().items()}
        else:  # one block of the file may contain rows of two ranks
            with BPFile(self._part, unfinished=True) as file:
                tables = compute_checksums(file)
        sync_files(self._part)
        write_seal(self._part, get_inner_seal_paths(self._part), tables)
        _verify_written(self._part, splits)
        os.rename(self._part, self.path)

    def _define_attribute(self, name: str, value: Any) -> None:
        if value is None:
            return
        if isinstance(value, Mapping):
            value = json.dumps(value)
        elif isinstance(value, tuple | list) and not all(isinstance(v, str) for v in value):
            value = np.array(value)
        self._engine.define_attribute(name if name in HYDRAGNN_ATTRIBUTES else ATTRIBUTE_PREFIX + name, value)

    def _discard(self) -> None:
        """Remove everything that was written."""
        self._engine.abandon(self._make_room)
        if self._first_rank:
            shutil.rmtree(self._part, ignore_errors=True)
            with suppress(OSError):
                self._reserve.unlink()

    def _make_room(self) -> None:
        for path in (self._reserve, *self._part.glob("*")) if self._first_rank else ():
            with suppress(FileNotFoundError):
                os.truncate(path, 0)


def compute_checksums(file: BPFile) -> dict[str, Table]:
    """Read a whole file, and return the checksum of each block, by the name of the array."""
    tables = {}
    for array in file.arrays():
        sums = BlockSums(array.row_bytes)
        for rows in file.pieces(array):
            sums.add(rows)
        tables[array.name] = sums.table()
    return tables


def _verify_written(part: Path, splits: Sequence[Split]) -> None:
    """Raise OSError unless the file has the shapes and the first and last sample of each split as they were put."""
    with BPFile(part, unfinished=True) as file:
        for split in splits:
            if file.count_samples(split.name) != split.all_samples or not split.matches(file):
                raise OSError(errno.EIO, f"{split.name} does not read back as it was written", str(part))
