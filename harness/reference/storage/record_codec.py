"""Encode samples (arrays by key) as records of bytes, and decode records to arrays that are views of the bytes.

A record holds the number of rows of each key as int32, then the values of each key, row by row. Rows are counted along
the samples' axis, along which the samples of a block are concatenated. The numbers of rows and the values of each key
begin at multiples of eight bytes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.reference.errors import InputError
from harness.reference.storage.adios.reader import BPFile
from harness.reference.storage.schema import Block, Column, Counts, Sample

UNIT = 8  # bytes; lengths and positions of records are multiples of this unit


@dataclass(frozen=True)
class RecordField:
    """The layout of one key of a record.

    Attributes:
        name: The key.
        dtype: The name of the data type.
        axis: The samples' axis (see the module).
        rest: The lengths of all other axes, that is the shape of a row.
    """

    name: str
    dtype: str
    axis: int
    rest: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        """The size of one row in bytes."""
        return int(np.prod(self.rest, dtype=np.int64)) * np.dtype(self.dtype).itemsize

    @property
    def order(self) -> tuple[int, ...]:
        """The transposition that moves the first axis of a record's values to the position `axis`."""
        return (*range(1, self.axis + 1), 0, *range(self.axis + 1, len(self.rest) + 1))


class RecordSchema:
    """The fields of the records of a store, the same on all ranks."""

    def __init__(self, fields: Collection[RecordField]) -> None:
        self.fields = tuple(fields)
        self.header_units = -(-4 * len(self.fields) // UNIT)
        self._layout = [
            (f.name, np.dtype(f.dtype), f.row_bytes, f.rest, None if f.axis == 0 else f.order) for f in self.fields
        ]

    @classmethod
    def from_file(cls, file: BPFile, split: str, keys: Collection[str] | None = None) -> RecordSchema:
        """Return the schema of a split, or of some of its keys."""
        return cls(
            [RecordField(*file.describe_key(split, key)) for key in (file.keys(split) if keys is None else keys)]
        )

    @classmethod
    def from_sample(cls, sample: Sample, axes: Mapping[str, int]) -> RecordSchema:
        """Return the schema of a sample.

        Args:
            sample: The sample.
            axes: The samples' axis of each key for which it is not 0.
        """
        fields = []
        for name, values in sample.items():
            axis = axes.get(name, 0)
            fields.append(RecordField(name, str(values.dtype), axis, values.shape[:axis] + values.shape[axis + 1 :]))
        return cls(fields)

    def compute_lengths(self, counts: Mapping[str, Counts]) -> Counts:
        """Return the lengths of records in units, [samples].

        Args:
            counts: For each key, the number of rows of each sample, [samples].
        """
        total: Any = self.header_units
        for field in self.fields:
            total = total + -(-np.asarray(counts[field.name], dtype=np.int64) * field.row_bytes // UNIT)
        return np.asarray(total, dtype=np.int64)

    def pack_block(self, block: Block, out: NDArray[np.int64]) -> None:
        """Write the records of all samples, one after the other, into `out`, which has exactly their length."""
        row_counts = {f.name: block.columns[f.name].rows(block.samples) for f in self.fields}
        lengths = self.compute_lengths(row_counts)
        if int(lengths.sum()) != len(out):
            raise InputError(f"records of {int(lengths.sum())} units do not fit into {len(out)} units")
        starts = np.cumsum(lengths) - lengths
        slots = 2 * starts[:, None] + np.arange(len(self.fields))
        out.view(np.int32)[slots] = np.stack(list(row_counts.values()), axis=1)
        target = out.data.cast("B")
        offsets = (starts + self.header_units) * UNIT
        for field in self.fields:
            column = block.columns[field.name]
            _check_same(field, column)
            if not column.values.size:
                continue
            source = np.ascontiguousarray(np.moveaxis(column.values, field.axis, 0)).reshape(-1).data.cast("B")
            sizes = row_counts[field.name] * field.row_bytes
            ends = np.cumsum(sizes)
            for start, size, end in zip(offsets.tolist(), sizes.tolist(), ends.tolist(), strict=True):
                target[start : start + size] = source[end - size : end]
            offsets = offsets + -(-sizes // UNIT) * UNIT

    def pack(self, sample: Sample) -> bytes:
        """Return one sample as bytes."""
        columns = {f.name: Column(sample[f.name], sample[f.name].shape[f.axis], f.axis) for f in self.fields}
        counts = {name: np.array([column.counts]) for name, column in columns.items()}
        out = np.zeros(int(self.compute_lengths(counts)[0]), dtype=np.int64)
        self.pack_block(Block(1, columns), out)
        return out.tobytes()

    def unpack(self, buffer: Any, start: int = 0) -> Sample:
        """Return the sample whose record begins at unit `start` of the buffer, as views of the buffer."""
        offset = start * UNIT
        row_counts = np.ndarray(len(self._layout), np.int32, buffer, offset).tolist()
        offset += self.header_units * UNIT
        sample = {}
        for (name, dtype, row_bytes, rest, order), n in zip(self._layout, row_counts, strict=True):
            values: NDArray[Any] = np.ndarray((n, *rest), dtype, buffer, offset)
            sample[name] = values if order is None else values.transpose(order)
            offset += -(-n * row_bytes // UNIT) * UNIT
        return sample


def _check_same(field: RecordField, column: Column) -> None:
    shape = column.values.shape
    rest = shape[: column.axis] + shape[column.axis + 1 :]
    if (str(column.values.dtype), column.axis, rest) != (field.dtype, field.axis, field.rest):
        raise InputError(f"{field.name}: {column.values.dtype} {shape} does not match the records of this store")
