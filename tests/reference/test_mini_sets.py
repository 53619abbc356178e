"""The shipped data is what its table says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from harness.reference.datasets import mini
from harness.reference.datasets.mini import MINI_SETS, MiniSet, load_mini
from harness.reference.errors import InputError


@pytest.mark.parametrize("entry", MINI_SETS, ids=lambda e: e.name)
def test_a_set_is_complete_and_its_labels_are_in_range(entry: MiniSet) -> None:
    structures = load_mini(entry)
    assert len(structures) == entry.count
    has_forces = [s.forces is not None for s in structures]
    assert all(has_forces) == any(has_forces) == ("F" in entry.labels)
    for s in structures:
        assert s.energy is not None
        assert s.head == entry.branch
        if s.forces is not None:
            # Net force: the labels are those of a whole, undisturbed cell.
            assert np.abs(s.forces.sum(0)).max() < 0.5
    per_atom = np.array([s.energy / len(s) for s in structures if s.energy is not None])
    low, high = (-1200, -20) if entry.name == "qm9" else (-15, 12)
    assert low < np.median(per_atom) < high


def test_methane_of_qm9_has_its_published_energy() -> None:
    """Index 1 of QM9: U0 -40.47893 Ha less a zero-point energy of 0.044749 Ha."""
    methane = load_mini(mini.mini_set("qm9"))[0]
    assert sorted(methane.numbers) == [1, 1, 1, 1, 6]
    assert methane.energy == pytest.approx((-40.47893 - 0.044749) * 27.211386245988, abs=1e-6)


def test_sets_cover_at_least_80_elements_and_six_heads_with_forces() -> None:
    elements = {int(z) for e in MINI_SETS for s in load_mini(e) for z in s.numbers}
    assert len(elements) >= 80
    assert len({e.head for e in MINI_SETS if "F" in e.labels}) >= 6


def test_a_changed_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mlearn.extxyz.xz").write_bytes(b"something else")
    monkeypatch.setattr(mini, "FOLDER", tmp_path)
    with pytest.raises(InputError, match="sha256 differs"):
        load_mini(mini.mini_set("mlearn"))


def test_every_set_is_described_beside_the_files() -> None:
    text = (mini.FOLDER / "README.md").read_text()
    for entry in MINI_SETS:
        for part in (entry.name, entry.sha256, entry.source_sha256, entry.licence, entry.attribution, entry.role):
            assert part in text, f"{entry.name}: {part}"
