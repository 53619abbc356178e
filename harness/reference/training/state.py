"""The state of a training run on disk; a resumed run, or a chain of cases, gives the same numbers as a single run.

A state is a sealed file (`harness.reference.models.sealed`): tensors and plain data with a checksum over every byte.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.protocol.case import upgrade_case
from harness.protocol.events import CaseLog
from harness.protocol.programs.train import TrainFacts
from harness.protocol.upgrade import convert_parameters
from harness.reference.data.batch import Batch
from harness.reference.errors import InputError
from harness.reference.models import sealed
from harness.reference.training.loss import Labels

KIND = "gfm-harness state of training"  # in the header of each file, so a new text would make old files unreadable
FORMAT = 3
FILE_NAME = "training.safetensors"
EARLIER_NAME = "training.pt"  # the file of earlier versions
BAD_BATCH = "bad-batch.safetensors"


def get_random_state() -> dict[str, Any]:
    """Return the state of torch's random generator on the CPU, the only one that training uses."""
    return {"cpu": torch.get_rng_state()}


def set_random_state(state: dict[str, Any]) -> None:
    """Restore a state from `get_random_state`."""
    torch.set_rng_state(state["cpu"])


def save(folder: Path, state: dict[str, Any], *, identity: dict[str, Any]) -> None:
    """Write a state atomically, and wait for the disk: after a kill, the file holds this state or the previous one.

    Args:
        folder: The folder of the run.
        state: Nested data with tensors.
        identity: Plain data on the model and its options; `load` refuses the state unless it gets the same.
    """
    _write(folder / FILE_NAME, {"format": FORMAT, "of": identity, "state": state})


def save_part(folder: Path, part: int, step: int, state: dict[str, Any]) -> None:
    """Write the part of a state that a group of ranks holds, and delete all but the group's two latest files.

    Args:
        folder: The folder of the run.
        part: Index of the group.
        step: The training step.
        state: Nested data with tensors.
    """
    _write(_build_part_path(folder, part, step), {"format": FORMAT, "of": {}, "state": state})
    paths = sorted(folder.glob(f"training-{part}-*.safetensors"), key=lambda path: path.stat().st_mtime_ns)
    for path in paths[:-2]:
        path.unlink()


def load_part(folder: Path, part: int, step: int) -> dict[str, Any]:
    """Return the state that `save_part` has written; raise InputError if it is damaged or missing."""
    path = _build_part_path(folder, part, step)
    state = _read(path, identity={})
    if state is None:
        raise InputError(f"{path}: missing, so the training state is incomplete; delete {FILE_NAME} to start anew")
    return state


def save_batch(folder: Path, batch: Batch, labels: Labels, names: Sequence[str]) -> Path:
    """Write a batch whose loss or gradient is not finite, with the names of its structures; return the path."""
    path = folder / BAD_BATCH
    sealed.write(path, "gfm-harness batch", {**batch._asdict(), **labels._asdict()}, {"names": names})
    return path


def _build_part_path(folder: Path, part: int, step: int) -> Path:
    return folder / f"training-{part}-{step}.safetensors"


def _write(path: Path, content: dict[str, Any]) -> None:
    tensors: dict[str, Tensor] = {}
    about = sealed.flatten(content, tensors)
    sealed.write(path, KIND, tensors, about)


def load(folder: Path, *, identity: dict[str, Any]) -> dict[str, Any] | None:
    """Return the state in a folder, or None if there is none.

    Args:
        folder: The folder of the run.
        identity: Plain data on the model and its options, as in `save`.

    Raises:
        InputError: The file is damaged, belongs to another run (the message names the first difference), or was
            written by an earlier version: a silent restart would discard its steps.
    """
    earlier = folder / EARLIER_NAME
    if earlier.exists() and not (folder / FILE_NAME).exists():
        raise InputError(f"{earlier}: the state of an earlier version of this program; delete it to start anew")
    return _read(folder / FILE_NAME, identity=identity)


def _read(path: Path, *, identity: dict[str, Any]) -> dict[str, Any] | None:
    try:
        about = sealed.read_header(path, KIND).about
        content = sealed.unflatten(about, sealed.read_tensors(path))
        saved, state = convert_parameters("train", content["of"]), content["state"]
        is_current = content["format"] == FORMAT
    except FileNotFoundError:
        return None
    except sealed.UnreadableFile as error:
        raise InputError(f"{path}: not a readable training state ({error}); delete it") from None
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: not a readable training state ({type(error).__name__}); delete it") from None
    identity = json.loads(json.dumps(identity))
    if not is_current:
        raise InputError(f"{path}: the state of another version of this program; delete it to start anew")
    for name in sorted(identity.keys() | saved.keys()):
        if identity.get(name) != saved.get(name):
            raise InputError(
                f"{path}: the state of another run, whose {name} is {saved.get(name)!r}, not {identity.get(name)!r};"
                " delete it to start anew"
            )
    return state


MODEL = "model.safetensors"


def find_previous_case(folder: Path) -> Path:
    """Return the folder of the case that this one continues; raise InputError if it does not depend on exactly one."""
    case = upgrade_case(json.loads((folder / "case.json").read_text(encoding="utf-8")))
    required = case.get("depends_on") or []
    if len(required) != 1:
        raise InputError(f"expected one case before this one (`depends_on`), got {len(required)}")
    return folder.resolve().parent / str(required[0])


def copy_finished_model(folder: Path, log: CaseLog, rank: int) -> bool:
    """Return whether an earlier case has finished the training; if so, rank 0 copies its model into this folder."""
    earlier = find_previous_case(folder) / MODEL
    if not earlier.exists():
        return False
    if rank == 0 and not (folder / MODEL).exists():
        temporary = folder / f"{MODEL}.part"
        shutil.copyfile(earlier, temporary)
        os.replace(temporary, folder / MODEL)
    log.record_facts(TrainFacts(completed_in=earlier.parent.name))
    return True


def copy_state(folder: Path) -> None:
    """Copy the state of the previous case, unless this folder has a state; raise InputError if there is none."""
    if (folder / FILE_NAME).exists():
        return
    earlier = find_previous_case(folder)
    if not (earlier / FILE_NAME).exists():
        raise InputError(f"{earlier / FILE_NAME}: no state to continue from")
    # the main file is copied last, since parts without a main file do not count as a state
    for path in [*earlier.glob("training-*.safetensors"), earlier / FILE_NAME]:
        temporary = folder / f"{path.name}.part"
        shutil.copyfile(path, temporary)
        os.replace(temporary, folder / path.name)
