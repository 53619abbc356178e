"""Damaged parts in the spool of an interrupted conversion are treated as not read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from harness.reference.datasets.conversion.spool import PartWriter, Spool
from tests.reference.storage.examples import random_frames


@pytest.mark.parametrize("name", ["000000.trainset", "000000.valset", "000000.ids.npy", "000000.json"])
def test_a_damaged_part_is_read_again(tmp_path: Path, name: str) -> None:
    spool = Spool(tmp_path / "spool", {})
    with PartWriter(spool.folder, 0) as writer:
        for split in range(3):
            writer.write(split, random_frames(5, split))
        writer.finish({"read": 15}, {"ids": np.arange(15)})
    result = spool.summary(0)
    assert result is not None
    assert result["read"] == 15
    content = bytearray((spool.folder / name).read_bytes())
    content[len(content) // 2] ^= 0xFF
    (spool.folder / name).write_bytes(content)
    assert spool.summary(0) is None
