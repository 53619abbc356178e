"""A training run on disk: all that its next step depends on, so that it goes on as if it had not been stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.reference.errors import InputError
from harness.reference.models import sealed

KIND = "gfm-harness state of training"
FORMAT = 2
FILE_NAME, EARLIER_NAME = "training.safetensors", "training.pt"


def random_state() -> dict[str, Any]:
    """Of torch's generator on the CPU; nothing else is drawn from while training."""
    return {"cpu": torch.get_rng_state()}


def set_random_state(state: dict[str, Any]) -> None:
    """Draw on as from where the state was taken."""
    torch.set_rng_state(state["cpu"])


def save(folder: Path, state: dict[str, Any], *, of: dict[str, Any]) -> None:
    """Write atomically and wait for the disk, so that a kill at any moment leaves this state or the one before.

    of: what the state belongs to, as plain data: another model or recipe cannot go on from it.
    """
    _write(folder / FILE_NAME, {"format": FORMAT, "of": of, "state": state})


def save_part(folder: Path, part: int, step: int, state: dict[str, Any]) -> None:
    """Write the part of a state that some ranks alone hold, and let go of those before the last whole state."""
    _write(_part(folder, part, step), {"format": FORMAT, "of": {}, "state": state})
    held = sorted(folder.glob(f"training-{part}-*.safetensors"), key=lambda path: path.stat().st_mtime_ns)
    for path in held[:-2]:
        path.unlink()


def load_part(folder: Path, part: int, step: int) -> dict[str, Any]:
    """What save_part has written; raises InputError if it is damaged or gone."""
    path = _part(folder, part, step)
    found = _read(path, of={})
    if found is None:
        raise InputError(f"{path}: missing, and the state of training is not whole without it; delete {FILE_NAME}")
    return found


def _part(folder: Path, part: int, step: int) -> Path:
    return folder / f"training-{part}-{step}.safetensors"


def _write(path: Path, content: dict[str, Any]) -> None:
    tensors: dict[str, Tensor] = {}
    about = sealed.flatten(content, tensors)
    sealed.write(path, KIND, tensors, about)


def load(folder: Path, *, of: dict[str, Any]) -> dict[str, Any] | None:
    """The state in a folder, or None if there is none.

    Raises InputError for a damaged file, for the state of another run, naming the first thing that differs, and for one
    that an earlier version wrote: to begin anew without a word would throw its steps away.
    """
    earlier = folder / EARLIER_NAME
    if earlier.exists() and not (folder / FILE_NAME).exists():
        raise InputError(f"{earlier}: the state of an earlier version of this program; delete it to start anew")
    return _read(folder / FILE_NAME, of=of)


def _read(path: Path, *, of: dict[str, Any]) -> dict[str, Any] | None:
    try:
        about = sealed.read_header(path, KIND).about
        content = sealed.unflatten(about, sealed.read_tensors(path))
        found, state = content["of"], content["state"]
        known = content["format"] == FORMAT
    except FileNotFoundError:
        return None
    except sealed.Unreadable as error:
        raise InputError(f"{path}: not a readable state of training ({error}); delete it") from None
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: not a readable state of training ({type(error).__name__}); delete it") from None
    of = json.loads(json.dumps(of))
    if not known:
        raise InputError(f"{path}: the state of another version of this program; delete it to start anew")
    for name in sorted(of.keys() | found.keys()):
        if of.get(name) != found.get(name):
            raise InputError(
                f"{path}: the state of another run, whose {name} is {found.get(name)!r}, not {of.get(name)!r};"
                " delete it to start anew"
            )
    return state
