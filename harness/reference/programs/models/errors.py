"""The errors of interatomic potentials against labels, and their deviations from their own predictions in FP64."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from harness.protocol.programs.models import ModelsParameters, PotentialErrors
from harness.reference.data.structure import Structure
from harness.reference.datasets.shipped_sets import find_shipped_set, load_structures
from harness.reference.potentials.process import PotentialPrediction, convert_to_voigt

MAX_LABELLED_ATOMS = 40  # largest number of atoms of a labelled structure
MAX_PER_COMPOSITION = 4  # largest number of labelled structures of one composition

# Labelled structures with their predictions.
LabelledPredictions = Sequence[tuple[Structure, PotentialPrediction]]


def load_labelled(config: ModelsParameters) -> dict[str, list[Structure]]:
    """Return small labelled structures of each dataset, by dataset.

    Compositions are in random order, except that those with several structures come first. The structures of one
    composition are adjacent: the first ones of the dataset, at most MAX_PER_COMPOSITION.
    """
    sets = {}
    for name in config.datasets:
        pool = [s for s in load_structures(find_shipped_set(name)) if len(s) <= MAX_LABELLED_ATOMS]
        groups = list(group_by_composition(pool).values())
        order = np.random.default_rng(config.seed).permutation(len(groups))
        # compositions with several structures come first, since only their energies can be compared
        ranked = sorted((groups[k] for k in order), key=lambda group: len(group) < 2)
        sets[name] = [s for group in ranked for s in group[:MAX_PER_COMPOSITION]][: config.structures_per_dataset]
    return sets


def group_by_composition(structures: Iterable[Structure]) -> dict[bytes, list[Structure]]:
    """Return the structures of each composition, by `get_composition`."""
    groups: dict[bytes, list[Structure]] = {}
    for structure in structures:
        groups.setdefault(get_composition(structure), []).append(structure)
    return groups


def get_composition(structure: Structure) -> bytes:
    """Return a key that is equal for structures of the same composition, whatever the order of their atoms."""
    return np.sort(structure.numbers).tobytes()


def compare_with_labels(
    name: str, dataset: str, level: str, pairs: LabelledPredictions, excluded: Mapping[str, int]
) -> PotentialErrors:
    """Return the errors of a model against the labels of a dataset.

    Args:
        name: The name of the model.
        dataset: The name of the dataset.
        level: The level of theory of the labels.
        pairs: The predicted structures with their predictions; may be empty.
        excluded: The number of structures that the model refused, by reason.
    """
    forces = [np.abs(p.forces - s.forces) for s, p in pairs if s.forces is not None]
    stresses = [
        np.abs(p.stress - convert_to_voigt(s.stress)) for s, p in pairs if p.stress is not None and s.stress is not None
    ]
    return PotentialErrors(
        model=name,
        reference="labels",
        dataset=dataset,
        level_of_theory=level,
        structures=len(pairs),
        energy_mae_ev_per_atom=compute_energy_error_spread(pairs),
        force_mae_ev_per_angstrom=float(np.concatenate(forces).mean()) if forces else None,
        force_max_ev_per_angstrom=float(np.concatenate(forces).max()) if forces else None,
        stress_mae_ev_per_angstrom3=float(np.mean(stresses)) if stresses else None,
        excluded=dict(excluded) or None,
    )


def compute_energy_error_spread(pairs: LabelledPredictions) -> float | None:
    """Return the mean absolute deviation of the errors of energies (eV/atom) from their mean over equal compositions.

    Reference energies cancel in these deviations. In small groups they underestimate the error, since the mean is
    fitted to the same errors: for a pair, each is half the difference. Structures without an energy are left out. The
    result is None if no two of the others have the same composition.
    """
    errors: dict[bytes, list[float]] = {}
    for structure, prediction in pairs:
        if structure.energy is not None:
            error = (prediction.energy - structure.energy) / len(structure)
            errors.setdefault(get_composition(structure), []).append(error)
    differences = [np.abs(np.array(group) - np.mean(group)) for group in errors.values() if len(group) > 1]
    return float(np.concatenate(differences).mean()) if differences else None


def compare_with_fp64(
    name: str,
    dataset: str,
    level: str,
    pairs: LabelledPredictions,
    references: Sequence[PotentialPrediction | str],
) -> PotentialErrors:
    """Return the deviations of a model from its own FP64 predictions.

    Args:
        name: The name of the model.
        dataset: The name of the dataset.
        level: The level of theory of the labels.
        pairs: The predicted structures with their predictions.
        references: The FP64 prediction of each, or the reason why there is none.
    """
    compared = [(s, p, r) for (s, p), r in zip(pairs, references, strict=True) if not isinstance(r, str)]
    excluded = Counter(f"in FP64: {reason}" for reason in references if isinstance(reason, str))
    forces = [np.abs(p.forces - r.forces) for _, p, r in compared]
    energies = [abs(p.energy - r.energy) / len(s) for s, p, r in compared]
    return PotentialErrors(
        model=name,
        reference="fp64",
        dataset=dataset,
        level_of_theory=level,
        structures=len(compared),
        energy_mae_ev_per_atom=float(np.mean(energies)) if energies else None,
        force_mae_ev_per_angstrom=float(np.concatenate(forces).mean()) if forces else None,
        force_max_ev_per_angstrom=float(np.concatenate(forces).max()) if forces else None,
        excluded=dict(excluded) or None,
    )
