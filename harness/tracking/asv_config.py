"""What a clone says of its benchmarks: asv's asv.conf.json, with the thresholds that asv has a key for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.protocol.errors import UsageError

CONFIGS = ("asv.conf.json", "tests/benchmarks/over_commits/asv.conf.json")
THRESHOLD = 0.02


@dataclass(frozen=True)
class Project:
    """A clone and its benchmarks: what its asv.conf.json says, with the folder of benchmarks made absolute."""

    repo: Path
    config: dict[str, Any]
    benchmarks: Path

    def threshold(self, name: str) -> float:
        """The least relative change of a benchmark that counts: the largest whose pattern matches, as for asv."""
        patterns = self.config.get("regressions_thresholds", {})
        return max((float(value) for regex, value in patterns.items() if re.match(regex, name)), default=THRESHOLD)


def project(repo: Path, config: Path | None) -> Project:
    """The benchmarks of a clone; raises UsageError if there are none or their configuration is no such thing."""
    places = [config] if config is not None else [repo / name for name in CONFIGS]
    path = next((p for p in places if p.is_file()), None)
    if path is None:
        raise UsageError(f"{places[0]}: no such file; benchmarks are described there (or in a --config FILE)")
    found = _configuration(path)
    benchmarks = (path.parent / str(found.get("benchmark_dir", "benchmarks"))).resolve()
    if not benchmarks.is_dir():
        raise UsageError(f"{path}: benchmark_dir: no folder {benchmarks}")
    thresholds = found.get("regressions_thresholds", {})
    if not isinstance(thresholds, dict) or not all(map(_is_threshold, thresholds.items())):
        raise UsageError(f"{path}: regressions_thresholds: expected patterns with numbers above 0")
    return Project(repo, found, benchmarks)


def _configuration(path: Path) -> dict[str, Any]:
    try:
        from asv import util
    except ImportError:
        raise UsageError("asv is not installed: pip install 'asv>=0.6.4'") from None
    try:
        found = util.load_json(str(path), js_comments=True)
    except (util.UserError, ValueError) as error:
        raise UsageError(f"{path}: not a configuration of asv: {str(error).splitlines()[0]}") from None
    if not isinstance(found, dict):
        raise UsageError(f"{path}: not a configuration of asv")
    return found


def _is_threshold(pair: tuple[str, Any]) -> bool:
    with suppress(re.error):
        re.compile(pair[0])
        return isinstance(pair[1], int | float) and not isinstance(pair[1], bool) and pair[1] > 0
    return False


def patterns(words: Sequence[str]) -> tuple[str, ...]:
    """Regular expressions for names of benchmarks; raises UsageError for what is none."""
    for word in words:
        try:
            re.compile(word)
        except re.error as error:
            raise UsageError(f"--bench {word}: not a regular expression: {error}") from None
    return tuple(words)
