"""The history of commits: what is kept, what is passed over, what is never mixed, and the verdicts on it."""

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
from harness.report.render import report
from harness.results.runs import Record
from harness.tracking import run_history
from harness.tracking import session as follow
from harness.tracking.asv_config import Project
from harness.tracking.git_commits import Commit, evenly
from harness.tracking.history import FILE_NAME, VERSION, Entry, append, read
from harness.tracking.series import series
from harness.tracking.verdicts import Verdict, verdicts

ROUNDS = 10


def entry(place: int = 0, number: int | None = 1, values: Sequence[float] = (1.0,), **other: Any) -> Entry:
    told = {
        "source": "asv", "session": "s", "commit": f"{place:040x}", "committed_s": 100 - place, "machine": "m (cpu)",
        "subject": f"change {place}", "name": "a.time_it", "unit": "seconds", "better": "lower", "threshold": 0.02,
    }  # fmt: skip
    return Entry(**told | other, place=place, round=number, values=tuple(values))  # type: ignore[arg-type]


def measured(levels: Sequence[float | None], noise: float = 0.01, rounds: int = ROUNDS, **other: Any) -> list[Entry]:
    """A level a commit (None: fails), under a drift of the machine that is common to the commits of a round."""
    rng = random.Random(1)
    found = []
    for number in range(1, rounds + 1):
        drift = rng.lognormvariate(0, 0.3)
        for place, level in enumerate(levels):
            values = [] if level is None else [level * drift * rng.lognormvariate(0, noise)]
            found.append(entry(place, number, values, **other))
    return found


def judged(*entries: Entry) -> Verdict:
    (verdict,) = verdicts(series(entries))
    return verdict


def test_what_is_appended_is_read_and_once(tmp_path: Path) -> None:
    path = tmp_path / "deep" / FILE_NAME
    entries = measured([1.0, 1.1])
    assert append(path, entries) == len(entries)
    assert append(path, entries) == 0
    assert append(path, [*entries, entry(7)]) == 1
    history = read(path)
    assert history.entries == [*entries, entry(7)]
    assert history.passed_over == 0


def test_duplicates_of_joined_files_count_once(tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    append(path, measured([1.0, 1.1]))
    path.write_bytes(path.read_bytes() * 2)
    assert read(path).entries == measured([1.0, 1.1])


def test_a_failure_yields_to_a_later_success_but_not_the_other_way_round(tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    assert append(path, [entry(values=())]) == 1
    assert append(path, [entry(values=())]) == 0
    assert append(path, [entry(values=(2.0,))]) == 1
    assert append(path, [entry(values=())]) == 0
    assert read(path).entries == [entry(values=(2.0,))]


SOUND = {"version": VERSION, **dataclasses.asdict(entry())}


@pytest.mark.parametrize(
    "line",
    [
        '{"version": 1, "sour',
        "nonsense",
        "[]",
        "7",
        json.dumps(SOUND | {"version": VERSION + 1}),
        json.dumps({k: v for k, v in SOUND.items() if k != "machine"}),
        json.dumps(SOUND | {"more": 1}),
        json.dumps(SOUND | {"values": ["a"]}),
        json.dumps(SOUND | {"values": [True]}),
        json.dumps(SOUND | {"values": [float("nan")]}),
        json.dumps(SOUND | {"round": True}),
        json.dumps(SOUND | {"better": "sideways"}),
        json.dumps(SOUND | {"source": "hearsay"}),
        json.dumps(SOUND | {"commit": None}),
        "\x00\xff",
    ],
)
def test_lines_that_are_not_understood_are_counted_and_passed_over(tmp_path: Path, line: str) -> None:
    path = tmp_path / FILE_NAME
    append(path, [entry(1)])
    with path.open("a") as handle:
        handle.write(line)
    append(path, [entry(2)])
    history = read(path)
    assert history.entries == [entry(1), entry(2)]
    assert history.passed_over == 1


def test_a_torn_line_is_told_of_on_the_page(tmp_path: Path) -> None:
    append(tmp_path / FILE_NAME, measured([1.0, 1.0, 1.2]))
    with (tmp_path / FILE_NAME).open("a") as handle:
        handle.write('{"version": 1, "sour')
    report(tmp_path)
    page = (tmp_path / "regression.html").read_text()
    assert "1 line of history.jsonl is torn, foreign or of another version" in page
    assert "change 2" in page


def test_no_history_and_no_runs_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--out", str(tmp_path)]) == 2
    assert "no run folders" in capsys.readouterr().err


def test_machines_and_sessions_are_never_mixed() -> None:
    """One machine is half as fast, one session ran at a bad time: neither is a change."""
    slow = measured([2.0, 2.0], machine="slow (cpu)")
    earlier = measured([5.0, 5.0, 5.0], session="earlier")
    found = verdicts(series([*earlier, *measured([1.0, 1.0, 1.0]), *slow]))
    assert [(v.series.machine, v.series.session) for v in found] == [("m (cpu)", "s"), ("slow (cpu)", "s")]
    assert all(v.change is None and not v.is_bad for v in found)


def test_commits_stand_in_the_order_of_their_history_whatever_their_dates() -> None:
    assert [c.subject for c in judged(*reversed(measured([1.0, 1.0, 1.2]))).series.commits] == [
        "change 0", "change 1", "change 2",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("levels", "state", "since"),
    [
        ([1, 1, 1, 1], ("no change", "too noisy"), None),
        ([1, 1, 1.06, 1.06], ("regression",), 2),
        ([1, 1.03, 1.03, 1.03], ("regression",), 1),
        ([1, 1, 0.9, 0.9], ("improvement",), 2),
        ([1, 1.2, 1.2, 1, 1], ("undone",), 1),
        ([1, 0.8, 0.8, 1, 1], ("regression",), 3),
        ([1, 1.2, 1.2, 1.1, 1.1], ("regression",), 1),
        ([1, 1, None, None], ("broken",), 2),
        ([1, None, 1, 1], ("no change", "too noisy"), None),
        ([None, None, 1, 1.2], ("regression",), 3),
        ([None, None], ("never ran",), None),
    ],
)
def test_verdicts(levels: list[float | None], state: tuple[str, ...], since: int | None) -> None:
    """Under 1% of noise and 30% of drift between rounds; a change that was undone is none."""
    verdict = judged(*measured(levels))
    assert verdict.state in state
    assert (verdict.since.subject if verdict.since else None) == (None if since is None else f"change {since}")
    assert verdict.is_bad == (state[0] in ("regression", "broken"))
    assert str(verdict)


def test_the_threshold_is_the_benchmarks_own() -> None:
    small = judged(*measured([1.0, 1.0, 1.06, 1.06], threshold=0.1))
    assert not small.is_bad
    assert "below the 10% that counts" in str(small)


def test_more_is_better_for_some() -> None:
    assert judged(*measured([1.0, 1.0, 0.8, 0.8], better="higher", unit="graphs/s")).is_bad
    assert judged(*measured([1.0, 1.0, 1.2, 1.2], better="higher", unit="graphs/s")).state == "improvement"


def test_few_rounds_tell_nothing_and_say_so() -> None:
    """Not even of a change by a half."""
    verdict = judged(*measured([1.0, 1.5], rounds=3))
    assert str(verdict) == "too few rounds to tell (n = 3 and 3)"
    assert not verdict.is_bad


def test_noise_is_told_with_what_could_be_seen() -> None:
    assert judged(*measured([1.0, 1.0, 1.0], noise=0.2)).state == "too noisy"


def test_many_benchmarks_without_a_change_seldom_raise_an_alarm() -> None:
    """Forty of 3% noise: at most one, where a hundredth each would be as many in two of three times."""
    rng = random.Random(3)
    entries = [
        entry(place, number, [rng.lognormvariate(0, 0.03)], name=f"a.time_{k}")
        for k in range(40) for number in range(1, 13) for place in range(6)
    ]  # fmt: skip
    assert sum(v.is_bad for v in verdicts(series(entries))) <= 1


def test_a_benchmark_that_is_gone_is_told_of() -> None:
    beside = measured([1.0, 1.0, 1.0], name="a.time_other")
    found = {v.series.name: v for v in verdicts(series([*measured([1.0, 1.0]), *beside]))}
    assert found["a.time_it"].is_gone
    assert str(found["a.time_it"]).endswith("; not there on 0000000000")
    assert not found["a.time_other"].is_gone


@dataclasses.dataclass(frozen=True)
class Rate:
    name: str = "graphs per second"
    unit: str = "1/s"
    better: str = "higher"


def run(folder: Path, commit: str | None, when: float, *, changed: bool | None = False, host: str = "a") -> Record:
    folder.mkdir(parents=True)
    known = {"commit": commit, "changed_since_commit": changed, "time_s": when, "host": host, "cpu": "c"}
    (folder / "provenance.json").write_text(json.dumps(known))
    return Record(folder, {"id": "0123456789ab", "name": "n", "suite": "s"}, "done")


def test_runs_of_suites_enter_under_their_commit_and_machine(tmp_path: Path) -> None:
    """A rate that falls by a tenth after ten commits; runs of changed or unknown code are no commit's."""
    runs = [run(tmp_path / str(k), f"{k:040x}", 1000 + k) for k in range(20)]
    runs += [run(tmp_path / "dirty", "d" * 40, 1.0, changed=True), run(tmp_path / "none", None, 1.0, changed=None)]
    runs += [run(tmp_path / "other", f"{3:040x}", 1003, host="b")]
    rng = random.Random(0)

    def metrics_of(record: Record) -> dict[Any, list[float]]:
        level = 1.0 if record.provenance["time_s"] < 1010 else 0.9
        return {Rate(): [level * rng.lognormvariate(0, 0.01) for _ in range(5)]}

    path = tmp_path / FILE_NAME
    assert append(path, run_history.entries(runs, metrics_of, tmp_path)) == 21
    assert append(path, run_history.entries(runs, metrics_of, tmp_path)) == 0
    (verdict,) = verdicts(series(read(path).entries))
    assert verdict.state == "regression"
    assert verdict.since is not None
    assert verdict.since.hash == f"{10:040x}"
    assert verdict.series.machine == "a (c)"
    assert verdict.series.name == "s/n-0123456789 graphs per second"


@pytest.mark.parametrize(
    ("most", "kept"), [(None, [0, 1, 2, 3, 4]), (9, [0, 1, 2, 3, 4]), (3, [0, 2, 4]), (2, [0, 4]), (1, [4])]
)
def test_steps_keep_both_ends(most: int | None, kept: list[int]) -> None:
    commits = [Commit(str(k), k, "") for k in range(5)]
    assert [c.committed_s for c in evenly(commits, most)] == kept


@pytest.mark.parametrize(("lasts", "state"), [(True, "regression"), (False, "no change")])
def test_what_seems_worse_is_measured_as_often_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lasts: bool, state: str
) -> None:
    """A machine that was slow in the first rounds, on one commit alone, is no regression."""
    session = follow.asv_runner.Session(
        Project(tmp_path, {}, tmp_path), [Commit("a" * 40, 1, "a"), Commit("b" * 40, 2, "b")], {"machine": "m"}, True,
        tmp_path / "regression",
    )  # fmt: skip
    asked: list[tuple[int, list[str]]] = []

    def measure(_: object, number: int, bench: Sequence[str]) -> bool:
        asked.append((number, list(bench)))
        return False

    def entries(_: object, number: int) -> Iterator[Entry]:
        chance = random.Random(number)
        for place, commit in enumerate(session.commits):
            for name, slow in (("m.time_one", 1.2 if number <= ROUNDS or lasts else 0.9), ("m.time_two", 1.0)):
                level = (slow if place else 1.0) * chance.gauss(1.0, 0.002)
                yield entry(
                    place, number, [level], session=session.id, commit=commit.hash, name=name, subject=commit.subject
                )

    monkeypatch.setattr(follow.asv_runner, "measure", measure)
    monkeypatch.setattr(follow.asv_results, "entries", entries)
    follow.follow(session, follow.Orders(ROUNDS, quiet=True), tmp_path)
    again = [(number, bench) for number, bench in asked if bench]
    assert [number for number, _ in again] == list(range(1, 2 * ROUNDS + 1))
    assert all(re.search(bench[0], "m.time_one") and not re.search(bench[0], "m.time_two") for _, bench in again)
    found = {v.series.name: v.state for v in follow.judged(session, tmp_path)}
    assert found["m.time_two"] == "no change"
    assert (found["m.time_one"] == "regression") == (state == "regression")
