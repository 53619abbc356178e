"""One split of a BP file that is being written."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.reference.errors import InputError
from harness.reference.storage.adios.handle import Engine
from harness.reference.storage.adios.integrity import BlockSums, Table
from harness.reference.storage.adios.reader import TABLES, BPFile
from harness.reference.storage.schema import KEYS, Block, Column, move_samples_first

# The bytes that are written at a time. Small chunks make later reads of one sample fast, but many chunks make the
# search for the right chunk slow; so chunks grow if there are more than about MAX_CHUNKS of them.
MIN_CHUNK_BYTES, MAX_CHUNK_BYTES, MAX_CHUNKS = 2 << 20, 32 << 20, 2000
Values = NDArray[Any]


@dataclass
class GrowingColumn:
    """One key that is being written.

    Attributes:
        dtype: The name of the data type.
        axis: The samples' axis (harness.reference.storage.schema).
        rest: The lengths of all other axes.
        rows: Number of rows that this rank has written.
        previous_rows: Number of rows of the ranks before this one.
        total_rows: Number of rows of all ranks together; None if one rank writes.
        variables: The variables of ADIOS2 for values, counts and offsets.
        sums: The checksums of these variables.
        end_samples: This rank's `first` and `last` sample, which are compared with the file in the end.
    """

    dtype: str
    axis: int
    rest: tuple[int, ...]
    rows: int = 0
    previous_rows: int = 0
    total_rows: int | None = None
    variables: list[Any] = field(default_factory=list)
    sums: list[BlockSums] = field(default_factory=list)
    end_samples: dict[str, Values] = field(default_factory=dict)

    @property
    def row_bytes(self) -> int:
        """The size of one row in bytes."""
        return math.prod(self.rest) * np.dtype(self.dtype).itemsize

    def signature(self) -> tuple[str, int, tuple[int, ...]]:
        """Return the type, axis and row shape, which must be the same in all blocks."""
        return self.dtype, self.axis, self.rest

    def shape(self, rows: int) -> list[int]:
        """Return the shape with this number of rows along the axis."""
        return [*self.rest[: self.axis], rows, *self.rest[self.axis :]]

    def start(self) -> list[int]:
        """Return the position of the next rows."""
        return [0] * self.axis + [self.previous_rows + self.rows] + [0] * (len(self.rest) - self.axis)


class Split:
    """One split that is being written, block after block.

    Args:
        engine: The file.
        name: The name of the split.
        samples: Number of samples that this rank will write; None if one rank writes and does not know it.
        totals: Number of rows of each key that this rank will write; None likewise.
    """

    def __init__(self, engine: Engine, name: str, samples: int | None, totals: Mapping[str, int] | None) -> None:
        self.name = name
        self.samples = 0
        self.all_samples = 0
        self._engine = engine
        self._announced = samples, totals
        self._pending: list[Block] = []
        self._pending_bytes = 0
        self._keys: dict[str, GrowingColumn] = {}
        self._written = 0
        self._before = 0  # number of samples of the ranks before this one
        self._shares: list[Mapping[str, int]] = []
        if engine.comm is not None:
            if samples is None or totals is None:
                raise InputError(f"{name}: ranks that write together must announce samples and totals")
            shares = engine.comm.allgather((samples, dict(totals)))
            self._before = sum(s for s, _ in shares[: engine.comm.Get_rank()])
            self.all_samples = sum(s for s, _ in shares)
            self._shares = [t for _, t in shares]

    def put(self, block: Block) -> None:
        """Append samples; raises InputError, naming the sample, for values that cannot be stored."""
        try:
            block.check(self.samples)
            self._check_like(block)
        except InputError as error:
            raise InputError(f"{self.name}: {error}") from None
        chunk = min(MAX_CHUNK_BYTES, max(MIN_CHUNK_BYTES, self._engine.written // MAX_CHUNKS))
        for piece in block.pieces(max(1, chunk * block.samples // max(1, block.nbytes))):
            is_large = piece.nbytes >= chunk and not self._pending
            self._pending.append(piece if is_large else _copy_block(piece))
            self._pending_bytes += piece.nbytes
            if self._pending_bytes >= chunk:
                self._flush()
        self.samples += block.samples

    def _check_like(self, block: Block) -> None:
        """Check that a block has the keys, types and shapes of the first block."""
        signatures = {name: _get_signature(column) for name, column in block.columns.items()}
        if not self._keys:
            self._keys = {name: self._start_column(name, *signature) for name, signature in signatures.items()}
        for name in sorted(signatures.keys() | self._keys.keys()):
            if name not in signatures or name not in self._keys:
                presence = "in" if name in signatures else "not in"
                raise InputError(f"{name} is {presence} this block, unlike the blocks before")
            if signatures[name] != self._keys[name].signature():
                raise InputError(
                    f"{name} is {signatures[name]} in this block, but {self._keys[name].signature()} in those before"
                )

    def _start_column(self, name: str, dtype: str, axis: int, rest: tuple[int, ...]) -> GrowingColumn:
        if self._engine.comm is None:
            return GrowingColumn(dtype, axis, rest)
        rows = [share.get(name, 0) for share in self._shares]
        previous_rows = sum(rows[: self._engine.comm.Get_rank()])
        return GrowingColumn(dtype, axis, rest, previous_rows=previous_rows, total_rows=sum(rows))

    def _flush(self) -> None:
        """Hand pending blocks to ADIOS2."""
        samples = sum(piece.samples for piece in self._pending)
        for name, growing in self._keys.items():
            columns = [piece.columns[name] for piece in self._pending]
            values = np.concatenate([c.values for c in columns], axis=growing.axis)
            counts = np.concatenate([c.rows(p.samples) for c, p in zip(columns, self._pending, strict=True)])
            column = Column(values, counts, growing.axis)
            growing.end_samples.setdefault("first", column.cut(0, int(counts[0])).copy())
            growing.end_samples["last"] = column.cut(int(counts[:-1].sum()), int(counts.sum())).copy()
            self._write(name, growing, values, counts)
        self._written += samples
        self._pending, self._pending_bytes = [], 0
        self._engine.flush()

    def _write(self, name: str, growing: GrowingColumn, values: Values, counts: NDArray[np.int64]) -> None:
        starts = growing.previous_rows + growing.rows + np.cumsum(counts) - counts
        rows = values.shape[growing.axis]
        if not growing.variables:
            stem = f"{self.name}/{name}"
            growing.variables = [
                self._engine.define(stem, values, growing.shape(growing.total_rows or rows)),
                self._engine.define(stem + "/variable_count", counts, [self.all_samples or len(counts)]),
                self._engine.define(stem + "/variable_offset", starts, [self.all_samples or len(counts)]),
            ]
            growing.sums = [BlockSums(growing.row_bytes), *(BlockSums(starts.itemsize) for _ in TABLES)]
        arrays = (move_samples_first(values, growing.axis), counts, starts)
        for sums, array in zip(growing.sums, arrays, strict=True):
            sums.add(array)
        grows = self._engine.comm is None
        written = self._written + len(counts)
        start = [self._before + self._written]
        if rows:
            shape = growing.shape(growing.rows + rows) if grows else None
            self._engine.put_rows(growing.variables[0], values, growing.start(), shape)
        for variable, table in zip(growing.variables[1:], (counts, starts), strict=True):
            self._engine.put_rows(variable, table, start, [written] if grows else None)
        growing.rows += rows

    def finish(self) -> bool:
        """Write pending blocks and the attributes; return False if no rank has samples."""
        if self._pending:
            self._flush()
        self._check_announced()
        if self._engine.comm is None:
            self.all_samples = self.samples
        else:
            self._share_keys(self._engine.comm)
        if not self.all_samples:
            return False
        for name, growing in self._keys.items():
            if not (growing.total_rows or growing.rows):
                raise InputError(f"{self.name}: {name} has no rows in any sample")
            self._engine.define_attribute(f"{self.name}/{name}/variable_dim", np.array(growing.axis))
        listed = [name for name in self._keys if name not in KEYS or KEYS[name].listed]
        self._engine.define_attribute(f"{self.name}/keys", listed)
        self._engine.define_attribute(f"{self.name}/ndata", np.array(self.all_samples))
        return True

    def tables(self) -> dict[str, Table]:
        """Return the checksums of each array of a finished split that this rank alone has written."""
        return {
            f"{self.name}/{name}{ending}": sums.table()
            for name, growing in self._keys.items()
            for ending, sums in zip(("", *(f"/variable_{t}" for t in TABLES)), growing.sums, strict=True)
        }

    def _check_announced(self) -> None:
        samples, totals = self._announced
        if samples is not None and samples != self.samples:
            raise InputError(f"{self.name}: {samples} samples were announced, {self.samples} were put")
        for name, rows in (totals or {}).items():
            written = self._keys[name].rows if name in self._keys else 0
            if written != rows:
                raise InputError(f"{self.name}: {rows} rows of {name} were announced, {written} were put")

    def _share_keys(self, comm: Any) -> None:
        """Pass the keys to ranks without samples; raises InputError if the keys of two ranks differ."""
        columns = {name: growing.signature() for name, growing in self._keys.items()}
        all_keys = [keys for keys in comm.allgather(columns) if keys]
        if any(keys != all_keys[0] for keys in all_keys):
            raise InputError(f"{self.name}: the ranks put different keys, types or shapes")
        if all_keys and not self._keys:
            self._keys = {name: self._start_column(name, *signature) for name, signature in all_keys[0].items()}

    def matches(self, file: BPFile) -> bool:
        """Return whether the file has the shapes of this split, and the first and last sample of this rank."""
        for name, growing in self._keys.items():
            if file.shape(self.name, name) != tuple(growing.shape(growing.total_rows or growing.rows)):
                return False
        for which, sample in (("first", self._before), ("last", self._before + self.samples - 1)):
            columns = file.columns(self.name, sample, sample + 1).columns if self.samples else {}
            if any(not _is_same(self._keys[name].end_samples[which], c.values) for name, c in columns.items()):
                return False
        return True


def _is_same(written: NDArray[Any], stored: NDArray[Any]) -> bool:
    return np.array_equal(written, stored, equal_nan=stored.dtype.kind == "f")


def _get_signature(column: Column) -> tuple[str, int, tuple[int, ...]]:
    shape = column.values.shape
    return str(column.values.dtype), column.axis, shape[: column.axis] + shape[column.axis + 1 :]


def _copy_block(block: Block) -> Block:
    return Block(
        block.samples,
        {
            name: Column(c.values.copy(), c.counts if isinstance(c.counts, int) else c.counts.copy(), c.axis)
            for name, c in block.columns.items()
        },
    )
