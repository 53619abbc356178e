"""The quantities whose errors are compared with those of a trivial baseline: energies per atom and forces.

The baseline of energies is a linear model of the composition, and that of forces predicts zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

# The columns that describe a head in the tables of errors.
HEAD = ("head", "dataset", "data_origin", "level_of_theory", "structures", "structures_with_unseen_elements")


@dataclass(frozen=True)
class Quantity:
    """A predicted quantity, and the columns with its errors.

    Attributes:
        target: the largest ratio of the MAE to the MAE of the baseline that meets the target.
        mean_mae: the column with the MAE of predicting the mean of the training set, if there is one.
    """

    name: str
    mae: str
    rmse: str
    baseline_mae: str
    baseline_rmse: str
    target: float
    mean_mae: str | None = None


ENERGY = Quantity(
    name="energy",
    mae="energy_mae_ev_per_atom",
    rmse="energy_rmse_ev_per_atom",
    baseline_mae="composition_mae_ev_per_atom",
    baseline_rmse="composition_rmse_ev_per_atom",
    target=1 / 3,
    mean_mae="mean_mae_ev_per_atom",
)
FORCES = Quantity(
    name="forces",
    mae="force_mae_ev_per_angstrom",
    rmse="force_rmse_ev_per_angstrom",
    baseline_mae="zero_force_mae_ev_per_angstrom",
    baseline_rmse="zero_force_rmse_ev_per_angstrom",
    target=1 / 2,
)
QUANTITIES = (ENERGY, FORCES)


def average_by_seed(rows: pd.DataFrame, column: str) -> pd.Series[float]:
    """Return the mean of the column for each seed; NaN if one of the values is NaN."""
    codes, seeds = pd.factorize(rows["seed"], sort=True, use_na_sentinel=False)
    sums = np.bincount(codes, weights=rows[column].to_numpy(dtype=float))
    return pd.Series(sums / np.bincount(codes), index=pd.Index(seeds, name="seed"))
