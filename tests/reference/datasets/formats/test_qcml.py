"""Reader of QCML: TFRecord shards in atomic units, checksums, and damaged records."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.reference.datasets.parsing.structure_builder import InvalidStructure
from harness.reference.datasets.readers import qcml
from harness.reference.datasets.readers.qcml import decode_example
from harness.reference.errors import InputError
from tests.reference.datasets.official_files.tfrecord_writers import (
    encode_example,
    encode_record,
    make_qcml_features,
    write_qcml,
)
from tests.reference.datasets.official_files.writers import is_same_table, make_conformations, read_all_files


def test_values_units_and_charges_are_read(tmp_path: Path) -> None:
    write_qcml(tmp_path / "1.0.0", (3, 2))
    frames, faults = read_all_files(qcml.FORMAT, tmp_path)
    assert not faults
    assert len(frames) == 5
    assert frames.ids[3] == "qcml-full.tfrecord-00001-of-00002/0"
    assert frames.groups.tolist() == ["H4CO"] * 5
    assert frames.charge.tolist() == [-1] * 5
    assert frames.multiplicity.tolist() == [2] * 5
    positions, energy, forces = make_conformations(1, 10)
    assert np.allclose(frames[3:4].positions, positions[0], atol=1e-6)
    assert np.isclose(frames.energy[3], energy[0], rtol=1e-7)
    assert np.allclose(frames[3:4].forces, forces[0], atol=1e-5)
    assert is_same_table(frames, read_all_files(qcml.FORMAT, tmp_path)[0])


feature_values = st.one_of(
    st.lists(st.integers(-(2**63), 2**63 - 1), max_size=20),
    st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=20),
    st.binary(max_size=20),
)


@given(st.dictionaries(st.text(max_size=6), feature_values, max_size=4))
def test_tfrecord_examples_round_trip(features: dict[str, Any]) -> None:
    result = decode_example(encode_example(features))
    assert result.keys() == features.keys()
    for name, value in features.items():
        expected = [value] if isinstance(value, bytes) else value
        assert list(result[name]) == expected


@given(st.binary(max_size=60))
def test_arbitrary_bytes_are_an_example_or_invalid(data: bytes) -> None:
    with contextlib.suppress(InvalidStructure):
        decode_example(data)


def test_bad_records_are_rejected(tmp_path: Path) -> None:
    good = encode_example(make_qcml_features(0))
    flipped = bytearray(encode_record(good))
    flipped[40] ^= 1
    without_forces = {k: v for k, v in make_qcml_features(1).items() if k != "pbe0_forces"}
    records = [
        encode_record(good),
        bytes(flipped),
        encode_record(encode_example(make_qcml_features(2, is_outlier=[1]))),
        encode_record(encode_example(without_forces)),
        encode_record(b"\xff\xff"),
        encode_record(encode_example(make_qcml_features(3, positions=np.zeros(6)))),
        encode_record(encode_example(make_qcml_features(4, pbe0_energy=[1]))),
    ]
    path = tmp_path / "a.tfrecord"
    path.write_bytes(b"".join(records))
    frames, faults = read_all_files(qcml.FORMAT, path)
    assert frames.ids.tolist() == ["a.tfrecord/0"]
    kinds = ["corrupt", "outlier", "missing key", "corrupt", "shape", "malformed"]
    assert [f.kind for f in faults] == kinds
    assert "no 'pbe0_forces' (" in faults[2].reason


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    write_qcml(tmp_path, (3,))
    path = tmp_path / "qcml-full.tfrecord-00000-of-00001"
    complete = path.read_bytes()
    for length, message in (
        (-5, "inside a record"),
        (-2, "inside a record"),
        (len(complete) // 3 + 4, "inside the length"),
    ):
        path.write_bytes(complete[:length])
        with pytest.raises(InputError, match=f"truncated at byte .*{message}"):
            read_all_files(qcml.FORMAT, tmp_path)
    broken = bytearray(complete)
    broken[len(complete) // 3] ^= 1
    path.write_bytes(bytes(broken))
    with pytest.raises(InputError, match=r"corrupt at byte .* the rest is lost"):
        read_all_files(qcml.FORMAT, tmp_path)
    path.write_bytes(b"\x89HDF\r\n\x1a\n" * 20)
    with pytest.raises(InputError, match="not a TFRecord file"):
        qcml.list_chunks([tmp_path])
    (tmp_path / "features.json").write_text(json.dumps({"featuresDict": {"features": {"position": {}}}}))
    with pytest.raises(InputError, match=r"not qcml/dft_force_field, no 'atomic_numbers' \(there are: position\)"):
        qcml.list_chunks([tmp_path])
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="no TFRecord shards in this folder"):
        qcml.list_chunks([tmp_path / "none"])
