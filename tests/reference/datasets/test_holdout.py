"""Structures that satisfy the rule of a holdout are neither trained nor validated on, and are a split of their own."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.protocol.errors import UsageError
from harness.protocol.events import read
from harness.protocol.programs.holdout import SYMBOLS, Holdout
from harness.protocol.programs.train import TrainParameters
from harness.protocol.registry import parse_parameters
from harness.reference.data.structure import Structure
from harness.reference.data.structure_table import tabulate
from harness.reference.datasets import reference_energies
from harness.reference.datasets.__main__ import main
from harness.reference.datasets.collection import Dataset, NeighbourSpec, preload
from harness.reference.datasets.holdout import OUTSIDE, hold_out, is_held_out
from harness.reference.datasets.reference_energies import ElementState
from harness.reference.datasets.splits import SPLITS
from harness.reference.distributed import launch
from harness.reference.errors import InputError
from harness.reference.programs.train import open_splits
from harness.reference.storage.sampling.sampler import SampleIndices
from tests.reference.datasets.official_files.writers import write_ani1x
from tests.support.programs import run_program

SPEC = NeighbourSpec(5.0, None)
ELEMENTS = [1, 3, 6, 8, 16, 17, 26]
structures = st.tuples(st.lists(st.sampled_from(ELEMENTS), min_size=1, max_size=5), st.booleans())
splits_of_structures = st.lists(structures, min_size=1, max_size=12)
rules = st.one_of(
    st.builds(Holdout, elements=st.sampled_from([("S",), ("Fe", "Cl")])),
    st.builds(Holdout, pairs=st.just((("Li", "O"),))),
    st.builds(Holdout, chemistries=st.sampled_from([("oxides",), ("halides", "intermetallics"), ("sulfur-organics",)])),
    st.builds(Holdout, families=st.sampled_from([("elements",), ("molecules",), ("ternaries",)])),
)


def make_dataset(contents: list[tuple[list[int], bool]]) -> Dataset:
    """Return a dataset of structures with these elements, with an energy that identifies each structure."""
    table = tabulate(
        [
            Structure(
                f"s{k}",
                np.array(numbers),
                np.arange(3.0 * len(numbers)).reshape(-1, 3),
                cell=10.0 * np.eye(3) * is_periodic,
                periodic=(is_periodic,) * 3,
                energy=float(k),
                forces=np.zeros((len(numbers), 3)),
            )
            for k, (numbers, is_periodic) in enumerate(contents)
        ]
    )
    references = reference_energies.fit(lambda: iter([table]))
    return Dataset("qm7x", 14, "sample of QM7X", level="PBE0", samples=preload(table), references=references)


def list_contents(dataset: Dataset) -> list[tuple[float, bool, tuple[int, ...]]]:
    """Return energy, periodicity and atomic numbers of each structure."""
    records = dataset.samples.get(np.arange(len(dataset.samples)))
    return [
        (float(r["energy"][0]), bool(r["pbc"].any()), tuple(r["atomic_numbers"][:, 0].astype(int).tolist()))
        for r in records
    ]


def satisfies(rule: Holdout, numbers: tuple[int, ...], is_periodic: bool) -> bool:
    """Return whether a structure satisfies the rule, computed from symbols."""
    symbols = {SYMBOLS[z - 1] for z in numbers}
    metals = symbols & {"Li", "Fe"}
    chemistries = {
        "oxides": bool(metals) and "O" in symbols and "C" not in symbols,
        "halides": bool(metals) and "Cl" in symbols and "C" not in symbols,
        "intermetallics": symbols == {"Li", "Fe"},
        "sulfur-organics": {"C", "H", "S"} <= symbols and not metals,
    }
    families = {"elements": len(symbols) == 1, "ternaries": len(symbols) == 3, "molecules": not is_periodic}
    return (
        bool(symbols & set(rule.elements))
        or any(set(pair) <= symbols for pair in rule.pairs)
        or any(chemistries[name] for name in rule.chemistries)
        or any(families[name] for name in rule.families)
    )


@settings(max_examples=100, deadline=None)
@given(rules, splits_of_structures, splits_of_structures, splits_of_structures)
def test_no_structure_of_the_rule_remains_and_none_is_lost(
    rule: Holdout,
    training: list[tuple[list[int], bool]],
    validation: list[tuple[list[int], bool]],
    test: list[tuple[list[int], bool]],
) -> None:
    contents = [[*training, ([1, 6], True)], validation, test]  # [1, 6] satisfies no rule but "molecules"
    before = dict(zip(SPLITS, map(make_dataset, contents), strict=True))
    after = hold_out(before, rule)
    for split in SPLITS:
        expected = [s for s in list_contents(before[split]) if not satisfies(rule, s[2], s[1])]
        assert list_contents(after[split]) == expected
    expected = [s for s in list_contents(before[SPLITS[2]]) if satisfies(rule, s[2], s[1])]
    assert list_contents(after[OUTSIDE]) == expected
    remaining = {z for _, _, numbers in list_contents(after[SPLITS[0]]) for z in numbers}
    assert set(np.flatnonzero(after[SPLITS[0]].references.state > ElementState.ABSENT)) == remaining
    np.testing.assert_array_equal(after[OUTSIDE].references.energy_ev, before[SPLITS[0]].references.energy_ev)


@pytest.mark.parametrize("datasets", [(), ("omat24",)])
def test_control_keeps_its_training_data_and_is_evaluated_on_the_same_structures(datasets: tuple[str, ...]) -> None:
    contents = [([8], True), ([16, 8], True), ([16], True)]
    before = {split: make_dataset(contents) for split in SPLITS}
    control = hold_out(before, Holdout(elements=("S",), datasets=datasets))
    absent = hold_out(before, Holdout(elements=("S",)))
    assert [len(control[s].samples) for s in (*SPLITS, OUTSIDE)] == [3, 3, 1, 2]
    assert [len(absent[s].samples) for s in (*SPLITS, OUTSIDE)] == [1, 1, 1, 2]
    assert list_contents(control[OUTSIDE]) == list_contents(absent[OUTSIDE])


def test_shipped_sets_lose_the_structures_of_the_rule() -> None:
    rule = Holdout(elements=("S",))
    config = TrainParameters(datasets=("qcml", "ani1x"), holdout=rule)
    splits = open_splits(config, NeighbourSpec(5.0, None), launch.detect_rank({}))
    whole = open_splits(config.model_copy(update={"holdout": None}), NeighbourSpec(5.0, None), launch.detect_rank({}))
    for split in SPLITS:
        records = splits[split].samples.get(np.arange(len(splits[split].samples)))
        assert not any(
            is_held_out(rule, r["atomic_numbers"].reshape(-1).astype(int), r["pbc"].reshape(-1) != 0) for r in records
        )
    assert sum(splits[SPLITS[2]].counts) + sum(splits[OUTSIDE].counts) == sum(whole[SPLITS[2]].counts)
    assert sum(splits[OUTSIDE].counts) > 0


@pytest.mark.parametrize(
    ("holdout", "datasets", "message"),
    [
        ({"elements": ["S"], "datasets": ["qm7"]}, ("qm7x", "qcml"), "'qm7' is not a dataset .*did you mean 'qm7x'"),
        (
            {"families": ["molecules"]},
            ("qm7x",),
            r"holdout \(family molecules\): no training structure of qm7x remains",
        ),
        ({"elements": ["U"]}, ("qm7x",), r"holdout \(element U\): no structure is in the split 'outside'"),
    ],
)
def test_rule_that_fits_no_data_is_refused(holdout: dict[str, object], datasets: tuple[str, ...], message: str) -> None:
    config = TrainParameters.model_validate({"datasets": datasets, "holdout": holdout})
    with pytest.raises(InputError, match=message):
        open_splits(config, NeighbourSpec(5.0, None), launch.detect_rank({}))


def convert(folder: Path, molecules: dict[str, int], stores: Path) -> None:
    """Add a store of the dataset ANI1x to a folder, with these molecules and numbers of conformers."""
    write_ani1x(folder / "files.h5", molecules)
    assert main(["convert", "ani1x", str(folder / "files.h5"), "--to", str(stores), "-q"]) == 0


@pytest.mark.parametrize("read_mode", ["preload", "on_demand"])
def test_stores_lose_the_structures_of_the_rule_as_shipped_sets_do(tmp_path: Path, read_mode: str) -> None:
    assert main(["convert", "qcml", "--to", str(tmp_path), "-q"]) == 0
    parameters = {"store_folder": str(tmp_path), "read_mode": read_mode}
    whole = open_splits(TrainParameters.model_validate(parameters), SPEC, launch.detect_rank({}))
    rule = {"elements": ["O"]}
    splits = open_splits(TrainParameters.model_validate(parameters | {"holdout": rule}), SPEC, launch.detect_rank({}))
    contents = {name: list_contents(splits[name].datasets[0]) for name in splits}
    before = {name: list_contents(whole[name].datasets[0]) for name in whole}
    for split in SPLITS:
        assert contents[split] == [s for s in before[split] if 8 not in s[2]]
    assert contents[OUTSIDE] == [s for s in before[SPLITS[2]] if 8 in s[2]] != []
    write(tmp_path / "new.extxyz", [label("H2O", -10.0)])
    with_file = TrainParameters.model_validate(
        parameters | {"holdout": {"files": {"QCML": str(tmp_path / "new.extxyz")}}}
    )
    outside = open_splits(with_file, SPEC, launch.detect_rank({}))[OUTSIDE]
    (graph,) = outside.load_graphs(SampleIndices(np.zeros(1, int), np.zeros(1, int)))
    assert graph.structure.energy == -10.0  # total, whether or not energies in the store are


def test_store_without_a_split_needs_another_store(tmp_path: Path) -> None:
    stores = tmp_path / "stores"
    convert(tmp_path, {"g0": 4, "g1": 4}, stores)
    config = TrainParameters.model_validate(
        {"store_folder": str(stores), "holdout": {"elements": ["O"], "datasets": []}}
    )
    with pytest.raises(InputError, match=r"stores: no dataset has a testset; training needs"):
        open_splits(config, SPEC, launch.detect_rank({}))
    assert main(["convert", "qcml", "--to", str(stores), "-q"]) == 0
    splits = open_splits(config, SPEC, launch.detect_rank({}))
    assert {name: [d.name for d in c.datasets] for name, c in splits.items()} == {
        "trainset": ["ani1x", "qcml"], "valset": ["ani1x", "qcml"], "testset": ["qcml"], OUTSIDE: ["qcml"],
    }  # fmt: skip


NEW = ("H2O", "CH3OH", "SO2")


def label(name: str, energy: float | None = -1.5, force: float | None = 0.5) -> Atoms:
    """Return a molecule with these labels."""
    atoms = molecule(name)
    labels = {"energy": energy, "forces": None if force is None else np.full((len(atoms), 3), force)}
    atoms.calc = SinglePointCalculator(atoms, **{k: v for k, v in labels.items() if v is not None})
    return atoms


@pytest.mark.parametrize("rule", [{}, {"elements": ["S"]}])
def test_structures_of_a_file_are_outside(tmp_path: Path, rule: dict[str, object]) -> None:
    write(tmp_path / "new.extxyz", [label(name, -10.0 - k) for k, name in enumerate(NEW)])
    config = TrainParameters.model_validate(
        {"datasets": ["qcml", "qm7x"], "holdout": rule | {"files": {"QM7X": str(tmp_path / "new.extxyz")}}}
    )
    splits = open_splits(config, SPEC, launch.detect_rank({}))
    without = config.model_copy(update={"holdout": Holdout.model_validate(rule) if rule else None})
    expected = open_splits(without, SPEC, launch.detect_rank({}))
    assert [splits[s].counts for s in SPLITS] == [expected[s].counts for s in SPLITS]
    *by_rule, from_file = splits[OUTSIDE].datasets
    assert [len(d.samples) for d in by_rule] == (list(expected[OUTSIDE].counts) if rule else [])
    assert (from_file.name, from_file.file) == ("qm7x", tmp_path / "new.extxyz")
    graphs = splits[OUTSIDE].load_graphs(SampleIndices(np.full(3, len(by_rule)), np.arange(3)))
    for k, graph in enumerate(graphs):
        assert graph.structure.numbers.tolist() == molecule(NEW[k]).numbers.tolist()
        assert (graph.structure.head, graph.structure.energy) == (from_file.head, -10.0 - k)
        assert graph.structure.forces == pytest.approx(np.full((len(graph.structure), 3), 0.5))


@pytest.mark.parametrize(
    ("frames", "head", "message"),
    [
        ([label("H2O")], "QM7x", "holdout.files: 'QM7x' is not a head of this run.*did you mean 'QM7X'"),
        ([label("H2O"), label("H2O", energy=None)], "QM7X", "'new.extxyz/1' has no label 'energy'.*only forces"),
        ([label("H2O", energy=np.nan)], "QM7X", "'new.extxyz/0': expected 1 finite numbers as label 'energy'"),
        ([label("H2O", force=np.inf)], "QM7X", "'new.extxyz/0': expected 3 x 3 finite numbers as label 'forces'"),
        ([label("H2O"), label("SO2", force=None)], "QM7X", "'new.extxyz/1' has no forces, but 'new.extxyz/0' has"),
    ],
)
def test_unusable_file_is_refused_before_training(tmp_path: Path, frames: list[Atoms], head: str, message: str) -> None:
    write(tmp_path / "new.extxyz", frames)
    holdout = {"files": {head: str(tmp_path / "new.extxyz")}}
    config = TrainParameters.model_validate({"datasets": ["qm7x"], "holdout": holdout})
    with pytest.raises(InputError, match=message) as error:
        open_splits(config, SPEC, launch.detect_rank({}))
    assert "\n" not in str(error.value)


def test_coincident_atoms_and_truncation_are_refused_before_training(tmp_path: Path) -> None:
    path = tmp_path / "new.extxyz"
    config = TrainParameters.model_validate({"datasets": ["qm7x"], "holdout": {"files": {"QM7X": str(path)}}})
    coincident = label("H2O")
    coincident.positions[1] = coincident.positions[0]
    write(path, [label("SO2"), coincident])
    with pytest.raises(InputError, match=r"'new\.extxyz/1': atoms 0 and 1 coincide"):
        open_splits(config, SPEC, launch.detect_rank({}))
    path.write_text("\n".join(path.read_text().splitlines()[:-1]))
    with pytest.raises(InputError, match=r"new\.extxyz: cannot be read as structures after structure 0"):
        open_splits(config, SPEC, launch.detect_rank({}))


def test_training_logs_the_errors_of_each_structure_of_a_file(tmp_path: Path) -> None:
    uranium = Atoms("U2", positions=[[0, 0, 0], [0, 0, 2.5]])
    uranium.calc = SinglePointCalculator(uranium, energy=-1.0)
    write(tmp_path / "new.extxyz", [*(label(name, force=None) for name in NEW[:2]), uranium])
    file = str(tmp_path / "new.extxyz")
    parameters = {
        "datasets": ["qm7x"], "max_structures_per_dataset": 200, "samples_per_epoch": 16, "epochs": 1, "gate_steps": 0,
        "physics_transformations": 0, "compile": False, "model": {"hidden_dim": 8, "dim_headlayers": 8},
        "holdout": {"files": {"QM7X": file}},
    }  # fmt: skip
    run_program("train", parameters, tmp_path)
    log = list(read(tmp_path / "events.jsonl"))
    outside = [e for e in log if e["event"] == "structure_errors" and e["split"] == "outside"]
    assert [(e["index"], e["head"], e["dataset"], e["file"]) for e in outside] == [
        (k, "QM7X", "qm7x", file) for k in range(2)
    ]
    assert all(e["distance"] > 0 and "force_mae_ev_per_angstrom" not in e for e in outside)
    (fact,) = [e["value"] for e in log if e.get("name") == "holdout"]
    digest = hashlib.sha256(Path(file).read_bytes()).hexdigest()
    names = {"dataset": "qm7x", "head": "QM7X", "file": file, "sha256": digest}
    assert fact == [names | {"outside": 3, "without_reference": 1}]


@pytest.mark.parametrize(
    ("holdout", "message"),
    [
        ({"elements": ["Sx"]}, "'Sx' is not the symbol of an element"),
        ({"elements": []}, "expected at least one of elements, pairs, chemistries and families"),
        ({"pairs": [["Li", "Li"]]}, "expected two different elements, got Li twice"),
        ({"chemistries": ["halide"]}, "did you mean 'halides'"),
        ({"families": ["crystal"]}, "did you mean 'crystals'"),
        ({"element": ["S"]}, "unknown parameter 'holdout.element'.*did you mean 'elements'"),
    ],
)
def test_misspelt_rule_is_one_line(holdout: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        parse_parameters("train", {"holdout": holdout})
    assert "\n" not in str(error.value)
