"""The drills: the fault that each plants, what the harness must report about it, and how the case must continue."""

from __future__ import annotations

import re
import subprocess
import time
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from harness.drills import faults
from harness.drills.exercise import DrillFailed, DrillImpossible, Exercise
from harness.drills.site import Site
from harness.execution.gpu_errors import read_faulty_nodes
from harness.host.command_line import DONE, INCOMPLETE

MAX_REPORT_CHARACTERS = 120  # of the line with the report, in the result
Recovery = Literal["continues", "starts again by itself", "starts again with --retry"]


@dataclass(frozen=True)
class Drill:
    """A fault, the report that it must cause, and how the struck case must recover.

    Attributes:
        name: the name of the drill.
        title: the fault, as a sentence.
        report: the pattern of the text with which the harness, the job or the case must report the fault.
        recovery: how the second case, which the fault strikes, is completed.
        plant: plants the fault and removes it, or waits while `strike` plants it; called when the second case computes.
        prepare: prepares what `plant` needs; entered before the campaign starts, and left after it.
        strike: the shell command with which the launcher plants the fault in the program of rank 1; empty if `plant`
            plants it.
        local_recovery: as `recovery`, for a system without other nodes.
        excludes_node: whether a case that starts again by itself must avoid the node with the fault.
        explain_impossible: returns why the fault cannot be planted on a site; None if it can.
    """

    name: str
    title: str
    report: str
    recovery: Recovery
    plant: Callable[[Exercise], None]
    prepare: Callable[[Exercise], AbstractContextManager[None]] = lambda _: nullcontext()
    strike: str = ""
    local_recovery: Recovery | None = None
    excludes_node: bool = False
    explain_impossible: Callable[[Site], str | None] = lambda _: None


DRILLS: tuple[Drill, ...] = (
    Drill(
        name="node-dies",
        title="a node dies",
        report=r"lost \S+ and the case is started again",
        recovery="starts again by itself",
        plant=faults.kill_node,
        explain_impossible=Site.explain_no_cluster,
    ),
    Drill(
        name="rank-hangs",
        title="a rank stops without ending",
        report=r"no longer answers: nothing from rank 1 ",
        recovery="starts again with --retry",
        plant=faults.wait_for_end,
        strike=faults.HANG,
    ),
    Drill(
        name="gpu-error",
        title="a GPU reports a hardware error",
        report=r"an error of a GPU: .*NVRM: Xid",
        recovery="starts again by itself",
        local_recovery="starts again with --retry",
        plant=faults.wait_for_end,
        strike=faults.GPU_ERROR,
        excludes_node=True,
    ),
    Drill(
        name="scheduler-away",
        title="the scheduler does not answer",
        report=r"trying again for up to",
        recovery="continues",
        plant=faults.take_scheduler_away,
        prepare=faults.wrap_scheduler_commands,
        explain_impossible=Site.explain_no_scheduler,
    ),
    Drill(
        name="disk-full",
        title="the disk with the results fills up",
        report=r"No space left on device",
        recovery="starts again with --retry",
        plant=faults.fill_disk,
        prepare=faults.mount_small_disk,
        explain_impossible=Site.explain_no_mount,
    ),
    Drill(
        name="file-system-stalls",
        title="the file system with the results stalls",
        report=r"the file system did not answer for \d+ s",
        recovery="continues",
        plant=faults.freeze_file_system,
        prepare=faults.mount_freezable_disk,
        explain_impossible=Site.explain_no_freeze,
    ),
)


@dataclass(frozen=True)
class Result:
    """The verdict on a drill.

    Attributes:
        drill: the drill.
        verdict: whether the harness did what the drill expects.
        detail: the line with which the fault was reported, or the reason for another verdict.
        seconds: the duration; 0 if nothing was run.
    """

    drill: Drill
    verdict: Literal["ok", "failed", "not possible"]
    detail: str
    seconds: float = 0.0

    def format(self) -> str:
        """Return the result as one line."""
        duration = f" ({self.seconds:.0f} s)" if self.seconds else ""
        return f"{self.verdict:<12}  {self.drill.name:<18}  {self.drill.title}: {self.detail}{duration}"


def run_drill(drill: Drill, site: Site, folder: Path, stall_s: float) -> Result:
    """Plant the fault of a drill in a small campaign, and judge what the harness does."""
    reason = drill.explain_impossible(site)
    if reason is not None:
        return Result(drill, "not possible", reason)
    started = time.monotonic()
    exercise = Exercise(site, folder, stall_s)
    try:
        with drill.prepare(exercise):
            detail = _perform(drill, exercise)
    except DrillImpossible as error:
        return Result(drill, "not possible", str(error), time.monotonic() - started)
    except (DrillFailed, OSError, RuntimeError, subprocess.SubprocessError) as error:
        if not isinstance(error, DrillFailed):
            (folder / "traceback.txt").write_text(traceback.format_exc())
        message = str(error).partition("\n")[0]
        return Result(drill, "failed", f"{message}; its files are in {folder}", time.monotonic() - started)
    return Result(drill, "ok", detail, time.monotonic() - started)


def _perform(drill: Drill, exercise: Exercise) -> str:
    """Run the campaign of a drill, and return how the fault was reported; raise DrillFailed if an expectation fails."""
    recovery = (drill.local_recovery if exercise.site.is_local else None) or drill.recovery
    exercise.write_files(drill.strike)
    exercise.start_harness()
    try:
        exercise.wait_for("the second case began to compute", exercise.read_ranks)
        first_case = exercise.read_first_case()
        drill.plant(exercise)
        code = exercise.wait_for_harness()
        report = re.search(rf".*{drill.report}.*", exercise.output)
        expected = INCOMPLETE if recovery == "starts again with --retry" else DONE
        _expect(code == expected, f"the harness ended with exit code {code}, expected {expected}")
        if recovery == "starts again with --retry":
            exercise.start_harness("--retry")
            code = exercise.wait_for_harness()
            _expect(code == DONE, f"the harness ended with exit code {code} after the fault, expected {DONE}")
    finally:
        exercise.stop()
    _expect(report is not None, f"no line in the output matches {drill.report!r}")
    assert report is not None
    states = exercise.list_states()
    _expect(
        list(states) == ["done", "done"], f"the states of the cases are {', '.join(states) or 'unknown'}, expected done"
    )
    _expect(exercise.read_first_case() == first_case, "the records of the first case, which had ended, have changed")
    _expect(exercise.count_starts(1) == 1, "the first case, which had ended, was started again")
    starts = exercise.count_starts(2)
    is_restarted = recovery != "continues"
    expected_starts = "more than 1" if is_restarted else "1"
    _expect((starts > 1) == is_restarted, f"number of starts of the second case: {starts}, expected {expected_starts}")
    if drill.excludes_node and recovery == "starts again by itself":
        _expect_other_nodes(exercise)
    return f"{report[0].strip()[:MAX_REPORT_CHARACTERS]!r}; the case {recovery}"


def _expect_other_nodes(exercise: Exercise) -> None:
    """Raise DrillFailed if no node is excluded, or the last run of the second case used an excluded one."""
    faulty = read_faulty_nodes(exercise.campaign)
    _expect(bool(faulty), "no node is excluded from further jobs")
    used = {rank["node"] for rank in exercise.read_ranks()} & set(faulty)
    _expect(not used, f"the second case ran again on {', '.join(sorted(used))}, where a GPU had reported an error")


def _expect(condition: bool, message: str) -> None:
    if not condition:
        raise DrillFailed(message)
