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

from harness.host.process import ensure_user
from harness.protocol.errors import UsageError, did_you_mean, shortened
from harness.protocol.events import FILE_NAME, VERSION, CaseLog
from harness.protocol.parameters import Parameters
from harness.protocol.records import Done, Failure, Start
from harness.protocol.registry import load_programs, parse_parameters
from harness.protocol.text import sanitize_line
from harness.reference.distributed import launch
from harness.reference.distributed.launch import LostRank, RankInfo
from harness.reference.errors import InputError
from harness.reference.profiling import fom_client, node_sampler

TRACEBACK = "traceback.txt"
# A launcher ends all ranks as soon as one has failed: the others leave rank 0 this long to put it on record.
LINGER_S = 3.0


def main(arguments: list[str]) -> int:
    """Run one case and return the exit code."""
    if len(arguments) != 1:
        print("usage: python -m harness.reference CASE_FOLDER", file=sys.stderr)
        return 2
    ensure_user()
    folder = Path(arguments[0])
    path = folder / "case.json"
    try:
        case = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return reject(f"{path}: not a case that can be run ({error!r})")
    program = case.get("program") if isinstance(case, dict) else None
    try:
        programs = load_programs()
        if not isinstance(program, str) or program not in programs:
            what = "'program' is missing" if program is None else f"unknown program {shortened(program)}"
            return reject(f"{path}: not a case that can be run ({what}{did_you_mean(str(program), programs)})")
        # of a program that is not started per rank, the variables of a launcher say nothing
        place = launch.detect_rank(os.environ, case.get("ranks")) if programs[program].has_ranks else RankInfo()
    except (InputError, UsageError) as error:
        return reject(str(error))
    log = CaseLog(folder / FILE_NAME if place.rank == 0 else Path(os.devnull), program)
    log.write(Start(version=VERSION, case=str(case.get("id", "")), program=program, pid=os.getpid()))
    try:
        parameters = parse_parameters(program, case.get("parameters"))
    except UsageError as error:
        return tell(log, f"{path.name}: {error}", 2)
    if place.rank > 0:  # one figure of merit a run
        os.environ.pop(fom_client.URL, None)
    on_gpu = getattr(parameters, "device", None) == "cuda" or getattr(parameters, "backend", None) == "nccl"
    sampling = node_sampler.start(folder, place.local_rank, on_gpu=on_gpu)
    exit_code = attempt(programs[program].module, parameters, log, folder, place)
    if exit_code == 0:
        log.write(Done())
    if sampling is not None:
        sampling.stop()
    if exit_code != 0 and place.rank > 0:
        time.sleep(LINGER_S)
    return exit_code


def reject(message: str) -> int:
    """Print what is wrong with the input and return the exit code."""
    print(f"error: {sanitize_line(message)}", file=sys.stderr)
    return 2


def attempt(module_name: str, parameters: Parameters, log: CaseLog, folder: Path, place: RankInfo) -> int:
    """Run the program and return the exit code; report what went wrong."""
    prefix = f"rank {place.rank} of {place.size}: " if place.rank > 0 else ""
    try:
        importlib.import_module(module_name).run(parameters, log, folder)
    except (InputError, LostRank) as error:
        return tell(log, f"{prefix}{error}", 2 if isinstance(error, InputError) else 1, type(error).__name__)
    except ModuleNotFoundError as error:
        return tell(log, f"{prefix}{error}; the jobs need what `pip install 'gfm-harness[reference]'` brings", 2)
    except Exception as error:
        if place.rank > 0:
            return tell(log, f"{prefix}{launch.describe_error(error)}", 1)
        (folder / TRACEBACK).write_text(traceback.format_exc(), encoding="utf-8")
        return tell(log, f"{launch.describe_error(error)}; traceback: {TRACEBACK}", 1)
    return 0


def tell(log: CaseLog, message: str, exit_code: int, kind: str | None = None) -> int:
    """Write what went wrong into the event log and to stderr, as one line, and return the exit code."""
    log.write(Failure(message=message, kind=kind))
    print(f"error: {message}", file=sys.stderr)
    return exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
