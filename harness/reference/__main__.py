"""`python -m harness.reference CASE_FOLDER`: run the program that the folder's case.json asks for.

Exit codes: 0 done, 2 bad input, 1 anything else. What went wrong is one line on stderr and in the event log. Of a
program that is started once per rank, rank 0 alone writes the event log.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from harness.host.homes import ensure_user
from harness.protocol.events import FILE_NAME, VERSION, EventLog
from harness.reference.distributed import launch
from harness.reference.distributed.launch import LostRank, Place
from harness.reference.errors import InputError
from harness.reference.profiling import fom_client, node_sampler

TRACEBACK = "traceback.txt"
PROGRAMS = {
    "ladder": "harness.reference.programs.ladder.program",
    "train": "harness.reference.programs.train.program",
    "training_steps": "harness.reference.programs.training_steps.program",
    "data_parallel": "harness.reference.programs.scaling.program",
    "data": "harness.reference.programs.data.program",
    "hpo": "harness.reference.programs.hpo.search",
    "precision": "harness.reference.programs.precision.program",
    "screening": "harness.reference.programs.screening.program",
    "transfer": "harness.reference.programs.transfer.program",
}
# Started once per rank; of the others a launcher's variables in the environment say nothing.
PARALLEL = {"train", "data_parallel", "data", "screening", "transfer"}
# A launcher ends all ranks as soon as one has failed: the others leave rank 0 this long to put it on record.
LINGER_S = 3.0


def main(arguments: list[str]) -> int:
    """Run one case and return the exit code."""
    if len(arguments) != 1:
        print("usage: python -m harness.reference CASE_FOLDER", file=sys.stderr)
        return 2
    ensure_user()
    folder = Path(arguments[0])
    try:
        case = json.loads((folder / "case.json").read_text(encoding="utf-8"))
        program, parameters = case["program"], case["parameters"]
        module_name = PROGRAMS[program]
    except (OSError, ValueError, KeyError, TypeError) as error:
        print(f"error: {folder / 'case.json'}: not a case that can be run ({error!r})", file=sys.stderr)
        return 2
    try:
        place = launch.find(os.environ, case.get("ranks")) if program in PARALLEL else Place()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    log = EventLog(folder / FILE_NAME if place.rank == 0 else Path(os.devnull))
    log.write("start", version=VERSION, case=case.get("id"), program=program, pid=os.getpid())
    if place.rank > 0:  # one figure of merit a run
        os.environ.pop(fom_client.URL, None)
    on_gpu = parameters.get("device") == "cuda" or parameters.get("backend") == "nccl"
    sampling = node_sampler.start(folder, place.local_rank, on_gpu=on_gpu)
    exit_code = attempt(module_name, parameters, log, folder, place)
    if exit_code == 0:
        log.write("done")
    if sampling is not None:
        sampling.stop()
    if exit_code != 0 and place.rank > 0:
        time.sleep(LINGER_S)
    return exit_code


def attempt(module_name: str, parameters: dict[str, Any], log: EventLog, folder: Path, place: Place) -> int:
    """Run the program and return the exit code, what went wrong being told."""
    prefix = f"rank {place.rank} of {place.size}: " if place.rank > 0 else ""
    try:
        importlib.import_module(module_name).run(parameters, log, folder)
    except (InputError, LostRank) as error:
        return tell(log, f"{prefix}{error}", 2 if isinstance(error, InputError) else 1, type(error).__name__)
    except ModuleNotFoundError as error:
        return tell(log, f"{prefix}{error}; the jobs need what `pip install 'gfm-harness[reference]'` brings", 2)
    except Exception as error:
        if place.rank > 0:
            return tell(log, f"{prefix}{launch.told(error)}", 1)
        (folder / TRACEBACK).write_text(traceback.format_exc(), encoding="utf-8")
        message = f"{type(error).__name__}: {launch.first_line(error)} (where it happened: {TRACEBACK})"
        return tell(log, message, 1)
    return 0


def tell(log: EventLog, message: str, exit_code: int, kind: str | None = None) -> int:
    """Put what went wrong into the event log and on stderr, in one line."""
    log.write("error", message=message, kind=kind)
    print(f"error: {message}", file=sys.stderr)
    return exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
