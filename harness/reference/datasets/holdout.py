"""Splits of datasets from which a rule holds structures out of training, and new structures from files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from harness.protocol.errors import did_you_mean
from harness.protocol.programs.holdout import SYMBOLS, Holdout
from harness.reference.data.neighbours import NeighbourSpec
from harness.reference.data.structure_table import tabulate
from harness.reference.datasets.catalog import HEADS
from harness.reference.datasets.collection import Dataset, preload
from harness.reference.datasets.reference_energies import ELEMENT_SLOTS, ElementState
from harness.reference.datasets.splits import SPLITS
from harness.reference.datasets.user_files import read_labelled_structures
from harness.reference.errors import InputError
from harness.reference.storage.samples import FilteredSamples, Samples

OUTSIDE = "outside"
BATCH = 1000  # samples that are read at once
LARGE_ATOMS = 40  # of the family `large`, at least
HALOGENS, CHALCOGENS, PNICTOGENS = {9, 17, 35, 53}, {16, 34, 52}, {7, 15, 33, 51}
# hydrogen, metalloids B, Si, Ge, As, Sb, Te, At, and the non-metals
NON_METALS = {1, 2, 5, 6, 7, 8, 9, 10, 14, 15, 16, 17, 18, 32, 33, 34, 35, 36, 51, 52, 53, 54, 85, 86}


def is_held_out(rule: Holdout, numbers: NDArray[np.int64], periodic: NDArray[np.bool_]) -> bool:
    """Return whether a structure satisfies the rule.

    Args:
        rule: The rule.
        numbers: [n] atomic numbers.
        periodic: [3] whether the structure is periodic along each lattice vector.
    """
    elements = set(numbers.tolist())
    symbols = {SYMBOLS[z - 1] for z in elements}
    return (
        any(symbol in symbols for symbol in rule.elements)
        or any(symbols.issuperset(pair) for pair in rule.pairs)
        or any(name in _list_chemistries(elements) for name in rule.chemistries)
        or any(name in _list_families(elements, len(numbers), int(periodic.sum())) for name in rule.families)
    )


def _list_chemistries(elements: set[int]) -> set[str]:
    """Return the classes of a composition; the classes of anions contain a metal and no carbon."""
    metals = elements - NON_METALS
    if metals == elements:
        return {"intermetallics"} if len(elements) > 1 else set()
    if {1, 6, 16} <= elements and not metals:
        return {"sulfur-organics"}
    if not metals or 6 in elements:
        return set()
    anions = {"oxides": {8}, "halides": HALOGENS, "chalcogenides": CHALCOGENS, "pnictides": PNICTOGENS}
    return {name for name, members in anions.items() if members & elements}


def _list_families(elements: set[int], atoms: int, periodic_directions: int) -> set[str]:
    """Return the families of a structure; one that is periodic along one or two vectors counts as a slab."""
    by_elements = {1: "elements", 2: "binaries", 3: "ternaries"}.get(len(elements))
    by_period = {0: "molecules", 3: "crystals"}.get(periodic_directions, "slabs")
    return {by_period, *([by_elements] if by_elements else []), *(["large"] if atoms >= LARGE_ATOMS else [])}


@dataclass(frozen=True)
class _Scan:
    """The result of a scan of a split.

    Attributes:
        held_out: [k] indices of the structures that satisfy the rule.
        elements: [119] whether each atomic number occurs in the other structures.
    """

    held_out: NDArray[np.int64]
    elements: NDArray[np.bool_]


def _scan(samples: Samples, rule: Holdout) -> _Scan:
    """Read all samples of a split, and find those that satisfy the rule."""
    held_out, elements = [], np.zeros(ELEMENT_SLOTS, dtype=bool)
    for first in range(0, len(samples), BATCH):
        indices = np.arange(first, min(first + BATCH, len(samples)))
        for k, record in zip(indices.tolist(), samples.get(indices), strict=True):
            numbers = record["atomic_numbers"].reshape(-1).astype(np.int64)
            if is_held_out(rule, numbers, record["pbc"].reshape(-1) != 0):
                held_out.append(k)
            else:
                elements[numbers] = True
    return _Scan(np.array(held_out, dtype=np.int64), elements)


def hold_out(splits: Mapping[str, Dataset], rule: Holdout) -> dict[str, Dataset]:
    """Return the splits of one dataset without the structures that satisfy the rule, and these structures as a split.

    Training and validation lose them if the rule applies to the dataset. The test set is divided in any case: its
    structures that satisfy the rule become the split OUTSIDE. The reference energies remain those of the fit to the
    whole training split, because no fit can determine the energy of an element that its data lack; an element that no
    remaining training structure has counts as absent.

    Args:
        splits: The splits of the dataset, by name.
        rule: The rule.

    Raises:
        InputError: No training structure remains.
    """
    training, _, test = SPLITS
    applies = rule.datasets is None or splits[training].name in rule.datasets
    scans = {name: _scan(dataset.samples, rule) for name, dataset in splits.items() if applies or name == test}
    references = splits[training].references
    if applies:
        if len(scans[training].held_out) == len(splits[training].samples):
            raise InputError(
                f"holdout ({rule.describe()}): no training structure of {splits[training].name} remains; leave it out"
                " of `datasets`"
            )
        state = np.where(scans[training].elements, references.state, ElementState.ABSENT)
        references = replace(references, state=state)
    parts = {name: replace(dataset, references=references) for name, dataset in splits.items()}
    remaining = {
        name: replace(part, samples=FilteredSamples(part.samples, scans[name].held_out.tolist()))
        if name in scans
        else part
        for name, part in parts.items()
    }
    if test not in parts:
        return remaining
    others = np.setdiff1d(np.arange(len(parts[test].samples)), scans[test].held_out)
    return remaining | {OUTSIDE: replace(parts[test], samples=FilteredSamples(parts[test].samples, others.tolist()))}


def open_files(rule: Holdout, training: Sequence[Dataset], neighbour_spec: NeighbourSpec) -> list[Dataset]:
    """Return the structures of the rule's files, with the reference energies of the heads that they are labels for.

    Args:
        rule: The rule.
        training: The training sets, after structures are held out.
        neighbour_spec: The definition of neighbours, with which each structure is tested.

    Raises:
        InputError: A head is not trained, or a file or one of its structures is unusable.
    """
    heads = {HEADS[dataset.head]: dataset for dataset in training}
    datasets = []
    for head, name in rule.files.items():
        if head not in heads:
            raise InputError(f"holdout.files: {head!r} is not a head of this run{did_you_mean(head, heads)}")
        path = Path(name)
        structures = read_labelled_structures(path)
        for structure in structures:
            neighbour_spec.build_list(structure)
        table = tabulate(structures)
        datasets.append(
            replace(
                heads[head],
                samples=preload(table),
                has_edges=False,
                is_referenced=False,
                has_forces=table.forces is not None,
                file=path,
            )
        )
    return datasets


def check_datasets(rule: Holdout, names: list[str]) -> None:
    """Raise InputError if the rule names a dataset that the run does not train on."""
    for name in rule.datasets or ():
        if name not in names:
            raise InputError(f"holdout.datasets: {name!r} is not a dataset of this run{did_you_mean(name, names)}")
