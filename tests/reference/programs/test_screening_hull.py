"""Energies above the convex hull, the order of candidates, reference phases from files, and merged duplicates."""

from __future__ import annotations

import csv
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.formula import Formula
from ase.phasediagram import PhaseDiagram
from scipy.optimize import OptimizeResult

from harness.protocol.events import read_last_events
from harness.reference.data.structure import Structure
from harness.reference.errors import InputError
from harness.reference.inference.batched_relaxation import RelaxedStructure
from harness.reference.models import checkpoints
from harness.reference.programs.screening import convex_hull, relaxation
from harness.reference.programs.screening.convex_hull import ConvexHull, find_composition
from harness.reference.programs.screening.drawing import draw_structure
from harness.reference.programs.screening.ranking import find_suspicious, rank
from harness.reference.programs.screening.reference_phases import ReferencePhases, list_elemental_crystals
from harness.reference.programs.screening.relaxation import Relaxation, find_duplicates
from harness.reference.programs.screening.symmetry import find_spacegroup
from tests.support.programs import run_program


def build_hull(phases: dict[tuple[int, ...], float]) -> ConvexHull:
    hull = ConvexHull()
    for numbers, energy in phases.items():
        hull.add(find_composition(numbers), energy)
    return hull


def test_hull_of_two_elements_is_the_lower_envelope() -> None:
    """NaCl lies 1 eV/atom below the elements; at NaCl3, the hull is half way between NaCl and Cl."""
    hull = build_hull({(11,): -1.0, (17,): -2.0, (11, 17): -2.5, (11, 11, 11, 17): -1.0})
    assert hull.compute_energy(find_composition([11, 17])) == pytest.approx(-2.5)
    assert hull.compute_energy(find_composition([11, 17, 17, 17])) == pytest.approx(-2.25)
    assert hull.compute_energy(find_composition([11, 11, 11, 17])) == pytest.approx(-1.75)
    assert hull.compute_energy(find_composition([11, 8])) is None


def test_hull_agrees_with_the_phase_diagram_of_ase() -> None:
    rng = np.random.default_rng(0)
    symbols, numbers = ["Li", "Fe", "P", "O"], [3, 26, 15, 8]
    counts = [*np.eye(4, dtype=int).tolist(), *rng.integers(0, 4, (25, 4)).tolist()]
    counts = [c for c in counts if sum(c)]
    energies = rng.normal(-1.0, 0.5, len(counts))
    formulas = ["".join(f"{s}{n}" for s, n in zip(symbols, c, strict=True) if n) for c in counts]
    diagram = PhaseDiagram(
        [(f, float(e * sum(c))) for f, e, c in zip(formulas, energies, counts, strict=True)], verbose=False
    )
    hull = ConvexHull()
    for c, energy in zip(counts, energies.tolist(), strict=True):
        hull.add(find_composition(np.repeat(numbers, c)), energy)
    for formula, c in list(zip(formulas, counts, strict=True))[4:]:
        expected = diagram.decompose(formula)[0] / sum(c)
        assert hull.compute_energy(find_composition(np.repeat(numbers, c))) == pytest.approx(expected, abs=1e-8)


def test_suspicious_candidates_come_after_the_others() -> None:
    energies = np.array([0.03, np.nan, -0.7, 0.01, -0.2, 0.01])
    assert find_suspicious(energies).tolist() == [False, False, True, False, False, False]
    assert rank(energies).tolist() == [4, 3, 5, 0, 2, 1]


@pytest.mark.parametrize(
    ("lines", "match"),
    [
        (["formula,energy"], r":1: no column 'energy_ev_per_atom', expected formula, energy_ev_per_atom$"),
        (
            ["formula,energy_ev_per_atom", "NaCl,-3.4", "nacl,-3.4"],
            r":3: formula is 'nacl', expected one such as Fe2O3$",
        ),
        (["formula,energy_ev_per_atom", "NaCl,low"], r":2: energy_ev_per_atom is 'low', expected a number$"),
        (["formula,energy_ev_per_atom", "NaCl,nan"], r":2: energy_ev_per_atom is 'nan', expected a number$"),
        (["formula,energy_ev_per_atom", "NaCq,-1"], r":2: 'Cq' is not the symbol of an element"),
    ],
)
def test_bad_tables_of_phases_give_file_and_line(tmp_path: Path, lines: list[str], match: str) -> None:
    path = tmp_path / "phases.csv"
    path.write_text("\n".join(lines))
    with pytest.raises(InputError, match=f"^{path}{match}"):
        ReferencePhases.load("Alexandria", str(path))


def test_byte_order_mark_of_a_spreadsheet_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "phases.csv"
    path.write_text("formula,energy_ev_per_atom\nNaCl,-3.4\n", encoding="utf-8-sig")
    assert ReferencePhases.load("Alexandria", str(path)).energies == [(find_composition([11, 17]), -3.4)]


def test_failure_of_the_solver_is_not_a_missing_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    result = OptimizeResult(status=4, success=False, message="numerical difficulties")
    monkeypatch.setattr(convex_hull, "linprog", lambda *_, **__: result)
    with pytest.raises(RuntimeError, match="cannot be computed: numerical difficulties"):
        build_hull({(11,): -1.0}).compute_energy(find_composition([11]))


def test_largest_force_is_a_norm() -> None:
    structure = build_structure(bulk("NaCl", "rocksalt", a=5.6))
    result = RelaxedStructure(structure, False, 3, -1.0, -2.0, np.array([[0.3, 0.0, 0.4], [0.0, 0.45, 0.0]]))
    assert relaxation._describe(0, structure, result).force_max_ev_per_angstrom == pytest.approx(0.5)


def test_unusable_phases_and_heads_are_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        ReferencePhases.load("Alexandria", str(tmp_path / "phases.extxyz"))
    with pytest.raises(InputError, match="cannot be read as a table of reference phases"):
        ReferencePhases.load("Alexandria", str(tmp_path / "phases.csv"))
    with pytest.raises(InputError, match=r"did you mean 'Alexandria'\?"):
        ReferencePhases.load("Alexandrea", None)
    ase.io.write(tmp_path / "water.extxyz", Atoms("OH2", [[0, 0, 0], [1, 0, 0], [0, 1, 0]]))
    with pytest.raises(InputError, match="is not periodic in three directions, expected a crystal"):
        ReferencePhases.load("Alexandria", str(tmp_path / "water.extxyz"))


def test_every_reference_phase_is_on_or_above_the_hull(tmp_path: Path) -> None:
    """The phases of a file are evaluated by the head, and one of a table lowers the hull by what it says."""
    model = checkpoints.load_named("painn-64")[0].double().eval().requires_grad_(False)
    crystals = [bulk("NaCl", "rocksalt", a=5.6), bulk("NaCl", "cesiumchloride", a=3.5), bulk("MgO", "rocksalt", a=4.2)]
    path = tmp_path / "phases.extxyz"
    ase.io.write(path, crystals)
    phases = ReferencePhases.load("Alexandria", str(path))
    energies = phases.compute_energies_above_hull(model, phases.structures)
    assert (energies >= -1e-9).all()
    hull = phases.build_hull(model, {11, 17})
    composition = find_composition([11, 17])
    low = (hull.compute_energy(composition) or 0.0) - 0.3
    lower = replace(phases, energies=[(composition, low)]).compute_energies_above_hull(model, phases.structures)
    difference = lower[:2] - energies[:2]
    np.testing.assert_allclose(difference, 0.3, atol=1e-8)
    assert lower[2] == pytest.approx(energies[2])


def test_elemental_crystals_are_the_usual_ones() -> None:
    names = [find_spacegroup(s) for s in list_elemental_crystals([29])]
    assert sorted(str(n) for n in names) == ["Fd-3m", "Fm-3m", "Im-3m", "P6_3/mmc", "Pm-3m"]


def build_structure(atoms: Atoms) -> Structure:
    return Structure("s", atoms.numbers, atoms.positions, np.array(atoms.cell), (True, True, True))


def build_relaxation(candidate: int, energy: float, volume: float, spacegroup: str | None) -> Relaxation:
    return Relaxation(candidate, True, 9, energy, energy, volume, volume, 0.0, "f", spacegroup)


def test_only_equal_crystals_are_merged() -> None:
    rock_salt = build_structure(bulk("NaCl", "rocksalt", a=5.6))
    doubled = build_structure(bulk("NaCl", "rocksalt", a=5.6) * (2, 1, 1))
    other = build_structure(bulk("KCl", "rocksalt", a=5.6))
    rows = [
        (build_relaxation(4, -3.0, 20.0, "Fm-3m"), rock_salt, None),
        (build_relaxation(9, -3.002, 20.1, "Fm-3m"), doubled, 4),
        (build_relaxation(2, -3.0, 20.0, "Fm-3m"), other, None),
        (build_relaxation(5, -3.0, 20.0, "Pm-3m"), rock_salt, None),
        (build_relaxation(6, -3.1, 20.0, "Fm-3m"), rock_salt, None),
        (build_relaxation(7, -3.0, 22.0, "Fm-3m"), rock_salt, None),
        (build_relaxation(8, -3.0, 20.0, None), rock_salt, None),
        (build_relaxation(1, -3.0, 20.0, None), rock_salt, None),
    ]
    assert find_duplicates([r for r, _, _ in rows], [s for _, s, _ in rows]) == [d for _, _, d in rows]


def test_the_drawing_of_rock_salt_is_its_conventional_cell() -> None:
    """Eight atoms, and the images at the corners, edges and faces: 27 in all."""
    drawing = draw_structure(3, build_structure(bulk("NaCl", "rocksalt", a=5.6)))
    assert sorted(drawing.element) == ["Cl"] * 13 + ["Na"] * 14 or sorted(drawing.element) == ["Cl"] * 14 + ["Na"] * 13
    assert len(drawing.x) == len(drawing.y) == len(drawing.radius) == len(drawing.colour) == 27
    assert len(drawing.cell_x) == len(drawing.cell_y) == 8


def test_best_candidates_are_ordered_by_energy_above_the_hull(tmp_path: Path) -> None:
    phases = tmp_path / "phases.csv"
    phases.write_text("formula,energy_ev_per_atom\nMgO,-100\n")
    parameters: dict[str, Any] = {
        "workload": {"elements": ["O", "Mg", "Na", "Pu"], "volumes": [1.1, 1.3]}, "part_size": 8, "max_candidates": 160,
        "compile": False, "energy_only": True, "retention": {"count": 30}, "reference_phases": str(phases),
    }  # fmt: skip
    log = read_last_events(run_program("screening", parameters, tmp_path).path)
    with (tmp_path / "best.csv").open() as file:
        rows = list(csv.DictReader(file))
    energies = [float(r["energy_above_hull_mev_per_atom"] or "nan") for r in rows]
    known = [(r["suspicious"] == "True", e) for r, e in zip(rows, energies, strict=True) if not np.isnan(e)]
    assert all(a <= b for a, b in pairwise(known))
    assert np.isnan(energies[len(known) :]).all()
    assert {r["chemistry"] for r in rows} <= {"element", "intermetallic", "charge-balanced"}
    oxides = [
        e
        for r, e in zip(rows, energies, strict=True)
        if {"Mg", "O"} <= Formula(r["formula"]).count().keys() and not np.isnan(e)
    ]
    assert all(e > 1000 for e in oxides)
    best = [e for e in log if e["event"] == "best"]
    assert [b["candidate"] for b in best] == [int(r["candidate"]) for r in rows[: len(best)]]
