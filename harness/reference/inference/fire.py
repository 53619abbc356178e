"""FIRE for many independent systems at once (Bitzek et al., Phys. Rev. Lett. 97, 170201 (2006)), as in ASE.

With the same forces, every system takes the same steps as with `ase.optimize.FIRE` and its default settings.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from harness.reference.data.structure import Array
from harness.reference.inference.batch_state import BatchState

TIME_STEP, MAX_TIME_STEP = 0.1, 1.0
MAX_DISPLACEMENT = 0.2  # angstrom, Euclidean norm over all coordinates of a system
MIN_DOWNHILL_STEPS = 5
GROWTH, SHRINKAGE = 1.1, 0.5
MIXING, MIXING_DECAY = 0.1, 0.99


def step_fire(state: BatchState, forces: Array, owner: NDArray[np.int64]) -> BatchState:
    """Return the state after a step.

    Args:
        state: The state.
        forces: [m, 3] the negative gradient.
        owner: [m] the system of each row.
    """
    systems = len(state.time_step)

    def sum_products(a: Array, b: Array) -> Array:
        sums: Array = np.bincount(owner, weights=np.einsum("mk,mk->m", a, b), minlength=systems).astype(np.float64)
        return sums

    power, squares = sum_products(forces, state.velocity), sum_products(state.velocity, state.velocity)
    is_downhill = power > 0.0
    has_opposed = ~is_downhill & (squares > 0.0)
    norm = np.sqrt(np.maximum(sum_products(forces, forces), np.finfo(float).tiny))
    along = np.where(is_downhill, state.mixing * np.sqrt(squares) / norm, 0.0)
    rest = np.where(is_downhill, 1.0 - state.mixing, 0.0)
    grows = is_downhill & (state.downhill > MIN_DOWNHILL_STEPS)
    time_step = np.where(grows, np.minimum(state.time_step * GROWTH, MAX_TIME_STEP), state.time_step)
    time_step = np.where(has_opposed, time_step * SHRINKAGE, time_step)
    mixing = np.where(grows, state.mixing * MIXING_DECAY, np.where(has_opposed, MIXING, state.mixing))
    velocity = rest[owner, None] * state.velocity + (along + time_step)[owner, None] * forces
    displacement = time_step[owner, None] * velocity
    length = np.sqrt(sum_products(displacement, displacement))
    limiter = MAX_DISPLACEMENT / np.maximum(length, MAX_DISPLACEMENT)
    downhill = np.where(is_downhill, state.downhill + 1, 0)
    return replace(
        state,
        coordinates=state.coordinates + displacement * limiter[owner, None],
        velocity=velocity,
        steps=state.steps + 1,
        time_step=time_step,
        mixing=mixing,
        downhill=downhill,
    )
