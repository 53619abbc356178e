"""Where drills take place: a system of the user, or a Slurm cluster that the harness starts on this machine."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from harness.config.system import ResolvedSystem
from harness.drills.cluster import Cluster, find_missing

FREEZE_PROGRAMS = ("mkfs.ext4", "mount", "umount", "fsfreeze")


@dataclass(frozen=True)
class Site:
    """The system of the drills.

    Attributes:
        system: the system with the user's settings.
        path: its file.
        cluster: the cluster that belongs to the drills, whose nodes they may kill; None on a system of the user.
    """

    system: ResolvedSystem
    path: Path
    cluster: Cluster | None = None

    @property
    def is_local(self) -> bool:
        """Whether the jobs are processes of the harness, on one node."""
        return self.system.definition.scheduler == "local"

    @property
    def is_on_this_machine(self) -> bool:
        """Whether all jobs run on this machine."""
        return self.is_local or self.cluster is not None

    def explain_no_cluster(self) -> str | None:
        """Return why the drills may not kill a node; None if they may."""
        return None if self.cluster else "a node may be killed only on a cluster of the drills (without --system)"

    def explain_no_scheduler(self) -> str | None:
        """Return why the scheduler cannot be away; None if it can."""
        return f"jobs of the system {self.system.definition.name} have no scheduler" if self.is_local else None

    def explain_no_mount(self) -> str | None:
        """Return why a disk of the drills cannot hold the results; None if it can."""
        if not self.is_on_this_machine:
            return "the jobs run on other machines, which would not see a disk that is mounted here"
        return None if os.geteuid() == 0 else "only root may mount a disk"

    def explain_no_freeze(self) -> str | None:
        """Return why a file system of the drills cannot be frozen; None if it can."""
        missing = next((program for program in FREEZE_PROGRAMS if not shutil.which(program)), None)
        return self.explain_no_mount() or (f"{missing} is not installed" if missing else None)


def explain_no_slurm() -> str | None:
    """Return why the harness cannot start a Slurm cluster on this machine; None if it can."""
    missing = find_missing()
    if missing is None:
        return None
    reason = "the user is not root" if missing == "root" else f"{missing} is not installed"
    return f"a Slurm cluster for drills cannot be started on this machine, since {reason}; name a system with --system"


@contextmanager
def start_slurm(system: ResolvedSystem, path: Path) -> Iterator[Site]:
    """Start a Slurm cluster for drills, and stop it on exit.

    It has two nodes for a campaign, one to replace a lost node, and one more.

    Args:
        system: The system with which jobs are submitted to the cluster.
        path: Its file.
    """
    # in the folder of temporary files, since the path of a socket has at most 107 characters
    with (
        tempfile.TemporaryDirectory(prefix="gfm-harness-slurm-", ignore_cleanup_errors=True) as folder,
        Cluster(Path(folder), nodes=4, gpus=0) as cluster,
    ):
        yield Site(system, path, cluster)
