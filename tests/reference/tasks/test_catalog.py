"""The twelve tasks are distinct, and their data and published results have sources."""

from __future__ import annotations

import pytest

from harness.reference.errors import InputError
from harness.reference.tasks.catalog import TASKS, find_task
from harness.reference.tasks.load import READERS

NAMES = (
    *("qm9", "md17", "wiggle150", "ms25", "oqmd", "abx3", "matbench_dielectric", "matbench_jdft2d"),
    *("matbench_log_gvrh", "matbench_log_kvrh", "matbench_perovskites", "matbench_phonons"),
)


def test_catalog_has_twelve_tasks_with_readers() -> None:
    assert tuple(t.name for t in TASKS) == NAMES == tuple(READERS)


def test_unknown_name_suggests_the_closest() -> None:
    with pytest.raises(InputError, match=r"no task 'matbench_fonons' \(did you mean 'matbench_phonons'\?\)"):
        find_task("matbench_fonons")


def test_only_energies_are_divided_by_atoms() -> None:
    assert [t.name for t in TASKS if t.error_per_atom] == ["ms25"]
    assert all(t.kind != "property" for t in TASKS if t.error_per_atom)
    assert {t.unit for t in TASKS if t.kind != "property"} == {"eV"}


def test_every_task_names_the_sources_of_its_data_and_results() -> None:
    for entry in TASKS:
        for text in (entry.citation, entry.url, entry.fetch, entry.licence, entry.splits, *entry.files):
            assert text
        for result in entry.published:
            assert result.source
            assert result.value > 0
            assert result.unit == ("eV/angstrom" if result.quantity == "forces" else entry.unit)


def test_dummy_result_of_a_leaderboard_is_the_mean_absolute_deviation() -> None:
    """The model predicts the mean, and the benchmark (wheel 0.6) lists the mean absolute deviation."""
    deviations = (0.808535, 67.202004, 0.293138, 0.289674, 0.565992, 323.786970)
    for entry, deviation in zip(TASKS[6:], deviations, strict=True):
        dummy = next(r for r in entry.published if r.model == "Dummy")
        assert dummy.value == pytest.approx(deviation, rel=2e-3)
        assert dummy.train == entry.size * 4 // 5
        assert all(r.value < dummy.value for r in entry.published if r is not dummy)
