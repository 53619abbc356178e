"""`python -m harness.reference CASE_FOLDER`: run the program that the folder's case.json asks for.

Exit codes: 0 done, 2 bad input (one line on stderr, the same in the event log), 1 anything else.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path

from harness.events import FILE_NAME, EventLog
from harness.reference.errors import InputError

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
        log.write("error", message=str(error))
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Exception as error:
        log.write("error", message=f"{type(error).__name__}: {error}"[:2000])
        raise
    log.write("done")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
