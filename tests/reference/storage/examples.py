"""Random structures for the tests of stores, and a function that runs scripts with several ranks."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from harness.reference.data.structure_table import StructureTable
from harness.reference.storage.adios.writer import BPWriter
from harness.reference.storage.schema import Block, Sample
from harness.reference.storage.structure_codec import encode_table
from tests.conftest import ROOT
from tests.support.mpi import environment_without_launcher, find_mpiexec


def random_frames(
    count: int, seed: int = 0, *, atoms: tuple[int, int] = (1, 9), stress: bool = False
) -> StructureTable:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(*atoms, count)
    n = int(sizes.sum())
    return StructureTable(
        ids=np.array([f"é{seed}-{k}" for k in range(count)]),
        groups=np.array([f"group {k // 3}" for k in range(count)]),
        sizes=sizes,
        numbers=rng.integers(1, 119, n).astype(np.uint8),
        positions=rng.normal(size=(n, 3)),
        energy=rng.normal(size=count),
        cell=rng.normal(size=(count, 3, 3)),
        periodic=rng.random((count, 3)) < 0.5,
        charge=rng.integers(-2, 3, count),
        multiplicity=rng.integers(0, 4, count),
        forces=rng.normal(size=(n, 3)),
        stress=rng.normal(size=(count, 3, 3)) if stress else None,
    )


def add_random_edges(frames: StructureTable, seed: int = 0) -> StructureTable:
    """Return the table with edges between random atoms; some structures have no edges."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 12, len(frames))
    counts[-1] = 3
    e = int(counts.sum())
    size = np.repeat(frames.sizes, counts)
    sender, receiver = (np.floor(rng.random(e) * size).astype(np.int64) for _ in range(2))
    shift, distance = rng.normal(size=(e, 3)), rng.random(e)
    return replace(frames, edge_counts=counts, receiver=receiver, sender=sender, shift=shift, distance=distance)


@st.composite
def labelled_frames(draw: st.DrawFn) -> StructureTable:
    """Draw tables with any values that a store accepts, including extremes and negative zero."""
    count = draw(st.integers(1, 6))
    sizes = draw(hnp.arrays(np.int64, count, elements=st.integers(1, 5)))
    n = int(sizes.sum())
    real = st.floats(allow_nan=False, allow_infinity=False)
    text = st.text(min_size=1, max_size=5).filter(lambda t: "\0" not in t and t.isprintable())
    names = draw(st.lists(text, min_size=count, max_size=count))
    return StructureTable(
        ids=np.array(names),
        groups=np.array(names[::-1]),
        sizes=sizes,
        numbers=draw(hnp.arrays(np.uint8, n, elements=st.integers(1, 118))),
        positions=draw(hnp.arrays(float, (n, 3), elements=real)),
        energy=draw(hnp.arrays(float, count, elements=real)),
        cell=draw(hnp.arrays(float, (count, 3, 3), elements=real)),
        periodic=draw(hnp.arrays(bool, (count, 3))),
        charge=draw(hnp.arrays(np.int64, count, elements=st.integers(-9, 9))),
        multiplicity=draw(hnp.arrays(np.int64, count, elements=st.integers(0, 9))),
        forces=draw(st.none() | hnp.arrays(float, (n, 3), elements=real)),
    )


def make_example_block(count: int = 20, seed: int = 0, **options: Any) -> Block:
    frames = random_frames(count, seed, **options)
    return encode_table(add_random_edges(frames, seed))


def write(path: Path, *blocks: Block, label: str = "trainset", **attributes: Any) -> Path:
    with BPWriter(path, {"dataset": "QM9", **attributes}) as writer:
        for block in blocks:
            writer.split(label).put(block)
    return path


def is_same_record(result: Sample, expected: Sample) -> bool:
    """Return whether the records are bitwise equal, whatever the order of their keys."""
    return result.keys() == expected.keys() and all(
        result[k].dtype == v.dtype and result[k].shape == v.shape and result[k].tobytes() == v.tobytes()
        for k, v in expected.items()
    )


def run_ranks(count: int, script: str, *arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """Run a script of this folder, or one with an absolute path, with `count` ranks."""
    stand_in = [] if find_spec("pyddstore") else [str(Path(__file__).with_name("stand_in"))]
    variables = environment_without_launcher() | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *stand_in]),
    }
    command = [find_mpiexec(), "-n", str(count), sys.executable, str(Path(__file__).parent / script), *arguments]
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=timeout, check=False)
