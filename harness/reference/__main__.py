"""`python -m harness.reference CASE_FOLDER`: run the program that the folder's case.json asks for.

Exit codes: 0 done, 2 bad input, 1 anything else. What went wrong is one line on stderr and in the event log.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from pathlib import Path

from harness.events import FILE_NAME, EventLog
from harness.reference.errors import InputError

TRACEBACK = "traceback.txt"
PROGRAMS = {"ladder": "harness.reference.ladder", "train": "harness.reference.training"}


def main(arguments: list[str]) -> int:
    """Run one case and return the exit code."""
    if len(arguments) != 1:
        print("usage: python -m harness.reference CASE_FOLDER", file=sys.stderr)
        return 2
    folder = Path(arguments[0])
    try:
        case = json.loads((folder / "case.json").read_text(encoding="utf-8"))
        program, parameters = case["program"], case["parameters"]
        module_name = PROGRAMS[program]
    except (OSError, ValueError, KeyError, TypeError) as error:
        print(f"error: {folder / 'case.json'}: not a case that can be run ({error!r})", file=sys.stderr)
        return 2
    log = EventLog(folder / FILE_NAME)
    log.write("start", case=case.get("id"), program=program, pid=os.getpid())
    try:
        importlib.import_module(module_name).run(parameters, log, folder)
    except InputError as error:
        return tell(log, str(error), 2)
    except ModuleNotFoundError as error:
        return tell(log, f"{error}; the jobs need what `pip install 'gfm-harness[reference]'` brings", 2)
    except Exception as error:
        (folder / TRACEBACK).write_text(traceback.format_exc(), encoding="utf-8")
        first = (str(error).strip().splitlines() or [""])[0][:500]
        return tell(log, f"{type(error).__name__}: {first} (where it happened: {TRACEBACK})", 1)
    log.write("done")
    return 0


def tell(log: EventLog, message: str, exit_code: int) -> int:
    """Put what went wrong into the event log and on stderr, in one line."""
    log.write("error", message=message)
    print(f"error: {message}", file=sys.stderr)
    return exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
