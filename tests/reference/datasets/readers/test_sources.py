"""The catalog of the sixteen datasets is complete, and its formats exist."""

from __future__ import annotations

import subprocess
import sys

import pytest

from harness.reference.datasets.catalog import HEADS, SOURCES, find_source
from harness.reference.datasets.readers.registry import FORMATS, get_format
from harness.reference.errors import InputError


def test_there_is_one_source_for_each_branch_in_order() -> None:
    assert tuple(entry.head for entry in SOURCES) == HEADS
    for branch, entry in enumerate(SOURCES):
        assert entry.branch == branch
        assert entry.format in FORMATS
        assert entry.energy_kind in ("total", "formation")
        assert entry.charges in ("all", "neutral", "charged")
        assert entry.energy_range_ev_per_atom[0] < entry.energy_range_ev_per_atom[1]
        assert entry.url.startswith("https://")
        assert all(
            (entry.files, entry.units, entry.level, entry.zero_energy_state, entry.licence, entry.citation, entry.fetch)
        )


def test_every_format_is_used_and_has_its_name() -> None:
    assert {entry.format for entry in SOURCES} == set(FORMATS)
    assert all(dataset_format.name == name for name, dataset_format in FORMATS.items())
    assert get_format("qcml").files
    with pytest.raises(InputError, match=r"no format 'aselmbd' \(did you mean 'aselmdb'\?\)"):
        get_format("aselmbd")
    with pytest.raises(InputError, match=r"there are: alexandria, ani1x"):
        get_format("-")


@pytest.mark.parametrize("name", ["OMol25-neutral", "omol25-neutral", "OMOL25-NEUTRAL"])
def test_sources_are_found_in_any_case(name: str) -> None:
    assert find_source(name).charges == "neutral"


def test_unknown_sources_are_rejected_with_suggestions() -> None:
    with pytest.raises(InputError, match=r"no dataset 'nabladft' \(did you mean 'nabla2dft'\?\)"):
        find_source("nabladft")
    with pytest.raises(InputError, match=r"there are: alexandria, ani1x"):
        find_source("-")


def test_catalog_imports_no_reader() -> None:
    code = (
        "import sys, harness.reference.datasets.catalog; print({'h5py', 'torch', 'numpy', 'lmdb'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
