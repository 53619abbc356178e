"""The shipped labels of crystals, from which the risk of a model is fitted and calibrated, and on which it is tested.

`python -m tests.builders.risk_labels` computes them. Different splits have different prototypes and different sets of
elements.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from harness.reference.data.structure import Structure
from harness.reference.errors import InputError
from harness.reference.models import sealed

LabelSplit = Literal["fit", "calibration", "test"]
SPLITS: tuple[LabelSplit, ...] = ("fit", "calibration", "test")
LABELS_FILE = Path(__file__).parent / "shipped" / "gfn1-crystals.safetensors"
KIND = "gfm-harness risk labels"
MIN_FORMATION_EV_PER_ATOM = -5.0


@dataclass(frozen=True)
class RiskLabel:
    """A crystal with its energy in eV, the split that it belongs to, and the tag of its prototype."""

    structure: Structure
    energy_ev: float
    split: LabelSplit
    prototype: str


@dataclass(frozen=True)
class RiskLabels:
    """Labelled crystals, and the head that was trained at their level of theory."""

    head: str
    level_of_theory: str
    labels: Sequence[RiskLabel]

    def select(self, split: LabelSplit) -> list[RiskLabel]:
        """Return the labels of a split."""
        return [label for label in self.labels if label.split == split]


def write_labels(path: Path, labels: Sequence[RiskLabel], about: Mapping[str, object]) -> None:
    """Write labelled crystals, whose positions and cells are in single precision, to a file.

    Args:
        path: The file.
        labels: The labels.
        about: `head`, `level_of_theory` and notes on the calculations, as plain data.
    """
    tags = sorted({label.prototype for label in labels})
    structures = [label.structure for label in labels]
    tensors = {
        "sizes": torch.tensor([len(s) for s in structures], dtype=torch.uint8),
        "numbers": torch.from_numpy(np.concatenate([s.numbers for s in structures]).astype(np.uint8)),
        "positions": torch.from_numpy(np.concatenate([s.positions for s in structures]).astype(np.float32)),
        "cells": torch.from_numpy(np.stack([s.cell for s in structures]).astype(np.float32)),
        "energy_ev": torch.tensor([label.energy_ev for label in labels], dtype=torch.float64),
        "split": torch.tensor([SPLITS.index(label.split) for label in labels], dtype=torch.uint8),
        "prototype": torch.tensor([tags.index(label.prototype) for label in labels], dtype=torch.int16),
    }
    sealed.write(path, KIND, tensors, {**about, "prototypes": tags})


def read_labels(path: Path = LABELS_FILE) -> RiskLabels:
    """Read labelled crystals; raise InputError if the file is missing, damaged or of another kind."""
    try:
        about = sealed.read_header(path, KIND).about
        arrays = {name: tensor.numpy() for name, tensor in sealed.read_tensors(path).items()}
    except FileNotFoundError:
        raise InputError(f"{path}: no such file of labels") from None
    except sealed.UnreadableFile as error:
        raise InputError(f"{path}: not a readable file of labels ({error})") from None
    ends = np.cumsum(arrays["sizes"].astype(int))
    labels = []
    for k, (size, stop) in enumerate(zip(arrays["sizes"].astype(int), ends, strict=True)):
        structure = Structure(
            name=f"label {k}",
            numbers=arrays["numbers"][stop - size : stop].astype(np.int64),
            positions=arrays["positions"][stop - size : stop].astype(float),
            cell=arrays["cells"][k].astype(float),
            periodic=(True, True, True),
        )
        prototype = about["prototypes"][arrays["prototype"][k]]
        labels.append(RiskLabel(structure, float(arrays["energy_ev"][k]), SPLITS[arrays["split"][k]], prototype))
    return RiskLabels(about["head"], about["level_of_theory"], labels)


def is_plausible(residual_ev_per_atom: float) -> bool:
    """Return whether a label, relative to the reference energies of its elements, can be a converged energy.

    The self-consistent field of GFN1-xTB sometimes collapses to an energy far below that of any compound. The formation
    energies of the most stable compounds, fluorides and oxides, are above -5 eV/atom.
    """
    return residual_ev_per_atom > MIN_FORMATION_EV_PER_ATOM
