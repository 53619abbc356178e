"""Other implementations whose code runs have measured, as tables and pages name them."""

from __future__ import annotations

from collections.abc import Iterable

from harness.results.runs import RunRecord


def find_implementation(record: RunRecord) -> str:
    """Return the name of the implementation that a run has measured; empty for the reference implementation."""
    return str(record.facts.get("implementation", {}).get("name", ""))


def describe_implementations(records: Iterable[RunRecord]) -> list[str]:
    """Return a sentence on each version of another implementation: its commit, interpreter and packages."""
    sentences = []
    for record in records:
        if (source := record.facts.get("implementation")) is not None:
            commit = f"commit {source['commit'][:10]}" if source.get("commit") else "of unknown commit"
            changed = " with local changes" if source.get("changed_since_commit") else ""
            packages = ", ".join(f"{name} {version}" for name, version in source.get("packages", {}).items())
            sentences.append(f"{source['name']}: {commit}{changed}, Python {source.get('python')}, {packages}.")
    return list(dict.fromkeys(sentences))
