"""The faults that drills plant, each with real means, and the removal of each."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from harness.drills.exercise import DrillFailed, DrillImpossible, Exercise

DISK_BYTES = 4 << 20  # enough for the results of the first case
FROZEN_DISK_BYTES = 64 << 20  # enough for ext4 with a journal
# The commands of Slurm and PBS that the harness calls.
SCHEDULER_COMMANDS = ("sbatch", "squeue", "sacct", "scontrol", "scancel", "qsub", "qstat", "qdel")
COMMAND = """\
#!/bin/sh
if [ -e {away} ]; then
    echo "{name}: error: Unable to contact the scheduler" >&2
    exit 1
fi
exec {program} "$@"
"""
# In a background shell, $$ is the process of the launcher, which has become the program by `exec`.
HANG = "kill -STOP $$"
GPU_ERROR = 'echo "NVRM: Xid (PCI:0000:44:00): 79, GPU has fallen off the bus." >&2; kill -KILL $$'


@contextmanager
def mount_small_disk(exercise: Exercise) -> Iterator[None]:
    """Mount a small disk, in memory, for the results."""
    exercise.results.mkdir()
    with mount_disk(exercise.results, "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "none"):
        yield


@contextmanager
def mount_freezable_disk(exercise: Exercise) -> Iterator[None]:
    """Mount a file system for the results, in a file, that nothing else uses."""
    image = exercise.folder / "disk"
    exercise.results.mkdir()
    with image.open("wb") as file:
        file.truncate(FROZEN_DISK_BYTES)
    try:
        run_or_give_up("mkfs.ext4", "-q", "-F", str(image))
        # with access times, a reader would write, and wait too
        with mount_disk(exercise.results, "-o", "loop,noatime", str(image)):
            yield
    finally:
        image.unlink()


@contextmanager
def wrap_scheduler_commands(exercise: Exercise) -> Iterator[None]:
    """Write scripts in place of the scheduler's commands: they fail while the file `away` exists, and else call them.

    On the cluster that the drills have started, they stop the controller instead.
    """
    if exercise.site.cluster is None:
        exercise.programs.mkdir()
        for name in SCHEDULER_COMMANDS:
            program = shutil.which(name)
            if program is not None:
                away = shlex.quote(str(exercise.programs / "away"))
                script = exercise.programs / name
                script.write_text(COMMAND.format(away=away, name=name, program=shlex.quote(program)))
                script.chmod(0o755)
    yield


def kill_node(exercise: Exercise) -> None:
    """Kill all processes of the node of rank 1, and start the node again after the campaign has ended."""
    cluster = exercise.site.cluster
    assert cluster is not None
    node = exercise.read_ranks()[1]["node"]
    try:
        cluster.kill_node(node)
        exercise.wait_for_harness()
    finally:
        cluster.restart_node(node)


def take_scheduler_away(exercise: Exercise) -> None:
    """Stop the scheduler until the harness has noticed."""
    cluster = exercise.site.cluster
    if cluster is not None:
        cluster.stop_controller()
    else:
        (exercise.programs / "away").touch()
    try:
        exercise.wait_for("it noticed that the scheduler is away", lambda: "trying again" in exercise.output)
    finally:
        if cluster is not None:
            cluster.start_controller()
        else:
            (exercise.programs / "away").unlink()


def fill_disk(exercise: Exercise) -> None:
    """Fill the disk with the results until the harness has ended."""
    filler = exercise.results / "filler"
    status = os.statvfs(exercise.results)
    try:
        with suppress(OSError):  # the disk is full earlier if the case writes too
            filler.write_bytes(bytes(status.f_bavail * status.f_frsize))
        exercise.wait_for_harness()
    finally:
        filler.unlink(missing_ok=True)


def freeze_file_system(exercise: Exercise) -> None:
    """Freeze the file system with the results for `stall_s` seconds, during which every write waits."""
    run_or_give_up("fsfreeze", "--freeze", str(exercise.results))
    try:
        time.sleep(exercise.stall_s)
    finally:
        run_command("fsfreeze", "--unfreeze", str(exercise.results))


def wait_for_end(exercise: Exercise) -> None:
    """Wait until the harness has ended; raise DrillFailed if the launcher, which plants the fault, did not strike."""
    exercise.wait_for_harness()
    if not exercise.has_struck():
        raise DrillFailed("the launcher did not strike rank 1 of the second case")


@contextmanager
def mount_disk(point: Path, *options: str) -> Iterator[None]:
    """Mount a file system with these options of `mount`; on exit, replace it with a folder with a copy of its files."""
    run_or_give_up("mount", *options, str(point))
    try:
        yield
    finally:
        copy = point.with_name(f"{point.name}-copy")
        try:
            shutil.copytree(point, copy, symlinks=True)
        finally:
            run_command("umount", "--lazy", str(point))
        point.rmdir()
        copy.rename(point)


def run_command(*command: str) -> None:
    """Run a command that removes a fault; raise RuntimeError with its message if it fails."""
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"{command[0]}: {result.stderr.strip() or f'exit code {result.returncode}'}")


def run_or_give_up(*command: str) -> None:
    """Run a command that plants a fault; raise DrillImpossible with its message if it fails."""
    try:
        run_command(*command)
    except (OSError, RuntimeError) as error:
        raise DrillImpossible(str(error)) from None
