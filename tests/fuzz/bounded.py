"""Run a function on random inputs, within limits of time and memory, in a separate process.

The inputs are the same in every run, so that a change is judged by itself; `FUZZ_SEED=random` draws new ones, and
`FUZZ_SEED=<number>`, which is part of every failure, repeats them. `FUZZ_COUNT` sets the number of inputs.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import resource
import shutil
import signal
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType

_seed = os.environ.get("FUZZ_SEED", "1")
SEED = random.SystemRandom().randrange(2**32) if _seed == "random" else int(_seed)
COUNT = int(os.environ.get("FUZZ_COUNT", "1000"))
LIMIT_S = 60
LIMIT_BYTES = 2 << 30


def run_fuzzer(examine: Callable[[random.Random, Path], None], folder: Path, count: int = COUNT) -> None:
    """Call `examine(rng, folder)` for each input, and fail at the first input for which it raises an error.

    `examine` draws one input from `rng`, writes its files below `folder` (empty at each call) and processes the input.
    It raises an error for anything that must not happen and catches errors that users may see. An input that takes more
    than 60 s, or increases the memory of the process by more than 2 GiB, fails too.
    """
    print(f"FUZZ_SEED={SEED}")
    result_file = folder / "verdict"
    process = multiprocessing.get_context("fork").Process(
        target=_examine_all, args=(examine, folder, result_file, count)
    )
    process.start()
    process.join()
    message = result_file.read_text() if result_file.exists() else f"the process ended with {process.exitcode}"
    assert message == "passed", f"FUZZ_SEED={SEED} {message}"


def _examine_all(examine: Callable[[random.Random, Path], None], folder: Path, result_file: Path, count: int) -> None:
    memory_before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    signal.signal(signal.SIGALRM, _time_out)
    for number in range(count):
        result_file.write_text(f"input {number}: the process was killed")
        input_folder = folder / f"input-{number}"
        input_folder.mkdir()
        signal.alarm(LIMIT_S)
        try:
            examine(random.Random(f"{SEED}-{number}"), input_folder)
            growth = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - memory_before
            assert growth < LIMIT_BYTES, f"memory grew by {growth >> 20} MiB"
        except BaseException:
            signal.alarm(0)
            result_file.write_text(f"input {number} (left in {input_folder}):\n{traceback.format_exc()}")
            os._exit(1)
        signal.alarm(0)
        shutil.rmtree(input_folder, ignore_errors=True)
    result_file.write_text("passed")
    os._exit(0)


def _time_out(number: int, frame: FrameType | None) -> None:
    raise TimeoutError(f"no answer within {LIMIT_S} s")
