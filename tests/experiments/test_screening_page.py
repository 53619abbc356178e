"""The page on screenings: merged crystals, and their drawings, from the events of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.experiments.screening.metrics import build_tables
from harness.experiments.screening.page import build_relaxed_block, draw_crystals
from harness.protocol.events import CaseLog
from harness.protocol.programs.assessment import RelaxedCandidate, StructureDrawing
from harness.protocol.records import Done, Start
from harness.results.runs import load_runs

CUBE = ([0.0, 3.0, 3.0, 0.0, 0.5, 3.5, 3.5, 0.5], [0.0, 0.0, 0.5, 0.5, 3.0, 3.0, 3.5, 3.5])


def build_relaxation(candidate: int, **fields: Any) -> RelaxedCandidate:
    common: dict[str, Any] = {
        "converged": True, "steps": 3, "initial_energy_ev_per_atom": -1.0, "final_energy_ev_per_atom": -1.1,
        "initial_volume_angstrom3_per_atom": 10.0, "final_volume_angstrom3_per_atom": 11.0,
        "force_max_ev_per_angstrom": 0.01, "formula": "NaCl", "prototype": "A",
    }  # fmt: skip
    return RelaxedCandidate(candidate=candidate, **common | fields)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "screening-local" / "screening-1"
    folder.mkdir(parents=True)
    case = {"id": "1", "name": "screening", "suite": "screening", "program": "screening", "system": "local"}
    (folder / "case.json").write_text(json.dumps(case | {"parameters": {"workload": {}}, "depends_on": []}))
    (folder / "exit_code").write_text("0\n")
    log = CaseLog(folder / "events.jsonl", "screening")
    log.write(Start())
    log.write(build_relaxation(7, spacegroup="Fm-3m", energy_above_hull_mev_per_atom=-12.4, prototype="B"))
    log.write(build_relaxation(3, duplicate_of=7))
    log.write(build_relaxation(5, formula="Mg", prototype="C", energy_above_hull_mev_per_atom=8.0))
    for candidate in (7, 5):
        log.write(
            StructureDrawing(
                candidate=candidate, x=[0.0, 1.5], y=[0.0, 1.5], radius=[0.9, 0.5], colour=["#ab5cf2", "#1ff01f"],
                element=["Na", "Cl"], cell_x=CUBE[0], cell_y=CUBE[1],
            )
        )  # fmt: skip
    log.write(Done())
    return tmp_path / "runs"


def test_equal_crystals_have_one_row_with_the_other_prototypes(runs: Path) -> None:
    relaxed = build_tables(load_runs(runs))["screening_relaxed"]
    assert relaxed.set_index("candidate")["also_reached_from"].to_dict() == {7: "A", 3: "", 5: ""}
    block = build_relaxed_block(relaxed)
    assert [row[block.columns.index("candidate")] for row in block.rows] == ["7", "5"]
    assert block.rows[0][block.columns.index("also reached from")] == "A"


def test_crystals_are_drawn_with_formula_space_group_and_energy(runs: Path, tmp_path: Path) -> None:
    tables = build_tables(load_runs(runs))
    (tmp_path / "figures").mkdir()
    figure = draw_crystals(tables["screening_drawings"], tables["screening_relaxed"], tmp_path / "figures", "crystals")
    picture = (tmp_path / "figures" / "crystals.svg").read_text()
    for text in ("NaCl, Fm-3m", "12 meV/atom below the hull", "Mg, no space group", "8 meV/atom above the hull"):
        assert text in picture
    assert picture.count("#ab5cf2") >= 2
    assert "NaCl, Fm-3m; Mg, no space group" in figure.caption
    assert figure.narrow_height > 0
