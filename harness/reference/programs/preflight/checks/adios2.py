"""Stores: ADIOS2 writes structures and reads them back, and damage is detected."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from harness.protocol.programs.preflight import Measurement
from harness.reference.data.structure_table import StructureTable
from harness.reference.errors import InputError
from harness.reference.programs.preflight.check import CheckContext, Outcome, make_outcome
from harness.reference.storage.adios.reader import BPFile
from harness.reference.storage.adios.writer import BPWriter
from harness.reference.storage.schema import Block, Sample
from harness.reference.storage.structure_codec import encode_table

STRUCTURES, SPLIT = 500, "trainset"
EXPECTED = "a store returns what was written, and refuses damaged and absent data"
ADVICE = "Install adios2 of the tested version (constraints.txt), and check the file system of the case."


def check(context: CheckContext) -> Outcome:
    """Write a store on this rank, and read it in several ways."""
    import adios2

    path = context.folder / f"{context.rank_info.rank}.bp"
    shutil.rmtree(path, ignore_errors=True)
    block = make_block(context.rank_info.rank)
    try:
        started = time.perf_counter()
        with BPWriter(path, {"dataset": "preflight"}) as writer:
            writer.split(SPLIT).put(block)
        written_s = time.perf_counter() - started
        started = time.perf_counter()
        problems = list(find_differences(path, block))
        read_s = time.perf_counter() - started
        problems += find_undetected_damage(path)
    finally:
        shutil.rmtree(path, ignore_errors=True)
    kind = "with" if adios2.is_built_with_mpi else "without"
    observed = f"adios2 {adios2.__version__} {kind} MPI: {STRUCTURES} structures are equal, and damage is detected"
    measurements = [
        Measurement(name="writing a store", value=STRUCTURES / written_s, unit="structures/s"),
        Measurement(name="reading a store", value=STRUCTURES / read_s, unit="structures/s"),
    ]
    return make_outcome(EXPECTED, observed, problems, ADVICE, measurements)


def make_block(seed: int) -> Block:
    """Return random structures, whose arrays are not contiguous; ADIOS2 alone would write such arrays wrongly."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(2, 30, STRUCTURES)
    n = int(sizes.sum())
    table = StructureTable(
        ids=np.array([f"{seed}-{k}" for k in range(STRUCTURES)]),
        groups=np.array([f"group-{k // 3}" for k in range(STRUCTURES)]),
        sizes=sizes,
        numbers=rng.integers(1, 90, n).astype(np.uint8),
        positions=np.asfortranarray(rng.normal(size=(n, 3))),
        energy=rng.normal(size=2 * STRUCTURES)[::2],
        cell=rng.normal(size=(STRUCTURES, 3, 3)).transpose(0, 2, 1),
        periodic=rng.random((STRUCTURES, 3)) < 0.5,
        charge=rng.integers(-2, 3, STRUCTURES),
        multiplicity=rng.integers(0, 4, STRUCTURES),
        forces=np.asfortranarray(rng.normal(size=(n, 3))),
    )
    return encode_table(table)


def find_differences(path: Path, block: Block) -> Iterator[str]:
    """Yield a message for each way of reading that returns other data than were written.

    A selection of ADIOS2 would also apply to the next read, and a read beyond the end would return zeros.
    """
    expected = list(block.iter_samples())
    with BPFile(path) as file:
        middle = STRUCTURES // 2
        if not is_same(file.read_sample(SPLIT, middle), expected[middle]):
            yield "one structure read from the middle differs"
        whole = list(file.columns(SPLIT, 0, STRUCTURES).iter_samples())
        if len(whole) != STRUCTURES or not all(map(is_same, whole, expected)):
            yield "the structures that are read at once differ"
        try:
            file.columns(SPLIT, STRUCTURES - 1, STRUCTURES + 1)
            yield "structures beyond the end are read"
        except (InputError, IndexError):
            pass


def is_same(result: Sample, expected: Sample) -> bool:
    """Return whether two samples are equal bit by bit."""
    return result.keys() == expected.keys() and all(
        result[key].shape == value.shape and result[key].tobytes() == np.ascontiguousarray(value).tobytes()
        for key, value in expected.items()
    )


def find_undetected_damage(path: Path) -> list[str]:
    """Invert a byte of the store, and return a message if reading does not detect it."""
    data = max(path.glob("data.*"), key=lambda file: file.stat().st_size)
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 0xFF
    data.write_bytes(content)
    try:
        with BPFile(path) as file:
            file.columns(SPLIT, 0, STRUCTURES)
    except InputError:
        return []
    return ["an inverted byte of the store is not detected"]
