"""Datasets of few groups: every split gets a group if possible, otherwise a message names the empty split."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from harness.protocol.programs.train import TrainParameters
from harness.reference.data.neighbours import NeighbourSpec
from harness.reference.data.structure import Structure
from harness.reference.data.structure_table import tabulate
from harness.reference.datasets.__main__ import main
from harness.reference.datasets.duplicates import assign_splits, compute_fingerprints
from harness.reference.datasets.splits import SPLITS, assign_by_name
from harness.reference.distributed import launch
from harness.reference.errors import InputError
from harness.reference.programs.train import open_splits
from tests.reference.datasets.official_files.writers import write_ani1x

NEIGHBOUR_SPEC = NeighbourSpec(5.0, None)


@pytest.mark.parametrize("groups", [1, 2, 3, 4, 7])
def test_three_or_more_groups_fill_every_split(groups: int) -> None:
    rng = np.random.default_rng(groups)
    molecules = [Structure(f"g{k}", np.array([1, 6, 8]), rng.uniform(0, 3, (3, 3))) for k in range(groups)]
    frames = tabulate(molecules)
    for seed in range(100):
        notes = compute_fingerprints(frames, seed=seed)
        split = assign_splits([notes], np.zeros((0, 2), dtype=np.uint64)).find_splits(notes["group_hash"])
        assert set(split.tolist()) == ({0, 1, 2} if groups >= 3 else set(range(groups))), seed
        by_name = assign_by_name(frames.groups, seed=seed)
        if len(set(by_name.tolist())) == len(SPLITS):
            assert np.array_equal(split, by_name)


def convert_groups(folder: Path, slug: str, groups: int) -> Path:
    """Write a store of `groups` groups under the name of a dataset."""
    write_ani1x(folder / "files.h5", {f"g{k}": 4 for k in range(groups)})
    assert main(["convert", "ani1x", str(folder / "files.h5"), "--to", str(folder / slug), "-q"]) == 0
    return folder / slug / "ani1x.bp"


def test_two_groups_are_converted_with_a_note(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    convert_groups(tmp_path, "two", 2)
    assert "8 structures (4 train, 4 validation)" in (message := capsys.readouterr().out)
    assert "no test, as there are too few groups to split" in message
    convert_groups(tmp_path, "three", 3)
    assert "12 structures (4 train, 4 validation, 4 test)" in capsys.readouterr().out


def test_store_without_validation_is_trained_on_only_with_other_stores(tmp_path: Path) -> None:
    stores = tmp_path / "stores"
    stores.mkdir()
    shutil.move(convert_groups(tmp_path, "one", 1), stores / "ani1x.bp")
    rank_info = launch.detect_rank({})
    with pytest.raises(InputError, match=r"stores: no dataset has a valset; training needs .* at least three groups"):
        open_splits(TrainParameters(store_folder=str(stores)), NEIGHBOUR_SPEC, rank_info)
    assert main(["convert", "qcml", "--to", str(stores), "-q"]) == 0
    splits = open_splits(TrainParameters(store_folder=str(stores)), NEIGHBOUR_SPEC, rank_info)
    names = {split: [d.name for d in collection.datasets] for split, collection in splits.items()}
    assert names == {"trainset": ["ani1x", "qcml"], "valset": ["qcml"], "testset": ["qcml"]}
    for collection in splits.values():
        collection.samples.close()
