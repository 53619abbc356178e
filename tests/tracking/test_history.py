"""The history of commits: reading, invalid lines, separate machines and sessions, and verdicts."""

from __future__ import annotations

import dataclasses
import json
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from harness.cli.main import main
from harness.report.render import write_report
from harness.results.runs import RunRecord
from harness.tracking.asv_runner import AsvSession, Project
from harness.tracking.git_commits import Commit, subsample
from harness.tracking.history import HISTORY_FILE, Measurement, append_measurements, collect_measurements, read_history
from harness.tracking.session import SessionOptions, judge_session, run_session
from harness.tracking.verdicts import BenchmarkVerdict, build_series, judge, judge_all

ROUNDS = 10


def make_measurement(
    index: int = 0, number: int | None = 1, values: Sequence[float] = (1.0,), **other: Any
) -> Measurement:
    fields = {
        "source": "asv", "session": "s", "commit": f"{index:040x}", "committed_s": 100 - index, "machine": "m (cpu)",
        "subject": f"change {index}", "name": "a.time_it", "unit": "seconds", "better": "lower", "threshold": 0.02,
    }  # fmt: skip
    return Measurement(**fields | other, commit_index=index, round=number, values=tuple(values))  # type: ignore[arg-type]


def make_measurements(
    levels: Sequence[float | None], noise: float = 0.01, rounds: int = ROUNDS, **other: Any
) -> list[Measurement]:
    """Return measurements of a level per commit (None: failed), with a drift that all commits of a round share."""
    rng = random.Random(1)
    measurements = []
    for number in range(1, rounds + 1):
        drift = rng.lognormvariate(0, 0.3)
        for index, level in enumerate(levels):
            values = [] if level is None else [level * drift * rng.lognormvariate(0, noise)]
            measurements.append(make_measurement(index, number, values, **other))
    return measurements


def judge_one(*measurements: Measurement) -> BenchmarkVerdict:
    (verdict,) = judge_all(build_series(measurements))
    return verdict


def test_appended_measurements_are_read_once(tmp_path: Path) -> None:
    path = tmp_path / "deep" / HISTORY_FILE
    measurements = make_measurements([1.0, 1.1])
    assert append_measurements(path, measurements) == len(measurements)
    assert append_measurements(path, measurements) == 0
    assert append_measurements(path, [*measurements, make_measurement(7)]) == 1
    history = read_history(path)
    assert history.measurements == [*measurements, make_measurement(7)]
    assert history.n_skipped == 0


def test_duplicate_lines_of_concatenated_files_count_once(tmp_path: Path) -> None:
    path = tmp_path / HISTORY_FILE
    append_measurements(path, make_measurements([1.0, 1.1]))
    path.write_bytes(path.read_bytes() * 2)
    assert read_history(path).measurements == make_measurements([1.0, 1.1])


def test_success_replaces_an_earlier_failure_but_not_the_reverse(tmp_path: Path) -> None:
    path = tmp_path / HISTORY_FILE
    assert append_measurements(path, [make_measurement(values=())]) == 1
    assert append_measurements(path, [make_measurement(values=())]) == 0
    assert append_measurements(path, [make_measurement(values=(2.0,))]) == 1
    assert append_measurements(path, [make_measurement(values=())]) == 0
    assert read_history(path).measurements == [make_measurement(values=(2.0,))]


VALID = make_measurement().model_dump(by_alias=True)


@pytest.mark.parametrize(
    "line",
    [
        '{"version": 1, "sour',
        "nonsense",
        "[]",
        "7",
        json.dumps(VALID | {"version": 2}),
        json.dumps({k: v for k, v in VALID.items() if k != "machine"}),
        json.dumps(VALID | {"more": 1}),
        json.dumps(VALID | {"values": ["a"]}),
        json.dumps(VALID | {"values": [True]}),
        json.dumps(VALID | {"values": [float("nan")]}),
        json.dumps(VALID | {"round": True}),
        json.dumps(VALID | {"better": "sideways"}),
        json.dumps(VALID | {"source": "hearsay"}),
        json.dumps(VALID | {"commit": None}),
        "\x00\xff",
    ],
)
def test_invalid_lines_are_counted_and_skipped(tmp_path: Path, line: str) -> None:
    path = tmp_path / HISTORY_FILE
    append_measurements(path, [make_measurement(1)])
    with path.open("a") as handle:
        handle.write(line)
    append_measurements(path, [make_measurement(2)])
    history = read_history(path)
    assert history.measurements == [make_measurement(1), make_measurement(2)]
    assert history.n_skipped == 1


def test_page_reports_a_truncated_line(tmp_path: Path) -> None:
    append_measurements(tmp_path / HISTORY_FILE, make_measurements([1.0, 1.0, 1.2]))
    with (tmp_path / HISTORY_FILE).open("a") as handle:
        handle.write('{"version": 1, "sour')
    write_report(tmp_path)
    page = (tmp_path / "regression.html").read_text()
    assert "1 line of history.jsonl is skipped: truncated or of another version" in page
    assert "change 2" in page


def test_report_without_history_and_runs_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--out", str(tmp_path)]) == 2
    assert "no run folders" in capsys.readouterr().err


def test_machines_and_sessions_are_not_mixed() -> None:
    """A machine of half the speed and a session on a busy machine are not changes."""
    slow = make_measurements([2.0, 2.0], machine="slow (cpu)")
    earlier = make_measurements([5.0, 5.0, 5.0], session="earlier")
    verdicts = judge_all(build_series([*earlier, *make_measurements([1.0, 1.0, 1.0]), *slow]))
    assert [(v.series.machine, v.series.session) for v in verdicts] == [("m (cpu)", "s"), ("slow (cpu)", "s")]
    assert all(v.change is None and not v.is_bad for v in verdicts)


def test_commits_are_in_history_order_whatever_their_dates() -> None:
    assert [c.subject for c in judge_one(*reversed(make_measurements([1.0, 1.0, 1.2]))).series.commits] == [
        "change 0", "change 1", "change 2",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("levels", "state", "since"),
    [
        ([1, 1, 1, 1], ("no change", "too noisy"), None),
        ([1, 1, 1.06, 1.06], ("regression",), 2),
        ([1, 1.03, 1.03, 1.03], ("regression",), 1),
        ([1, 1, 0.9, 0.9], ("improvement",), 2),
        ([1, 1.2, 1.2, 1, 1], ("reverted",), 1),
        ([1, 0.8, 0.8, 1, 1], ("regression",), 3),
        ([1, 1.2, 1.2, 1.1, 1.1], ("regression",), 1),
        ([1, 1, None, None], ("broken",), 2),
        ([1, None, 1, 1], ("no change", "too noisy"), None),
        ([None, None, 1, 1.2], ("regression",), 3),
        ([None, None], ("not run",), None),
    ],
)
def test_verdict_has_the_state_and_the_first_commit_of_the_change(
    levels: list[float | None], state: tuple[str, ...], since: int | None
) -> None:
    """Noise is 1%, drift between rounds 30%; a reverted change is not a regression."""
    verdict = judge_one(*make_measurements(levels))
    assert verdict.state in state
    assert (verdict.since.subject if verdict.since else None) == (None if since is None else f"change {since}")
    assert verdict.is_bad == (state[0] in ("regression", "broken"))
    assert str(verdict)


def test_verdict_uses_the_threshold_of_the_benchmark() -> None:
    small = judge_one(*make_measurements([1.0, 1.0, 1.06, 1.06], threshold=0.1))
    assert not small.is_bad
    assert "below the 10% that counts" in str(small)


def test_verdict_of_a_rate_has_the_opposite_sign() -> None:
    assert judge_one(*make_measurements([1.0, 1.0, 0.8, 0.8], better="higher", unit="graphs/s")).is_bad
    assert judge_one(*make_measurements([1.0, 1.0, 1.2, 1.2], better="higher", unit="graphs/s")).state == "improvement"


def test_three_rounds_are_too_few_for_a_verdict() -> None:
    """Three rounds cannot show even a change of 50%."""
    verdict = judge_one(*make_measurements([1.0, 1.5], rounds=3))
    assert str(verdict) == "too few rounds to tell (n = 3 and 3)"
    assert not verdict.is_bad


def test_noisy_benchmark_reports_the_smallest_detectable_change() -> None:
    verdict = judge_one(*make_measurements([1.0, 1.0, 1.0], noise=0.2))
    assert verdict.state == "too noisy"
    assert re.search(r"only a change above \d+% could be detected", str(verdict))


def test_alpha_is_corrected_for_the_number_of_benchmarks() -> None:
    """Of forty unchanged benchmarks with 3% noise, one is significant on its own and none among the others."""
    rng = random.Random(0)
    series = build_series([
        make_measurement(index, number, [rng.lognormvariate(0, 0.03)], name=f"a.time_{k}", threshold=1e-4)
        for k in range(40) for number in range(1, 13) for index in range(6)
    ])  # fmt: skip
    assert sum(judge(s).is_bad for s in series) == 1
    assert not any(v.is_bad for v in judge_all(series))


def test_benchmark_that_is_missing_on_the_last_commit_is_reported() -> None:
    other = make_measurements([1.0, 1.0, 1.0], name="a.time_other")
    verdicts = {v.series.name: v for v in judge_all(build_series([*make_measurements([1.0, 1.0]), *other]))}
    assert verdicts["a.time_it"].is_missing
    assert str(verdicts["a.time_it"]).endswith("; not measured on 0000000000")
    assert not verdicts["a.time_other"].is_missing


@dataclasses.dataclass(frozen=True)
class Rate:
    name: str = "graphs per second"
    unit: str = "1/s"
    better: str = "higher"


def make_record(
    folder: Path, commit: str | None, time_s: float, *, changed: bool | None = False, host: str = "a"
) -> RunRecord:
    folder.mkdir(parents=True)
    provenance = {"commit": commit, "changed_since_commit": changed, "time_s": time_s, "host": host, "cpu": "c"}
    (folder / "provenance.json").write_text(json.dumps(provenance))
    return RunRecord(str(folder), {"id": "0123456789ab", "name": "n", "suite": "s"}, "done")


def test_runs_of_suites_are_recorded_under_their_commit_and_machine(tmp_path: Path) -> None:
    """A rate falls by a tenth after ten commits; runs of uncommitted or unknown code belong to no commit."""
    runs = [make_record(tmp_path / str(k), f"{k:040x}", 1000 + k) for k in range(20)]
    runs += [
        make_record(tmp_path / "dirty", "d" * 40, 1.0, changed=True),
        make_record(tmp_path / "none", None, 1.0, changed=None),
    ]
    runs += [make_record(tmp_path / "other", f"{3:040x}", 1003, host="b")]
    rng = random.Random(0)

    def list_metrics(record: RunRecord) -> dict[Any, list[float]]:
        level = 1.0 if record.provenance["time_s"] < 1010 else 0.9
        return {Rate(): [level * rng.lognormvariate(0, 0.01) for _ in range(5)]}

    path = tmp_path / HISTORY_FILE
    assert append_measurements(path, collect_measurements(runs, list_metrics, tmp_path)) == 21
    assert append_measurements(path, collect_measurements(runs, list_metrics, tmp_path)) == 0
    (verdict,) = judge_all(build_series(read_history(path).measurements))
    assert verdict.state == "regression"
    assert verdict.since is not None
    assert verdict.since.hash == f"{10:040x}"
    assert verdict.series.machine == "a (c)"
    assert verdict.series.name == "s/n-0123456789 graphs per second"


@pytest.mark.parametrize(
    ("max_commits", "expected"), [(None, [0, 1, 2, 3, 4]), (9, [0, 1, 2, 3, 4]), (3, [0, 2, 4]), (2, [0, 4]), (1, [4])]
)
def test_subsample_includes_both_ends(max_commits: int | None, expected: list[int]) -> None:
    commits = [Commit(str(k), k, "") for k in range(5)]
    assert [c.committed_s for c in subsample(commits, max_commits)] == expected


@pytest.mark.parametrize("is_lasting", [True, False])
def test_suspected_regression_is_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_lasting: bool
) -> None:
    """If only the first rounds of one commit were slow, there is no regression."""
    session = AsvSession(
        Project(tmp_path, {}, tmp_path), [Commit("a" * 40, 1, "a"), Commit("b" * 40, 2, "b")], {"machine": "m"}, True,
        tmp_path / "regression",
    )  # fmt: skip
    calls: list[tuple[int, list[str]]] = []

    def run_round(_: object, number: int, bench: Sequence[str]) -> bool:
        calls.append((number, list(bench)))
        return False

    def read_round_measurements(_: object, number: int) -> Iterator[Measurement]:
        rng = random.Random(number)
        for index, commit in enumerate(session.commits):
            for name, slow in (("m.time_one", 1.2 if number <= ROUNDS or is_lasting else 0.9), ("m.time_two", 1.0)):
                level = (slow if index else 1.0) * rng.gauss(1.0, 0.002)
                yield make_measurement(
                    index, number, [level], session=session.id, commit=commit.hash, name=name, subject=commit.subject
                )

    monkeypatch.setattr("harness.tracking.session.run_round", run_round)
    monkeypatch.setattr("harness.tracking.session.read_round_measurements", read_round_measurements)
    run_session(session, SessionOptions(ROUNDS, quiet=True), tmp_path)
    confirmations = [(number, bench) for number, bench in calls if bench]
    assert [number for number, _ in confirmations] == list(range(1, 2 * ROUNDS + 1))
    assert all(
        re.search(bench[0], "m.time_one") and not re.search(bench[0], "m.time_two") for _, bench in confirmations
    )
    states = {v.series.name: v.state for v in judge_session(session, tmp_path)}
    assert states["m.time_two"] == "no change"
    assert (states["m.time_one"] == "regression") == is_lasting
