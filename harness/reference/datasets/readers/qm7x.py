"""QM7-X: 1000.xz .. 8000.xz, HDF5 files with a group per molecule and in it one per conformation."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from harness.reference.data.structure import Array
from harness.reference.data.structure_table import Fault, Frames
from harness.reference.datasets.containers import h5
from harness.reference.datasets.parsing.base import Format, Part
from harness.reference.datasets.parsing.paths import bounds, files, opened, ranges
from harness.reference.datasets.parsing.structure_builder import Unfit, blocked, one_line
from harness.reference.datasets.parsing.unpacking import BROKEN, CHUNK, HEAD, XZ, packing, unpacked_stream
from harness.reference.errors import InputError

WHOLE = "all"  # in place of a range: every molecule of a compressed file
LEAST_UNPACKED, MOST_TIMES = 1 << 30, 50  # what a compressed file may unfold to: bytes, or times its own size


def parts(paths: Sequence[Path]) -> list[Part]:
    """Ranges of each file's molecules; a compressed file is one part, and is passed over where it also lies open."""
    listed = files(paths, (".xz", ".hdf5", ".h5"), "QM7-X files (1000.xz .. 8000.xz or 1000.hdf5 ..)")
    found = []
    for path, label in listed:
        if path.suffix == ".xz":
            with opened(path, accepted=(XZ,)) as file:
                if packing(file.read(HEAD)) != XZ:
                    raise InputError(f"{path}: not an xz file")
            found.append(Part(path, f"{label} {WHOLE}"))
            continue
        with h5.opened(path) as root:
            sizes = [_size(root, name) for name in h5.names(root, str(path))]
            if not any(sizes):
                raise InputError(f"{path}: not QM7-X, no molecule in it has conformations with 'atXYZ'")
        found += ranges(path, label, sizes)
    return found


def _size(root: h5.Group, name: str) -> int:
    try:
        return h5.length(h5.child(root, name))
    except Unfit:
        return 0


def read(part: Part) -> Iterator[Frames | Fault]:
    """Conformations molecule by molecule, PBE0+MBD energies and forces."""
    yield from blocked(_pieces(part))


def _pieces(part: Part) -> Iterator[Frames | Fault]:
    if not part.key.endswith(f" {WHOLE}"):
        with h5.opened(part.path) as root:
            label, first, stop = bounds(part)
            yield from _molecules(root, label, h5.names(root, str(part.path))[first:stop])
        return
    with _decompressed(part.path) as path, h5.opened(path) as root:
        yield from _molecules(root, part.key.rpartition(" ")[0], h5.names(root, str(part.path)))


@contextmanager
def _decompressed(path: Path) -> Iterator[Path]:
    """The file without its xz compression, in a temporary folder (TMPDIR) for as long as it is read."""
    with tempfile.TemporaryDirectory(prefix="qm7x-") as folder:
        target = Path(folder) / f"{path.stem}.hdf5"
        try:
            with (
                opened(path, accepted=(XZ,)) as packed,
                unpacked_stream(packed, XZ) as plain,
                target.open("wb") as file,
            ):
                limit = max(LEAST_UNPACKED, MOST_TIMES * path.stat().st_size)
                while chunk := plain.read(CHUNK):
                    file.write(chunk)
                    if file.tell() > limit:
                        raise InputError(f"{path}: unfolds to more than {limit >> 20} MB; not QM7-X")
        except BROKEN as error:
            if isinstance(error, OSError) and error.errno:
                raise InputError(f"{path}: cannot be decompressed into {folder} ({one_line(error)})") from None
            raise InputError(f"{path}: truncated or not an xz file ({one_line(error)})") from None
        yield target


def _molecules(root: h5.Group, label: str, molecules: list[str]) -> Iterator[Frames | Fault]:
    for molecule in molecules:
        where = f"{label}/{molecule}"
        try:
            group = h5.child(root, molecule)
            names = h5.names(group, where)
        except (Unfit, InputError) as error:
            yield Fault(where, "corrupt", str(error))
            continue
        yield from _molecule(group, where, molecule, names)


def _molecule(group: h5.Group, where: str, molecule: str, names: list[str]) -> Iterator[Frames | Fault]:
    found: list[tuple[str, NDArray[np.uint8], Array, Array, Array]] = []
    for name in names:
        try:
            found.append((f"{where}/{name}", *_conformation(h5.child(group, name))))
        except Unfit as error:
            yield Fault(f"{where}/{name}", error.kind, str(error))
    if found:
        yield _frames(molecule, found)


def _conformation(group: h5.Group) -> tuple[NDArray[np.uint8], Array, Array, Array]:
    numbers = h5.atomic_numbers(group, "atNUM")
    positions, forces = h5.values(h5.dataset(group, "atXYZ")), h5.values(h5.dataset(group, "totFOR"))
    energy = h5.values(h5.dataset(group, "ePBE0+MBD")).reshape(-1)
    for key, array in (("atXYZ", positions), ("totFOR", forces)):
        if array.shape != (len(numbers), 3):
            raise Unfit("shape", f"{key!r} has shape {array.shape}, expected ({len(numbers)}, 3)")
    if len(energy) != 1:
        raise Unfit("shape", f"'ePBE0+MBD' holds {len(energy)} numbers, expected 1")
    return numbers, positions, energy, forces


def _frames(molecule: str, found: list[tuple[str, NDArray[np.uint8], Array, Array, Array]]) -> Frames:
    """Conformations of one molecule, whose isomers may differ in size."""
    ids, numbers, positions, energy, forces = zip(*found, strict=True)
    count = len(ids)
    return Frames(
        ids=np.array(ids),
        groups=np.full(count, molecule),
        sizes=np.array([len(z) for z in numbers], dtype=np.int64),
        numbers=np.concatenate(numbers),
        positions=np.concatenate(positions),
        energy=np.concatenate(energy),
        cell=np.zeros((count, 3, 3)),
        periodic=np.zeros((count, 3), dtype=bool),
        charge=np.zeros(count, dtype=np.int64),
        multiplicity=np.zeros(count, dtype=np.int64),
        forces=np.concatenate(forces),
    )


FORMAT = Format("qm7x", "1000.xz .. 8000.xz, or decompressed (.hdf5)", parts, read)
