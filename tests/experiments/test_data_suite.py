"""The data suite from command line to report: stores are written, then read in all modes on one and two ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pandas as pd
import pytest

from harness.cli.main import main
from harness.config.resources import find_resource
from harness.config.suite import load_suite
from harness.protocol import events
from harness.protocol.parameters import ReadMode
from harness.reference.datasets.catalog import SOURCES
from harness.reference.storage.adios.reader import BPFile
from tests.reference.datasets.official_files.writers import write_ani1x

MODES = get_args(ReadMode)
SUITE = """\
name: small-data
title: Two datasets
program: data
parameters:
  dataset_folder: "{{ settings.dataset_folder }}"
  cutoff: 5.0
  max_neighbours: 20
  workers: 1
  batch_size: 16
  batches: 3
  rounds: 2
matrix:
  action: [convert, read]
  dataset: [mptrj, ani1x, all]
  ranks_per_node: [1, 2]
where:
  - (action == 'read') == (dataset == 'all')
  - action == 'read' or ranks_per_node == 1
depends_on:
  - {cases: {action: read}, required_cases: {action: convert, ranks_per_node: 1}, ignored_axes: [dataset]}
resources: {ranks_per_node: "{{ ranks_per_node }}", walltime_minutes: 10}
"""


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Convert and read two datasets, one from official files and one from its shipped sample."""
    folder = tmp_path_factory.mktemp("data")
    write_ani1x_folder(folder / "official" / "ani1x")
    (folder / "small.yaml").write_text(SUITE)
    args = ["run", str(folder / "small.yaml"), "--out", str(folder / "out"), "-q"]
    assert main([*args, "-S", f"dataset_folder={folder / 'official'}"]) == 0
    return folder / "out"


def write_ani1x_folder(folder: Path) -> None:
    folder.mkdir(parents=True)
    write_ani1x(folder / "ani1x-release.h5", {f"g{k}": 10 for k in range(30)})


def read_facts(out: Path, case: str) -> dict[str, object]:
    (folder,) = (out / "runs" / "small-data-local").glob(f"small-data-{case}-*")
    return {e["name"]: e["value"] for e in events.read(folder / "events.jsonl") if e["event"] == "fact"}


def test_data_suite_converts_all_datasets_and_reads_them_together() -> None:
    suite = load_suite(find_resource("suites", "data"))
    assert suite.matrix["dataset"] == [*(s.slug for s in SOURCES), "all"]
    assert suite.parameters["read_modes"] == list(MODES)


def test_data_suite_prefers_official_files_to_stand_ins(out: Path) -> None:
    table = pd.read_csv(out / "tables" / "datasets.csv").set_index("dataset")
    assert table.loc["ani1x", "data_origin"] == "official"
    assert table.loc["mptrj", "data_origin"] == "sample"
    assert table.loc["ani1x", "structures"] == 300
    assert sum(read_facts(out, "convert-ani1x")["conversion"]["splits"].values()) == 300  # type: ignore[index]


def test_data_suite_measures_every_mode_with_one_and_two_ranks(out: Path) -> None:
    table = pd.read_csv(out / "tables" / "reading.csv")
    assert {(m, r) for m, r in zip(table["read_mode"], table["ranks"], strict=True)} == {
        (m, r) for m in MODES for r in (1, 2)
    }
    assert (table["us_per_sample"] > 0).all()
    assert (table["batches"] == 6).all()
    assert read_facts(out, "read-all-ranks_per_node_2")["reading"][0]["datasets"] == ["ani1x", "mptrj"]  # type: ignore[index]


def test_data_page_names_data_origins_and_levels_of_theory(out: Path) -> None:
    page = (out / "report.md").read_text(encoding="utf-8")
    assert "sample of MPTrj" in page
    assert "files of ANI1x" in page
    assert "wB97X/6-31G(d)" in page


def test_training_reads_the_stores_of_the_data_suite(out: Path) -> None:
    suite = """\
name: on-stores
title: On stores
program: data_parallel
parameters: {precision: fp32, batch_size: 2, steps: 2, epochs: 2,
  model: {hidden_dim: 8, num_conv_layers: 1, dim_headlayers: 8},
  store_folder: "{{ settings.store_folder }}", read_mode: distributed, sampling: assigned}
resources: {ranks_per_node: 2, walltime_minutes: 5}
"""
    (out / "on-stores.yaml").write_text(suite)
    stores = out / "runs" / "small-data-local"
    args = ["run", str(out / "on-stores.yaml"), "--out", str(out / "second"), "-q", "-S", f"store_folder={stores}"]
    assert main(args) == 0
    (log,) = (out / "second" / "runs" / "on-stores-local").glob("*/events.jsonl")
    (workload,) = (e["value"] for e in events.read(log) if e["event"] == "fact" and e["name"] == "workload")
    assert {s["dataset"]: s["data_origin"] for s in workload["datasets"]} == {
        "ani1x": "official",
        "mptrj": "sample of MPTrj",
    }


def test_reading_without_stores_fails_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from harness.reference import __main__ as program

    case = {"id": "1", "program": "data", "parameters": {"action": "read", "dataset": "all"}, "depends_on": []}
    (tmp_path / "case.json").write_text(json.dumps(case))
    assert program.main([str(tmp_path)]) == 2
    message = "no store: this case reads the stores of the conversions on which it depends"
    assert capsys.readouterr().err == f"error: {message}\n"


def test_store_contains_its_data_origin_cutoff_and_level_of_theory(out: Path) -> None:
    (path,) = (out / "runs" / "small-data-local").glob("small-data-convert-mptrj-*/store/mptrj.bp")
    with BPFile(path) as file:
        assert file.attributes["about"]["role"] == "sample of MPTrj"
        assert file.attributes["cutoff_angstrom"] == 5.0
        assert "PBE" in file.attributes["about"]["level"]
