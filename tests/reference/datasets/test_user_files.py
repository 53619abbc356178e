"""Structures in files of users are read, or refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.io import write
from hypothesis import given
from hypothesis import strategies as st

from harness.protocol.errors import UsageError
from harness.reference.datasets.user_files import read_structures
from harness.reference.errors import InputError
from tests.support.programs import run_program

UNSEEN = Atoms("Fr2", positions=[[0, 0, 0], [3, 0, 0]])
COINCIDENT = Atoms("H2", positions=[[1, 1, 1], [1, 1, 1]])
NOT_FINITE = Atoms("H2", positions=[[1, 1, 1], [np.nan, 1, 1]])
EMPTY = Atoms()


def test_structures_are_read_unchanged(tmp_path: Path) -> None:
    frames = [molecule("CH3CH2OH"), bulk("NaCl", "rocksalt", a=5.64)]
    write(tmp_path / "mine.extxyz", frames)
    result = read_structures(tmp_path / "mine.extxyz", 10)
    assert [s.name for s in result] == ["mine.extxyz/0", "mine.extxyz/1"]
    for structure, atoms in zip(result, frames, strict=True):
        assert np.allclose(structure.positions, atoms.positions)
        assert np.allclose(structure.cell, np.array(atoms.cell))
        assert structure.periodic == tuple(atoms.pbc)
    assert len(read_structures(tmp_path / "mine.extxyz", 1)) == 1


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (UNSEEN, "'mine.extxyz/1': no head of this model was trained on Fr (element 87)"),
        (COINCIDENT, "'mine.extxyz/1': atoms 0 and 1 coincide"),
        (NOT_FINITE, "'mine.extxyz/1': position of atom 1 is not finite"),
        (EMPTY, "'mine.extxyz/1' has no atoms"),
    ],
)
def test_the_ladder_names_the_structure_that_it_cannot_use(tmp_path: Path, bad: Atoms, message: str) -> None:
    path = tmp_path / "mine.extxyz"
    write(path, [molecule("H2O"), bad])
    parameters: dict[str, object] = {"workload": "file", "structure_file": str(path), "precision": "fp64"}
    with pytest.raises(InputError) as caught:
        run_program("ladder", parameters | {"checkpoint": "painn-64"}, tmp_path)
    assert message in str(caught.value)


@pytest.mark.parametrize(("content", "message"), [(None, "no such file"), ("three\nfoo\n", "cannot be read")])
def test_unreadable_structure_file_is_rejected(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "mine.extxyz"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=message):
        read_structures(path, 4)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"precision": "fp16"}, "precision is 'fp16'"),
        ({"stages": ["baseline", "fused_massages"]}, "stages.1 is 'fused_massages' (did you mean 'fused_messages'?)"),
        ({"workload": "liquids"}, "workload is 'liquids' (there are: crystals, file, random)"),
        ({"workload": "file"}, "workload 'file' needs 'structure_file'"),
        ({"batchsize": 3}, "unknown parameter 'batchsize' (did you mean 'batch_size'?)"),
        ({"model": {"hiden_dim": 3}}, "unknown parameter 'model.hiden_dim' (did you mean 'hidden_dim'?)"),
    ],
)
def test_parameters_of_a_case_are_validated(tmp_path: Path, parameters: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        run_program("ladder", {"workload": "random", "precision": "fp64"} | parameters, tmp_path)
    assert message in str(caught.value)


@given(st.text())
def test_error_messages_are_printable(text: str) -> None:
    assert not text or str(InputError(text)).isprintable()
