"""`python -m harness.reference CASE_FOLDER`: run the program that the folder's case.json asks for.

Exit codes: 0 done, 2 bad input, 1 anything else. An error is one line on stderr and in the event log. Rank 0 alone
writes the event log of a program that is started once per rank.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path
from types import ModuleType

from harness.host.process import set_missing_user_variables
from harness.protocol.case import upgrade_case
from harness.protocol.errors import UsageError, did_you_mean, shorten
from harness.protocol.events import EVENTS_FILE, VERSION, CaseLog
from harness.protocol.parameters import Parameters
from harness.protocol.records import Done, Failure, Start
from harness.protocol.registry import load_programs, parse_parameters
from harness.protocol.text import sanitize_line
from harness.reference.distributed import launch
from harness.reference.distributed.launch import LostRank, RankInfo
from harness.reference.errors import InputError
from harness.reference.profiling import file_use, fom_client, node_sampler

TRACEBACK = "traceback.txt"
# The folder and the text of the case that a job script has started, so that its ranks need not open the file.
CASE_VARIABLE = "GFM_HARNESS_CASE"
# A launcher ends all ranks as soon as one exits with an error, so other ranks give rank 0 this long to log its own.
LINGER_S = 3.0


def main(arguments: list[str]) -> int:
    """Run one case and return the exit code."""
    if len(arguments) != 1:
        print("usage: python -m harness.reference CASE_FOLDER", file=sys.stderr)
        return 2
    set_missing_user_variables()
    try:
        return run_case(Path(arguments[0]))
    except OSError as error:  # a full disk has no room for the event log
        print_error(launch.describe_error(error))
        return 1


def run_case(folder: Path) -> int:
    """Run the case in a folder and return the exit code."""
    file_use.start(folder)
    path = folder / "case.json"
    try:
        case = upgrade_case(json.loads(read_case_text(path)))
    except (OSError, ValueError) as error:
        return reject(f"{path}: not a case that can be run ({error!r})")
    program = case.get("program") if isinstance(case, dict) else None
    try:
        programs = load_programs()
        if not isinstance(program, str) or program not in programs:
            problem = "'program' is missing" if program is None else f"unknown program {shorten(program)}"
            return reject(f"{path}: not a case that can be run ({problem}{did_you_mean(str(program), programs)})")
        # a program that is not started per rank ignores the variables of a launcher
        rank_info = (
            launch.detect_rank(os.environ, case.get("ranks")) if programs[program].runs_on_all_ranks else RankInfo()
        )
    except (InputError, UsageError) as error:
        return reject(str(error))
    log = CaseLog(folder / EVENTS_FILE if rank_info.rank == 0 else Path(os.devnull), program)
    log.write(Start(version=VERSION, case=str(case.get("id", "")), program=program, pid=os.getpid()))
    try:
        parameters = parse_parameters(program, case.get("parameters"))
    except UsageError as error:
        return report_failure(log, f"{path.name}: {error}", 2)
    if rank_info.rank > 0:  # only rank 0 posts figures of merit
        os.environ.pop(fom_client.URL, None)
    on_gpu = getattr(parameters, "device", None) == "cuda" or getattr(parameters, "backend", None) == "nccl"
    sampler = node_sampler.start(folder, rank_info.local_rank, on_gpu=on_gpu)
    exit_code = run_program(programs[program].find_module(parameters), parameters, log, folder, rank_info)
    if exit_code == 0:
        log.write(Done())
    if sampler is not None:
        sampler.stop()
    if exit_code != 0 and rank_info.rank > 0:
        time.sleep(LINGER_S)
    return exit_code


def read_case_text(path: Path) -> str:
    """Return the text of a case, from the environment if the job script has passed it, or else from its file."""
    folder, _, text = os.environ.pop(CASE_VARIABLE, "").partition("\t")
    return text if text and folder == str(path.parent) else path.read_text(encoding="utf-8")


def reject(message: str) -> int:
    """Print why the input is not valid, and return the exit code."""
    print_error(sanitize_line(message))
    return 2


def print_error(message: str) -> None:
    """Print an error to stderr as one line, unless stderr is a file on a full disk."""
    with suppress(OSError):
        print(f"error: {message}", file=sys.stderr)


def run_program(module_name: str, parameters: Parameters, log: CaseLog, folder: Path, rank_info: RankInfo) -> int:
    """Run the program, report an error, and return the exit code."""
    prefix = f"rank {rank_info.rank} of {rank_info.size}: " if rank_info.rank > 0 else ""
    try:
        import_program(module_name).run(parameters, log, folder)
    except (InputError, LostRank) as error:
        return report_failure(log, f"{prefix}{error}", 2 if isinstance(error, InputError) else 1, type(error).__name__)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and not str(error.name).startswith("harness"):
            needs = "the jobs need what `pip install 'gfm-harness[reference]'` installs"
            return report_failure(log, f"{prefix}{error}; {needs}", 2)
        if rank_info.rank > 0:
            return report_failure(log, f"{prefix}{launch.describe_error(error)}", 1)
        return report_failure(log, f"{launch.describe_error(error)}; {save_traceback(folder)}", 1)
    return 0


def import_program(module_name: str) -> ModuleType:
    """Import a program without garbage collection, and exclude the imported objects from any later one.

    A program imports some 200,000 objects that stay; visiting them again and again takes a third of the time.
    """
    gc.disable()
    try:
        return importlib.import_module(module_name)
    finally:
        gc.freeze()
        gc.enable()


def save_traceback(folder: Path) -> str:
    """Write the traceback of the current exception to a file, and return where it is."""
    try:
        (folder / TRACEBACK).write_text(traceback.format_exc(), encoding="utf-8")
    except OSError as error:
        return f"its traceback cannot be written ({error.strerror})"
    return f"traceback: {TRACEBACK}"


def report_failure(log: CaseLog, message: str, exit_code: int, kind: str | None = None) -> int:
    """Write an error to stderr as one line and to the event log, unless the disk is full, and return the exit code."""
    message = sanitize_line(message)
    print_error(message)
    with suppress(OSError):
        log.write(Failure(message=message, kind=kind))
    return exit_code


if __name__ == "__main__":
    exit_code = main(sys.argv[1:])
    gc.freeze()  # the interpreter collects garbage once more when it ends, which takes half a second
    sys.exit(exit_code)
