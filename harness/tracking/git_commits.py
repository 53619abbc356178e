"""Read a range of commits from git, in the order of their history."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from harness.host.provenance import run_git
from harness.protocol.errors import UsageError, did_you_mean
from harness.protocol.text import sanitize_line

SHORT_LENGTH = 10
SEPARATOR = "\x1f"


@dataclass(frozen=True)
class Commit:
    """One commit: full hash, Unix time of the commit in seconds, and the first line of its message."""

    hash: str
    committed_s: int
    subject: str

    @property
    def short(self) -> str:
        """The abbreviated hash."""
        return self.hash[:SHORT_LENGTH]


def find_repository(folder: Path) -> Path:
    """Return the root of the git clone that contains the folder.

    Raises:
        UsageError: There is no such folder, no git, or no clone.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder")
    if shutil.which("git") is None:
        raise UsageError("git is not installed")
    root = run_git(folder, "rev-parse", "--show-toplevel")
    if root is None:
        raise UsageError(f"{folder}: not in a git clone; --repo DIR names one")
    return Path(root)


def list_commits(repo: Path, revisions: str) -> list[Commit]:
    """Return the commits of a range along first parents, oldest first, including both ends.

    Args:
        repo: The git clone.
        revisions: `A..B`, or `A`, which means `A..HEAD`.

    Raises:
        UsageError: git does not know a name, or A does not come before B.
    """
    first, dots, last = revisions.partition("..")
    if "..." in revisions or not first:
        raise UsageError(f"range {revisions!r}: expected A..B or A, commits, branches or tags")
    start, end = (_resolve(repo, name) for name in (first, last if dots and last else "HEAD"))
    if run_git(repo, "merge-base", "--is-ancestor", start, end) is None:
        raise UsageError(f"range {revisions!r}: {first} does not come before {last or 'HEAD'}")
    later = run_git(repo, "rev-list", "--reverse", "--topo-order", "--first-parent", f"{start}..{end}") or ""
    commits = []
    for name in (start, *later.split()):
        commit = describe_commit(repo, name)
        if commit is None:
            raise UsageError(f"{repo}: git cannot show commit {name}; `git fsck` reports whether the clone is complete")
        commits.append(commit)
    return commits


def subsample(commits: Sequence[Commit], max_commits: int | None) -> list[Commit]:
    """Return evenly spaced commits, including the first and the last; all commits if max_commits is None."""
    if max_commits is None or len(commits) <= max_commits:
        return list(commits)
    if max_commits == 1:
        return [commits[-1]]
    return [commits[round(k * (len(commits) - 1) / (max_commits - 1))] for k in range(max_commits)]


@cache
def describe_commit(repo: Path, commit: str) -> Commit | None:
    """Return hash, time and subject of a commit; None if git cannot show it."""
    options = ["--no-patch", "--no-show-signature", "--no-notes", "--no-color", "--no-ext-diff", "--encoding=UTF-8"]
    output = run_git(repo, "show", *options, f"--format=%H{SEPARATOR}%ct{SEPARATOR}%s", commit, "--") or ""
    full, *others = output.split(SEPARATOR, 2)
    if len(others) < 2 or not others[0].lstrip("-").isdigit():
        return None
    return Commit(full, int(others[0]), sanitize_line(others[1]))


@cache
def count_first_parents(repo: Path, commit: str) -> int | None:
    """Return the number of commits up to this one along first parents; None if the clone does not contain it."""
    text = run_git(repo, "rev-list", "--count", "--first-parent", commit, "--")
    return None if text is None or not text.isdigit() else int(text)


def _resolve(repo: Path, name: str) -> str:
    commit = None if name.startswith("-") else run_git(repo, "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")
    if commit is None:
        names = run_git(repo, "for-each-ref", "--format=%(refname:short)", "refs/heads", "refs/tags") or ""
        raise UsageError(f"{repo}: no commit, branch or tag {name!r}{did_you_mean(name, names.splitlines())}")
    return commit
