"""The names and descriptions of other implementations, such as HydraGNN, in tables and on pages."""

from __future__ import annotations

from collections.abc import Iterable

from harness.results.runs import RunRecord


def get_implementation_name(record: RunRecord) -> str:
    """Return the name of the implementation whose code a run measured; empty for the reference implementation."""
    return str(record.facts.get("implementation", {}).get("name", ""))


def describe_implementations(records: Iterable[RunRecord]) -> list[str]:
    """Return a sentence with commit, Python version and packages for each version of another implementation."""
    sentences = []
    for record in records:
        if (source := record.facts.get("implementation")) is not None:
            commit = f"commit {source['commit'][:10]}" if source.get("commit") else "unknown commit"
            changed = " with local changes" if source.get("changed_since_commit") else ""
            packages = ", ".join(f"{name} {version}" for name, version in source.get("packages", {}).items())
            sentences.append(f"{source['name']}: {commit}{changed}, Python {source.get('python')}, {packages}.")
    return list(dict.fromkeys(sentences))
