"""One training as a chain of cases, each in its own job: a case continues from the state of the previous one."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from harness.protocol.events import CaseLog
from harness.protocol.programs.train import TrainFacts
from harness.reference.errors import InputError
from harness.reference.training.state import FILE_NAME

MODEL = "model.safetensors"


def find_previous_case(folder: Path) -> Path:
    """Return the folder of the case that this one continues; raise InputError if it does not depend on exactly one."""
    case = json.loads((folder / "case.json").read_text(encoding="utf-8"))
    required = case.get("after") or []
    if len(required) != 1:
        raise InputError(f"expected one case before this one (`after`), got {len(required)}")
    return folder.resolve().parent / str(required[0])


def copy_finished_model(folder: Path, log: CaseLog, rank: int) -> bool:
    """Return whether an earlier case has finished the training; if so, rank 0 copies its model into this folder."""
    earlier = find_previous_case(folder) / MODEL
    if not earlier.exists():
        return False
    if rank == 0 and not (folder / MODEL).exists():
        part = folder / f"{MODEL}.part"
        shutil.copyfile(earlier, part)
        os.replace(part, folder / MODEL)
    log.record_facts(TrainFacts(ended_before=earlier.parent.name))
    return True


def copy_state(folder: Path) -> None:
    """Copy the state of the previous case, unless this folder has a state; raise InputError if there is none."""
    if (folder / FILE_NAME).exists():
        return
    earlier = find_previous_case(folder)
    if not (earlier / FILE_NAME).exists():
        raise InputError(f"{earlier / FILE_NAME}: no state to continue from")
    # the main file comes last: parts without it do not count as a state
    for path in [*earlier.glob("training-*.safetensors"), earlier / FILE_NAME]:
        part = folder / f"{path.name}.part"
        shutil.copyfile(path, part)
        os.replace(part, folder / path.name)
