"""Logs are typed: every event that a program can write can be read, and any other line is an error."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import inspect

from harness.protocol import checks, events
from harness.protocol.case import Unreadable, read_case, read_log
from harness.protocol.events import VERSION, CaseLog
from harness.protocol.programs import ladder, train
from harness.protocol.records import COMMON_EVENTS, Done, FactEvent, Progress, Start
from harness.protocol.registry import IMPORTED, PROGRAMS
from tests.support.published_results import NAMES, OLDER, unpack_results

LOGS = {name: program.log for name, program in PROGRAMS.items()} | IMPORTED

SAMPLE = {
    "event": "sample", "stage": "baseline", "round": 0, "batch": 0, "structures": 16, "device_s": 0.1,
    "neighbour_lists_s": 0.1, "collation_s": 0.1, "transfer_s": 0.1,
}  # fmt: skip


def write_case(folder: Path, program: str, *lines: dict[str, Any]) -> Path:
    parameters = {"precision": "fp64"} if program in ("ladder", "training_steps") else {}
    (folder / "case.json").write_text(json.dumps({"program": program, "parameters": parameters}))
    all_lines = [{"event": "start", "version": VERSION}, *lines]
    (folder / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in all_lines))
    return folder


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (SAMPLE | {"event": "smaple"}, "unknown event 'smaple' of the program ladder (did you mean 'sample'?)"),
        (SAMPLE | {"divice_s": 1.0}, "sample: unknown field 'divice_s' (did you mean 'device_s'?)"),
        ({k: v for k, v in SAMPLE.items() if k != "device_s"}, "sample: device_s is missing"),
        (SAMPLE | {"device_s": "long"}, "sample: device_s is 'long', expected a number"),
        (SAMPLE | {"round": 0.5}, "sample: round is 0.5, expected a whole number"),
        (SAMPLE | {"load_1min": -1}, "sample: load_1min is -1, expected a number of at least 0"),
        (SAMPLE | {"time_s": True}, "sample: time_s is true, expected a number"),
        ({"event": "fact", "name": "wrokload", "value": {}},
         "unknown fact 'wrokload' of the program ladder (did you mean 'workload'?)"),
        ({"event": "fact", "name": "ceilings", "value": {"squares": [{"dtype": "a", "gflops_per_s": 1.0}]}},
         "fact ceilings: unknown field 'squares.0.gflops_per_s' (did you mean 'gflop_per_s'?)"),
        ({"event": "fact", "name": "gate",
          "value": {"threshold": 0, "active_heads": [], "mean_weight": {"a": 1, "b": 7}}},
         "fact gate: mean_weight.b is 7, expected at most 1.001"),
        ({"event": "fact", "name": "free_bytes", "value": -1},
         "fact free_bytes: value is -1, expected a number of at least 0"),
        ({"event": "profile", "stage": "a", "rows": {}}, "profile: rows is {}, expected a list"),
        ({"event": "start", "version": VERSION + 1},
         f"written by a newer version ({VERSION + 1}; this harness reads up to {VERSION})"),
    ],
)  # fmt: skip
def test_an_invalid_line_is_reported_with_its_number(tmp_path: Path, line: dict[str, Any], message: str) -> None:
    folder = write_case(tmp_path, "ladder", SAMPLE, line)
    with pytest.raises(Unreadable) as caught:
        read_log(folder, read_case(folder))
    assert str(caught.value) == f"events.jsonl:3: {message}"


def test_log_of_an_unknown_program_is_checked_for_common_events(tmp_path: Path) -> None:
    progress = {"event": "progress", "done": 1, "total": 2, "speed": "high"}
    folder = write_case(tmp_path, "mine", {"event": "sample", "anything": [1]}, progress)
    assert len(read_log(folder, read_case(folder))) == 3
    folder = write_case(tmp_path, "mine", progress | {"done": "one"})
    with pytest.raises(Unreadable, match=r"events\.jsonl:2: progress: done is 'one', expected a whole number"):
        read_log(folder, read_case(folder))


@pytest.mark.parametrize("name", ["ladder", "train"])
def test_log_accepts_only_events_and_facts_of_its_program(tmp_path: Path, name: str) -> None:
    log = CaseLog(tmp_path / "events.jsonl", name)
    log.write(Progress(done=1, total=2))
    other_facts: Any = ladder.LadderFacts(free_bytes=1.0) if name == "train" else train.TrainFacts(compiled_graphs=1)
    with pytest.raises(ValueError, match="is not the type of the facts of the program"):
        log.record_facts(other_facts)
    with pytest.raises(ValueError, match="unknown event"):
        log.write(train.Stopped(reason="") if name == "ladder" else ladder.Unavailable(stage="", reason=""))
    assert [e["event"] for e in events.read(log.path)] == ["progress"]


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
def test_invalid_value_is_not_written(tmp_path: Path, value: float) -> None:
    log = CaseLog(tmp_path / "events.jsonl", "train")
    with pytest.raises(ValueError, match=r"JSON|duration_s is -1\.0, expected a number of at least 0"):
        log.write(train.TrainEpoch(epoch=0, step=1, duration_s=value, structures_per_s=1.0))
    assert log.path.read_bytes() == b""


def test_a_misspelt_field_cannot_be_written() -> None:
    wrong: dict[str, Any] = {"done": 1, "total": 2, "waht": "steps"}
    with pytest.raises(TypeError, match="waht"):
        Progress(**wrong)


def test_all_published_logs_can_be_read() -> None:
    logs = [log for name in (*NAMES, OLDER) for log in sorted(unpack_results(name).rglob("events.jsonl"))]
    assert len(logs) > 100
    for log in logs:
        assert read_log(log.parent, read_case(log.parent)), log


def make_strategy(kind: inspect.Type) -> st.SearchStrategy[Any]:
    """Return a strategy for values of a field's type, as plain data."""
    return STRATEGIES[type(kind)](kind)


def make_integer_strategy(kind: Any) -> st.SearchStrategy[Any]:
    return st.integers(-(10**6) if kind.ge is None else kind.ge, 10**6 if kind.le is None else kind.le)


def make_float_strategy(kind: Any) -> st.SearchStrategy[Any]:
    low, high = kind.ge if kind.gt is None else kind.gt, 1e9 if kind.le is None else kind.le
    return st.floats(low, high, exclude_min=kind.gt is not None, allow_nan=False)


STRATEGIES: dict[Any, Callable[[Any], st.SearchStrategy[Any]]] = {
    inspect.NoneType: lambda _: st.none(),
    inspect.BoolType: lambda _: st.booleans(),
    inspect.IntType: make_integer_strategy,
    inspect.FloatType: make_float_strategy,
    inspect.StrType: lambda _: st.text(max_size=9),
    inspect.ListType: lambda k: st.lists(make_strategy(k.item_type), min_size=k.min_length or 0, max_size=3),
    inspect.TupleType: lambda k: st.tuples(*map(make_strategy, k.item_types)).map(list),
    inspect.DictType: lambda k: st.dictionaries(st.text(max_size=5), make_strategy(k.value_type), max_size=3),
    inspect.UnionType: lambda k: st.one_of(*map(make_strategy, k.types)),
    inspect.LiteralType: lambda k: st.sampled_from(k.values),
    inspect.AnyType: lambda _: st.none() | st.integers(-9, 9) | st.text(max_size=3),
    inspect.StructType: lambda k: make_struct_strategy(k.cls),
}


def make_struct_strategy(kind: type[msgspec.Struct]) -> st.SearchStrategy[Any]:
    """Return a strategy for plain data of a struct type, in which optional fields may be absent."""
    required, optional = {}, {}
    for field in inspect.type_info(kind).fields:  # type: ignore[attr-defined]
        (required if field.required else optional)[field.encode_name] = make_strategy(field.type)
    return st.fixed_dictionaries(required, optional=optional).filter(lambda plain: has_type(plain, kind))


def has_type(plain: Any, kind: type[msgspec.Struct]) -> bool:
    """Return whether plain data passes the checks of a struct type that concern several fields."""
    tag = kind.__struct_config__.tag
    try:
        msgspec.convert(plain if tag is None else {"event": tag} | plain, kind)
    except msgspec.ValidationError:
        return False
    return True


@pytest.mark.parametrize("program", LOGS)
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_every_event_that_a_program_can_write_can_be_read(
    program: str, data: st.DataObject, tmp_path_factory: Any
) -> None:
    folder = write_case(tmp_path_factory.mktemp("case"), program)
    (folder / "events.jsonl").unlink()
    log = CaseLog(folder / "events.jsonl", program)
    log.write(Start(version=VERSION))
    kinds = [kind for kind in (*COMMON_EVENTS, *LOGS[program].events) if kind not in (Start, FactEvent)]
    kind = data.draw(st.sampled_from(kinds))
    event = msgspec.convert({"event": kind.__struct_config__.tag} | data.draw(make_struct_strategy(kind)), kind)
    log.write(event)
    written = [msgspec.to_builtins(event)]
    fields = [f for f in msgspec.structs.fields(LOGS[program].facts) if f.type != ladder.LadderModel | None]
    if fields:
        field = data.draw(st.sampled_from(fields))
        value = data.draw(make_strategy(inspect.type_info(field.type)))
        facts = msgspec.convert({field.encode_name: value}, LOGS[program].facts)
        log.record_facts(facts)
        written += [{"event": "fact", "name": k, "value": v} for k, v in msgspec.to_builtins(facts).items()]
    read = read_log(folder, read_case(folder))
    times = {"time_s": 0}
    assert [e | times for e in read[1:]] == [json.loads(json.dumps(e)) | times for e in written]


def test_stall_of_the_file_system_is_an_event_and_the_reason_of_a_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pause of the write stands for a file system that does not answer."""
    log = CaseLog(tmp_path / "events.jsonl", "data_parallel")
    log.write(Start(program="data_parallel"))
    monkeypatch.setattr(events, "MAX_WRITE_S", 0.05)
    write = os.write
    monkeypatch.setattr(os, "write", lambda handle, text: (time.sleep(0.2 * (b"slow" in text)), write(handle, text))[1])
    log.write(Progress(done=1, total=2, activity="slow"))
    log.write(Progress(done=2, total=2, activity="fast"))
    log.write(Done())
    written = list(events.read(tmp_path / "events.jsonl"))
    assert [e["event"] for e in written] == ["start", "progress", "stall", "progress", "done"]
    assert written[2]["seconds"] == pytest.approx(0.2, abs=0.15)
    written[2]["seconds"] = 58.4
    state, reason = checks.evaluate_case({}, written, 0)
    assert (state, reason) == ("done", "the file system did not answer for 58 s, so that times are too long")
    assert checks.evaluate_case({}, [written[0], written[-1]], 0) == ("done", "")


@pytest.mark.parametrize(
    ("check", "event", "failure"),
    [
        ({"field": "v"}, {"v": None}, "e: v is null"),
        ({"field": "v"}, {"w": 1}, "e has no field 'v' (there are: event, w)"),
        ({"field": "v.0.a", "equals": 1}, {"v": [{"a": 1.0}]}, None),
        ({"field": "v", "equals": 1}, {"v": True}, "e: v is True, expected 1"),
        ({"field": "v", "equals": True}, {"v": True}, None),
        ({"field": "v", "at_least": 1}, {"v": True}, "e: v is True, expected a number of at least 1"),
        ({"field": "v", "at_most": 20}, {"v": "12"}, "e: v is '12', expected a number of at most 20"),
        ({"field": "v", "at_least": 1, "at_most": 2}, {"v": 3}, "e: v is 3, expected at most 2"),
    ],
    ids=str,
)
def test_sanity_checks_say_what_is_wrong(check: dict[str, Any], event: dict[str, Any], failure: str | None) -> None:
    assert checks.find_sanity_failure({"event": "e"} | check, [{"event": "e"} | event]) == failure


@pytest.mark.parametrize(
    ("values", "verdict"),
    [([1.0, 1.05], "ok"), ([2.0, 3], "worse"), ([0.5], "better"), ([None, 1.0], "not measured"), ([], "not measured"),
     ([math.nan, 1.0], "not measured"), ([True], "not measured"), (["1.0"], "not measured")],
    ids=str,
)  # fmt: skip
def test_a_figure_of_merit_needs_a_number_in_every_event(values: list[Any], verdict: str) -> None:
    check = {"name": "step-time", "event": "e", "field": "v", "reference": 1.0, "tolerance": 0.1, "unit": "s",
             "direction": "lower_is_better", "statistic": "max"}  # fmt: skip
    merit = checks.compute_figure_of_merit(check, [{"event": "e", "v": value} for value in values])
    assert merit.verdict == verdict
    assert (merit.measured is None) == (verdict == "not measured")
