"""The state of a run on disk, in a sealed file: a run that was killed continues and gives the same numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from harness.reference.errors import InputError
from harness.reference.models import sealed

FILE_NAME = "dynamics.safetensors"
# Written to the header of each file; do not change it, or old files become unreadable.
KIND = "gfm-harness state of dynamics"


def save(folder: Path, state: dict[str, Any]) -> None:
    """Write nested data with tensors atomically: after a kill, the file holds this state or the previous one."""
    tensors: dict[str, Tensor] = {}
    about = sealed.flatten(state, tensors)
    sealed.write(folder / FILE_NAME, KIND, tensors, about)


def load(folder: Path, identity: str) -> dict[str, Any] | None:
    """Return the state in a folder, or None if there is none.

    Args:
        folder: The folder of the case.
        identity: The digest that the state must have under the key `identity`.

    Raises:
        InputError: The file is damaged, or is the state of other structures, parameters or weights.
    """
    path = folder / FILE_NAME
    try:
        about = sealed.read_header(path, KIND).about
        state: dict[str, Any] = sealed.unflatten(about, sealed.read_tensors(path))
        is_same = state["identity"] == identity
    except FileNotFoundError:
        return None
    except sealed.UnreadableFile as error:
        raise InputError(f"{path}: not a readable state of dynamics ({error}); delete it to start anew") from None
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path}: not a readable state of dynamics ({type(error).__name__}: {error}); delete it to start anew"
        ) from None
    if not is_same:
        raise InputError(
            f"{path}: the state of a run with other structures, parameters or weights; delete it to start anew"
        )
    return state
