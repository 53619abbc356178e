"""The commits of a range, in the order of their history, as git tells them."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from harness.host.git import run_git
from harness.protocol.errors import UsageError, did_you_mean
from harness.protocol.text import sanitize_line

SHOWN = 10
SEPARATOR = "\x1f"


@dataclass(frozen=True)
class Commit:
    """One commit: full hash, Unix time of the commit, and the first line of its message."""

    hash: str
    committed_s: int
    subject: str

    @property
    def short(self) -> str:
        """Its hash as people write it."""
        return self.hash[:SHOWN]


def toplevel(place: Path) -> Path:
    """The root of the clone that holds the folder; raises UsageError if there is none."""
    if not place.is_dir():
        raise UsageError(f"{place}: no such folder")
    if shutil.which("git") is None:
        raise UsageError("git is not installed")
    found = run_git(place, "rev-parse", "--show-toplevel")
    if found is None:
        raise UsageError(f"{place}: not in a git clone; --repo DIR names one")
    return Path(found)


def of_range(repo: Path, words: str) -> list[Commit]:
    """A and the commits after it up to B along first parents, oldest first; `A` alone means `A..HEAD`.

    Raises UsageError for names that git does not know, and where A does not come before B.
    """
    first, dots, last = words.partition("..")
    if "..." in words or not first:
        raise UsageError(f"range {words!r}: expected A..B or A, commits, branches or tags")
    start, end = (_resolved(repo, name) for name in (first, last if dots and last else "HEAD"))
    if run_git(repo, "merge-base", "--is-ancestor", start, end) is None:
        raise UsageError(f"range {words!r}: {first} does not come before {last or 'HEAD'}")
    later = run_git(repo, "rev-list", "--reverse", "--topo-order", "--first-parent", f"{start}..{end}") or ""
    names = (start, *later.split())
    found = [told(repo, commit) for commit in names]
    lost = next((name for name, commit in zip(names, found, strict=True) if commit is None), None)
    if lost is not None:
        raise UsageError(f"{repo}: git does not tell what commit {lost} is; `git fsck` says whether the clone is whole")
    return [commit for commit in found if commit is not None]


def evenly(commits: Sequence[Commit], most: int | None) -> list[Commit]:
    """The first, the last, and as many between them as make `most`, evenly spread; all if that is None."""
    if most is None or len(commits) <= most:
        return list(commits)
    if most == 1:
        return [commits[-1]]
    return [commits[round(k * (len(commits) - 1) / (most - 1))] for k in range(most)]


@cache
def told(repo: Path, commit: str) -> Commit | None:
    """When a commit was made and what it says; None where git does not tell."""
    words = ["--no-patch", "--no-show-signature", "--no-notes", "--no-color", "--no-ext-diff", "--encoding=UTF-8"]
    said = run_git(repo, "show", *words, f"--format=%H{SEPARATOR}%ct{SEPARATOR}%s", commit, "--") or ""
    full, *others = said.split(SEPARATOR, 2)
    if len(others) < 2 or not others[0].lstrip("-").isdigit():
        return None
    return Commit(full, int(others[0]), sanitize_line(others[1]))


@cache
def place(repo: Path, commit: str) -> int | None:
    """How many commits a history along first parents has up to this one; None if the clone does not hold it."""
    count = run_git(repo, "rev-list", "--count", "--first-parent", commit, "--")
    return None if count is None or not count.isdigit() else int(count)


def _resolved(repo: Path, name: str) -> str:
    found = None if name.startswith("-") else run_git(repo, "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")
    if found is None:
        names = run_git(repo, "for-each-ref", "--format=%(refname:short)", "refs/heads", "refs/tags") or ""
        raise UsageError(f"{repo}: no commit, branch or tag {name!r}{did_you_mean(name, names.splitlines())}")
    return found
