"""The spool, a folder with the parts that a conversion has read: tables for each split, and a summary of each part."""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from harness.host.files import write_text
from harness.host.locks import LockTaken, hold_lock
from harness.reference.data.structure_table import StructureTable
from harness.reference.datasets.splits import SPLITS
from harness.reference.errors import InputError

IDENTITY_FILE = "conversion.json"
CHECKSUM_CHUNK_BYTES = 1 << 20
Summary = dict[str, Any]


class Spool:
    """The folder of one conversion; a part counts as read only if it is complete."""

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        """Create the folder, or reuse an existing one.

        Args:
            folder: The folder.
            identity: Plain data on everything that determines the result of the conversion.

        Raises:
            InputError: The folder belongs to a conversion with another identity.
        """
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / IDENTITY_FILE
        if path.exists() and json.loads(path.read_text(encoding="utf-8")) != identity:
            raise InputError(
                f"{folder}: left by a conversion of other files or with other options; remove it, or choose another"
                " folder for the store"
            )
        write_text(path, json.dumps(identity, indent=1))

    def summary(self, part: int) -> Summary | None:
        """Return the summary of a part, or None if the part must be read because it is absent or damaged."""
        try:
            summary = json.loads((self.folder / f"{part:06d}.json").read_text(encoding="utf-8"))
            sums = {name: _compute_checksum(self.folder / f"{part:06d}.{name}") for name in summary["crc32"]}
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None
        return summary if sums == summary["crc32"] else None

    def array(self, part: int, name: str) -> NDArray[Any]:
        """Return an array that was stored with a part, mapped into memory."""
        return np.load(self.folder / f"{part:06d}.{name}.npy", mmap_mode="r")

    def blocks(self, part: int, split: int) -> Iterator[StructureTable]:
        """Yield the tables of a part that belong to a split (a position in SPLITS), in the order of writing."""
        with open(self.folder / f"{part:06d}.{SPLITS[split]}", "rb") as handle:
            while names := handle.readline():
                columns = {name: np.load(handle, allow_pickle=False) for name in json.loads(names)}
                all_columns: dict[str, Any] = {f.name: columns.get(f.name) for f in fields(StructureTable)}
                yield StructureTable(**all_columns)

    def remove(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the folder against a second conversion; raises InputError if another one has the lock."""
        with ExitStack() as stack:
            try:
                stack.enter_context(hold_lock(self.folder / "lock"))
            except LockTaken as error:
                raise InputError(f"{self.folder}: another conversion is at work here ({error})") from None
            yield


class PartWriter:
    """A writer of one part to the spool; the part counts as read only after `finish`."""

    def __init__(self, spool: Path, part: int) -> None:
        self.stem = spool / f"{part:06d}"
        self.suffix = f".{os.getpid()}.tmp"
        self._open = ExitStack()
        self._files: list[IO[bytes]] = []

    def __enter__(self) -> PartWriter:
        for split in SPLITS:
            self._files.append(self._open.enter_context(open(f"{self.stem}.{split}{self.suffix}", "wb")))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()
        for split in SPLITS:
            Path(f"{self.stem}.{split}{self.suffix}").unlink(missing_ok=True)

    def write(self, split: int, table: StructureTable) -> None:
        """Append a table to a split (a position in SPLITS)."""
        columns = {f.name: getattr(table, f.name) for f in fields(StructureTable)}
        present = {name: column for name, column in columns.items() if column is not None}
        handle = self._files[split]
        handle.write(json.dumps(list(present)).encode() + b"\n")
        for column in present.values():
            _write_array(handle, column)

    def finish(self, summary: Summary, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Give the files of the part their final names: tables, arrays, and at last the summary."""
        self._open.close()
        for split in SPLITS:
            os.replace(f"{self.stem}.{split}{self.suffix}", f"{self.stem}.{split}")
        for name, array in arrays.items():
            temporary = Path(f"{self.stem}.{name}{self.suffix}.npy")
            with open(temporary, "wb") as handle:
                _write_array(handle, array)
            os.replace(temporary, f"{self.stem}.{name}.npy")
        names = [*SPLITS, *(f"{name}.npy" for name in arrays)]
        sums = {name: _compute_checksum(Path(f"{self.stem}.{name}")) for name in names}
        write_text(f"{self.stem}.json", json.dumps({**summary, "crc32": sums}))


def _compute_checksum(path: Path) -> int:
    checksum = 0
    with open(path, "rb") as handle:
        while piece := handle.read(CHECKSUM_CHUNK_BYTES):
            checksum = zlib.crc32(piece, checksum)
    return checksum


def _write_array(handle: IO[bytes], array: NDArray[Any]) -> None:
    """Write an array in the format of np.save, which itself does not report the reason if the disk is full."""
    array = np.ascontiguousarray(array)
    np.lib.format.write_array_header_1_0(handle, np.lib.format.header_data_from_array_1_0(array))
    handle.write(array.tobytes())
