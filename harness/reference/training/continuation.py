"""One training as a chain of cases, each in a job of its own: a link takes over the state that the last has left."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from harness.protocol.events import EventLog
from harness.reference.errors import InputError
from harness.reference.training.state import FILE_NAME

MODEL = "model.safetensors"


def before(folder: Path) -> Path:
    """The folder of the link before; raises InputError where the case is none's successor."""
    case = json.loads((folder / "case.json").read_text(encoding="utf-8"))
    needed = case.get("after") or []
    if len(needed) != 1:
        raise InputError(f"expected one case before this one (`after`), got {len(needed)}")
    return folder.resolve().parent / str(needed[0])


def ended_before(folder: Path, log: EventLog, rank: int) -> bool:
    """Whether the training has come to its end in an earlier link, whose model rank 0 then puts into this one too."""
    earlier = before(folder) / MODEL
    if not earlier.exists():
        return False
    if rank == 0 and not (folder / MODEL).exists():
        part = folder / f"{MODEL}.part"
        shutil.copyfile(earlier, part)
        os.replace(part, folder / MODEL)
    log.fact("ended_before", earlier.parent.name)
    return True


def take_over(folder: Path) -> None:
    """Copy the state of the link before, unless this one has a state of its own; raises InputError if there is none."""
    if (folder / FILE_NAME).exists():
        return
    earlier = before(folder)
    if not (earlier / FILE_NAME).exists():
        raise InputError(f"{earlier / FILE_NAME}: no state to go on from")
    # the file that counts comes last: parts without it are none
    for path in [*earlier.glob("training-*.safetensors"), earlier / FILE_NAME]:
        part = folder / f"{path.name}.part"
        shutil.copyfile(path, part)
        os.replace(part, folder / path.name)
