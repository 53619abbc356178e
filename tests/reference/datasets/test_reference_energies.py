"""Reference energies are exact where the data determine them, flagged elsewhere, and independent of the order."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.reference.data.structure_table import StructureTable, concatenate
from harness.reference.datasets.reference_energies import (
    ElementState,
    References,
    StreamingLeastSquares,
    count_elements,
    fit,
    from_json,
)
from harness.reference.errors import InputError

KNOWN_ENERGIES_EV = np.zeros(119)
KNOWN_ENERGIES_EV[[1, 6, 8, 29, 92]] = [-13.6, -1035.2, -2043.7, -1.75, -760_000.5]


def make_frames(compositions: list[dict[int, int]], energy: np.ndarray) -> StructureTable:
    """Return structures with these compositions and energies, and all atoms at the origin."""
    numbers = [[z for z, n in c.items() for _ in range(n)] for c in compositions]
    sizes = np.array([len(n) for n in numbers])
    count = len(sizes)
    ids = np.array([f"s{k}" for k in range(count)])
    return StructureTable(
        ids=ids, groups=ids, sizes=sizes, numbers=np.concatenate(numbers).astype(np.uint8),
        positions=np.zeros((sizes.sum(), 3)), energy=energy, cell=np.zeros((count, 3, 3)),
        periodic=np.zeros((count, 3), dtype=bool), charge=np.zeros(count, dtype=np.int64),
        multiplicity=np.ones(count, dtype=np.int64),
    )  # fmt: skip


def make_random_frames(count: int, seed: int = 0, noise: float = 0.0) -> StructureTable:
    rng = np.random.default_rng(seed)
    result = [{z: int(n) for z in (1, 6, 8, 29, 92) if (n := rng.integers(0, 5))} or {1: 1} for _ in range(count)]
    exact = np.array([sum(KNOWN_ENERGIES_EV[z] * n for z, n in c.items()) for c in result])
    sizes = np.array([sum(c.values()) for c in result])
    return make_frames(result, exact + noise * sizes * rng.normal(size=count))


def fit_blocks(*blocks: StructureTable) -> References:
    return fit(partial(iter, blocks))


def test_exact_energies_are_recovered() -> None:
    result = fit_blocks(make_random_frames(200))
    present = KNOWN_ENERGIES_EV != 0
    assert result.energy_ev[present] == pytest.approx(KNOWN_ENERGIES_EV[present], abs=1e-7)
    assert np.isnan(result.energy_ev[~present]).all()
    assert result.rank == 5
    assert result.mae_ev_per_atom < 1e-8
    assert result.rmse_ev_per_atom < 1e-7
    assert result.elements(ElementState.FITTED) == ["H", "C", "O", "Cu", "U"]
    assert result.elements(ElementState.UNDETERMINED) == []
    assert len(result.elements(ElementState.ABSENT)) == 113


def test_errors_per_atom_match_the_residual() -> None:
    block = make_random_frames(300, noise=0.3)
    result = fit_blocks(block)
    residual = result.residual(block)
    assert result.mae_ev_per_atom == pytest.approx(np.abs(residual).mean())
    assert result.rmse_ev_per_atom == pytest.approx(np.sqrt((residual**2).mean()))
    assert result.mae_ev_per_atom == pytest.approx(0.3 * np.sqrt(2 / np.pi), rel=0.15)


def test_elements_in_a_fixed_ratio_are_flagged_and_their_sum_is_correct() -> None:
    """NaCl alone does not determine Na; H2 determines H."""
    compositions = [{11: k, 17: k, 1: j} for k in range(1, 5) for j in range(3)]
    energy = np.array([-7.0 * c[11] - 3.0 * c[1] for c in compositions])
    result = fit_blocks(make_frames(compositions, energy))
    assert result.elements(ElementState.UNDETERMINED) == ["Na", "Cl"]
    assert result.elements(ElementState.FITTED) == ["H"]
    assert result.rank == 2
    assert result.energy_ev[[1, 11, 17]] == pytest.approx([-3.0, -3.5, -3.5])
    unseen = make_frames([{11: 9, 17: 9, 1: 5}], np.zeros(1))
    assert result.sum_energies(unseen) == pytest.approx([-7.0 * 9 - 15])


def test_single_composition_leaves_elements_undetermined() -> None:
    result = fit_blocks(make_frames([{6: 1, 1: 4}] * 3, np.array([-40.0, -40.5, -41.0])))
    assert result.elements(ElementState.UNDETERMINED) == ["H", "C"]
    assert (result.rank, result.structures) == (1, 3)
    assert result.sum_energies(make_frames([{6: 2, 1: 8}], np.zeros(1))) == pytest.approx([-81.0])
    assert 4 * result.energy_ev[6] == pytest.approx(result.energy_ev[1])


def test_rare_elements_are_fitted() -> None:
    """One structure with uranium is fitted together with forty thousand without it."""
    common = make_frames(
        [{1: 2, 8: k % 5} for k in range(40_000)], np.array([-2.0 - 3.0 * (k % 5) for k in range(40_000)])
    )
    result = fit_blocks(common, make_frames([{92: 1, 1: 200}], np.array([-200.0 - 50.0])))
    assert result.state[92] == ElementState.FITTED
    assert result.energy_ev[92] == pytest.approx(-50.0, abs=1e-6)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 100), st.integers(1, 40), st.integers(1, 4))
def test_fit_is_independent_of_blocks_workers_and_order(seed: int, width: int, workers: int) -> None:
    block = make_random_frames(80, seed, noise=0.2)
    single_fit = StreamingLeastSquares()
    single_fit.add(block)
    order = np.random.default_rng(seed).permutation(len(block))
    parts = [StreamingLeastSquares() for _ in range(workers)]
    for k, first in enumerate(range(0, len(block), width)):
        parts[k % workers].add(block[order[first : first + width]])
    for other in parts[1:]:
        parts[0].merge(other)
    expected, merged = single_fit.solve(), parts[0].solve()
    assert merged.energy_ev == pytest.approx(expected.energy_ev, rel=1e-9, abs=1e-6, nan_ok=True)
    assert merged.rmse_ev_per_atom == pytest.approx(expected.rmse_ev_per_atom, rel=1e-6)
    assert (merged.state == expected.state).all()
    assert merged.rank == expected.rank


def test_fit_of_total_energies_has_no_error_per_atom() -> None:
    fit = StreamingLeastSquares(per_atom=False)
    fit.add(make_random_frames(80, 0, noise=0.2))
    references = fit.solve()
    assert np.isnan(references.rmse_ev_per_atom)
    assert references.to_json()["rmse_ev_per_atom"] is None


def test_fit_uses_constant_memory() -> None:
    result = StreamingLeastSquares()
    for seed in range(5):
        result.add(make_random_frames(400, seed))
        assert result.factor.shape == (6, 120)


def test_structures_without_an_energy_are_skipped() -> None:
    unlabelled = make_frames([{79: 3}, {1: 2}], np.array([np.nan, np.nan]))
    assert fit_blocks(concatenate([make_random_frames(50), unlabelled])).state[79] == ElementState.ABSENT
    with pytest.raises(InputError, match="no structure has an energy"):
        fit_blocks(unlabelled)


def test_sums_with_absent_elements_are_nan() -> None:
    result = fit_blocks(make_random_frames(50))
    block = make_frames([{79: 1}, {1: 2}], np.array([0.0, -20.0]))
    assert np.isnan(result.sum_energies(block)).tolist() == [True, False]
    assert result.residual(block)[1] == pytest.approx((-20 - 2 * -13.6) / 2)


def test_references_round_trip_through_json() -> None:
    result = fit_blocks(make_random_frames(50, noise=0.1), make_frames([{11: 1, 17: 1}], np.array([-7.0])))
    content = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert content["undetermined"] == ["Na", "Cl"]
    assert content["absent_count"] == 111
    restored = from_json(content)
    assert np.array_equal(restored.energy_ev, result.energy_ev, equal_nan=True)
    assert (restored.state == result.state).all()
    assert restored.to_json() == result.to_json()


def test_compositions_count_atoms() -> None:
    block = make_frames([{1: 2, 8: 1}, {8: 3}], np.zeros(2))
    counts = count_elements(block)
    assert counts.shape == (2, 119)
    assert counts[:, [1, 8]].tolist() == [[2, 1], [0, 3]]
    assert counts.sum() == 6
