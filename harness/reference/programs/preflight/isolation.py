"""Run a check in a separate process, so that a crash or a hang ends that check alone."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection

import msgspec

from harness.protocol.programs.preflight import Finding
from harness.reference.distributed.launch import describe_error
from harness.reference.programs.preflight.check import Check, CheckContext, Outcome

PR_SET_PDEATHSIG = 1
EXIT_GRACE_S = 5.0  # the time in which a process exits after it has answered
EXPECTED_COMPLETION = "the check completes"


def run_isolated(check: Check, context: CheckContext, time_limit_s: float) -> Outcome:
    """Return the outcome of a check; it is a failure if the process ends without a result or exceeds the time limit.

    The process is a fork of this one, since MPI accepts only a rank that the launcher started, or a copy of it. At the
    end, it is killed together with all processes in its process group.
    """
    forking = get_context("fork")
    receiver, sender = forking.Pipe(duplex=False)
    process = forking.Process(target=_answer, args=(check, context, sender))
    sys.stdout.flush()
    sys.stderr.flush()
    process.start()
    sender.close()
    grace_s = EXIT_GRACE_S
    try:
        if not receiver.poll(time_limit_s):
            grace_s = 0.0
            reason = f"no result after {time_limit_s:g} s, the time limit"
            return make_failure(reason, "See `stderr` for where it hangs.")
        return msgspec.msgpack.decode(receiver.recv_bytes(), type=Outcome)
    except (EOFError, OSError):  # no answer, or a part of one
        process.join(EXIT_GRACE_S)
        return make_failure(f"its process ended without a result ({_describe_exit(process.exitcode)})", "See `stderr`.")
    finally:
        receiver.close()
        process.join(grace_s)
        if process.pid is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
        process.join(EXIT_GRACE_S)


def make_failure(reason: str, advice: str) -> Outcome:
    """Return the outcome of a check that did not complete."""
    return Outcome(finding=Finding(verdict="failed", expected=EXPECTED_COMPLETION, observed=reason, advice=advice))


def _answer(check: Check, context: CheckContext, sender: Connection) -> None:
    """Send the outcome of a check; an exception is a failure."""
    os.setpgid(0, 0)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    try:
        outcome = check(context)
    except Exception as error:
        advice = "Correct the cause of this error, which would also occur in campaigns."
        outcome = make_failure(describe_error(error), advice)
    sender.send_bytes(msgspec.msgpack.encode(outcome))
    sender.close()


def _describe_exit(code: int | None) -> str:
    """Return the exit code of a process in words; a negative code is that of a signal."""
    if code is None:
        return "it is still running"
    if code >= 0:
        return f"exit code {code}"
    name = next((known.name for known in signal.Signals if known == -code), str(-code))
    return f"signal {name}"
