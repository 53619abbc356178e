"""Biases of vectors break rotation, in proportion to their size as long as they are small; without them it holds."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.experiments.models.vector_biases import build_vector_biases_table
from harness.experiments.models.vector_biases_page import build_case_section
from harness.protocol.records import Done
from harness.reference.errors import InputError
from harness.reference.models.hydragnn import convert
from harness.results.runs import load_run_folder
from harness.results.tables import Table
from tests.support.programs import run_program

RECORDED = Path(__file__).parents[1] / "models" / "recorded_hydragnn"
SCALES = (0.0, 1e-6, 1e-5, 1.0)


def measure(folder: Path, **parameters: object) -> Table:
    """Run the program and return its table."""
    run_program("vector_biases", {"rotations": 4, "seeds": 2, "scales": SCALES} | parameters, folder).write(Done())
    (folder / "case.json").write_text('{"program": "vector_biases", "id": "1", "name": "case", "suite": "s"}')
    (folder / "exit_code").write_text("0\n")
    record = load_run_folder(str(folder))
    assert record.state == "done", record.error
    return build_vector_biases_table([record])


@pytest.mark.parametrize("is_recorded", [False, True], ids=["untrained", "recorded"])
def test_violation_of_rotation_follows_the_biases(tmp_path: Path, is_recorded: bool) -> None:
    options: dict[str, object] = {"hidden_dim": 8, "num_conv_layers": 2}
    if is_recorded:
        options = {"checkpoint": str(tmp_path / "model.safetensors")}
        convert(RECORDED / "biased" / "model.pk", RECORDED / "biased" / "config.json", tmp_path / "model.safetensors")
    table = measure(tmp_path, **options)
    for kind in ("crystal", "molecule"):
        errors = table[table["kind"] == kind].set_index("scale")["force_error"]
        assert errors[0.0] < 1e-9
        assert errors[1e-5] == pytest.approx(10 * errors[1e-6], rel=0.5)
        assert errors[1.0] > 100 * errors[1e-5]
    text = " ".join(build_case_section(table, tmp_path).paragraphs)
    assert ("The weights are untrained" in text) != is_recorded


def test_checkpoint_without_biases_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="painn-64: the model has no vector biases"):
        measure(tmp_path, checkpoint="painn-64")
