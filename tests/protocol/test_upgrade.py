"""Logs, cases and checkpoint notes with the names of older versions are read; such names are refused in YAML."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from msgspec import inspect, structs
from pydantic import BaseModel

from harness.cli.main import main
from harness.experiments.training import metrics
from harness.protocol import case
from harness.protocol.errors import UsageError
from harness.protocol.events import COMMON_EVENTS, VERSION
from harness.protocol.parameters import _iter_members
from harness.protocol.registry import IMPORTED, PROGRAMS, find_log_types, parse_parameters
from harness.protocol.renamed import CASE_KEYS, PARAMETERS, RECORDS, YAML_KEYS, Record
from harness.protocol.upgrade import convert_notes, convert_parameters
from harness.results.runs import RunRecord, load_run_folder

CONFIG = {"readout": "sum", "cutoff": 5.0}
PROGRAM_NAMES = [*PROGRAMS, *IMPORTED]


def make_example(kind: inspect.Type, name: str, record: Record) -> Any:  # noqa: PLR0911
    """Return a value of a type with all fields, and with a renamed value where there is one."""
    match kind:
        case inspect.StructType():
            fields = {f.encode_name: make_example(f.type, f.encode_name, record) for f in kind.fields}
            return ({kind.tag_field: kind.tag} if kind.tag_field else {}) | fields
        case inspect.UnionType():
            return make_example(kind.types[0], name, record)
        case inspect.ListType():
            return [make_example(kind.item_type, name, record)]
        case inspect.TupleType():
            return [make_example(item, name, record) for item in kind.item_types]
        case inspect.DictType():
            return CONFIG if name == "config" else {"key": make_example(kind.value_type, name, record)}
        case inspect.LiteralType():
            return kind.values[0]
        case inspect.StrType():
            return next(iter(record.values.get(name, {}).values()), "text")
        case inspect.BoolType():
            return True
        case inspect.FloatType():
            return 1.0
    return 1


def restore_names(value: Any, record: Record, name: str = "") -> Any:
    """Return plain data with the old names and values."""
    names = {new: old for old, new in record.fields.items()}
    if isinstance(value, dict):
        return {names.get(key, key): restore_names(inner, record, key) for key, inner in value.items()}
    if isinstance(value, list):
        return [restore_names(inner, record, name) for inner in value]
    values = {new: old for old, new in record.values.get(name, {}).items()}
    return values.get(value, value) if isinstance(value, str) else value


def merge_records(program: str, old: str) -> Record:
    """Return all that has a new name in an event or a fact of a program."""
    parts = [r for r in RECORDS if r.old == old and (not r.programs or program in r.programs.split())]
    fields = {a: b for part in parts for a, b in part.fields.items()}
    values = {a: b for part in parts for a, b in part.values.items()}
    return Record(program, old, next((part.new for part in parts if part.new), ""), fields, values)


def list_renamed() -> Iterator[tuple[str, str]]:
    for program in PROGRAM_NAMES:
        types = find_log_types(program)
        assert types is not None
        tags = {str(kind.__struct_config__.tag) for kind in (*COMMON_EVENTS, *types.events)}
        facts = {field.encode_name for field in structs.fields(types.facts)}
        for record in RECORDS:
            name = record.new or record.old.removeprefix("fact ")
            known = facts if record.old.startswith("fact ") else tags
            if name in known and (not record.programs or program in record.programs.split()):
                yield program, record.old


def write_log(folder: Path, program: str, start: Mapping[str, Any], event: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Write a case with a log of two events, and return the events that are read."""
    folder.mkdir(parents=True)
    (folder / "case.json").write_text(json.dumps({"program": program}))
    lines = ({"event": "start", "time_s": 1.0, **start}, {"time_s": 2.0, **event})
    (folder / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return [dict(e) for e in case.read_log(folder, {"program": program})]


@pytest.mark.parametrize(("program", "old"), sorted(set(list_renamed())))
def test_log_with_old_names_is_read_like_one_with_the_present_names(tmp_path: Path, program: str, old: str) -> None:
    types, record = find_log_types(program), merge_records(program, old)
    assert types is not None
    name = record.new or old.removeprefix("fact ")
    if old.startswith("fact "):
        kind = next(field.type for field in structs.fields(types.facts) if field.encode_name == name)
        value = make_example(inspect.type_info(kind), name, record)
        new_event = {"event": "fact", "name": name, "value": value}
        old_event = {"event": "fact", "name": old.removeprefix("fact "), "value": restore_names(value, record)}
    else:
        event = next(e for e in (*COMMON_EVENTS, *types.events) if str(e.__struct_config__.tag) == name)
        new_event = make_example(inspect.type_info(event), name, record) | {"event": name}
        old_event = restore_names(new_event, record) | {"event": old}
    expected = write_log(tmp_path / "new", program, {"version": VERSION}, new_event)
    assert write_log(tmp_path / "old", program, {"version": 1}, old_event)[1:] == expected[1:]
    assert old_event != new_event


def test_every_renamed_record_belongs_to_a_program() -> None:
    known = {old for _, old in list_renamed()}
    assert {record.old for record in RECORDS} == known


def test_case_with_old_names_is_read_like_one_with_the_present_names(tmp_path: Path) -> None:
    old = {
        "program": "data_parallel", "point": {"mode": "weak"},
        "parameters": {"sets": ["qm7x"], "network": {"latency_us": 1.0, "bandwidth_gb_s": 25.0}},
        "sanity": [{"event": "fact", "where": {"name": "observed"}, "field": "value.requested", "equals": "fp64"},
                   {"event": "own_step", "field": "busy", "where": {"exchanged": True}}],
        "performance": [{"event": "region", "where": {"name": "gradient"}, "field": "seconds", "name": "force",
                         "unit": "s", "reference": 1.0, "tolerance": 0.1, "direction": "equal"}],
    }  # fmt: skip
    (tmp_path / "case.json").write_text(json.dumps(old))
    performance = old["performance"][0] | {"where": {"name": "force_gradient"}, "field": "duration_s"}  # type: ignore[index,operator]
    assert case.read_case(tmp_path) == {
        "program": "data_parallel", "axis_values": {"mode": "weak"},
        "parameters": {"datasets": ["qm7x"], "network": {"latency_us": 1.0, "bandwidth_gb_per_s": 25.0}},
        "sanity": [{"event": "fact", "where": {"name": "runtime"}, "field": "value.precision", "equals": "fp64"},
                   {"event": "local_step", "field": "busy_s", "where": {"gradients_synchronized": True}}],
        "performance": [performance],
    }  # fmt: skip


def test_case_of_this_version_is_not_converted(tmp_path: Path) -> None:
    content = {"program": "new", "version": VERSION, **{key: {} for key in CASE_KEYS}}
    (tmp_path / "case.json").write_text(json.dumps(content))
    assert case.read_case(tmp_path) == content


def test_case_of_a_newer_version_is_unreadable(tmp_path: Path) -> None:
    (tmp_path / "case.json").write_text(json.dumps({"program": "train", "version": VERSION + 1}))
    record = load_run_folder(str(tmp_path))
    assert record.error == (
        f"case.json: written by a newer version ({VERSION + 1}; this harness reads up to {VERSION})"
    )


def test_runs_before_and_after_the_renaming_have_equal_digests() -> None:
    old = {"sets": ["qm7x"], "epoch_length": 800, "units": "head", "messages": "plain", "temperature": 2.0, "seed": 1}
    new = convert_parameters("train", old) | {"seed": 2}
    assert new == {"datasets": ["qm7x"], "samples_per_epoch": 800, "loss_units": "per_head",
                   "message_backend": "unfused", "sampling_temperature": 2.0, "seed": 2}  # fmt: skip
    facts = {"workload": {"datasets": [{"dataset": "qm7x"}]}}
    records = [
        RunRecord("c/a", case.upgrade_case({"program": "train", "parameters": p, **v}), "done", facts=facts)
        for p, v in ((old, {}), (new, {"version": VERSION}))
    ]
    digests = [{k: metrics._identify(r)[k] for k in ("experiment", "recipe")} for r in records]
    assert digests[0] == digests[1]


def test_notes_of_old_checkpoints_have_the_present_names() -> None:
    notes = {"training": {"held_out": 0.1}, "held_out": [{"set": "qm7x", "unseen_elements": 1}], "closest_of": 3}
    assert convert_notes(notes) == {
        "training": {"test_fraction": 0.1}, "closest_of": 3,
        "test_errors": [{"dataset": "qm7x", "structures_with_unseen_elements": 1}],
    }  # fmt: skip


def list_fields(model: type[BaseModel], at: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the key path of each parameter."""
    for name, field in model.model_fields.items():
        yield (*at, name)
        for member in _iter_members(field.annotation):
            if isinstance(member, type) and issubclass(member, BaseModel):
                yield from list_fields(member, (*at, name))


def list_old_parameters() -> Iterator[tuple[str, tuple[str, ...], str]]:
    for program, group in PARAMETERS.items():
        for old, new in group.names.items():
            for at in list_fields(PROGRAMS[program].parameters):
                if at[-1] == new:
                    yield program, (*at[:-1], old), new


@pytest.mark.parametrize(("program", "at", "new"), sorted(set(list_old_parameters())))
def test_old_parameter_is_refused_with_the_present_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], program: str, at: tuple[str, ...], new: str
) -> None:
    lines = [f"{'  ' * depth}{key}:" for depth, key in enumerate(at, start=1)]
    path = tmp_path / "old.yaml"
    path.write_text("\n".join(["name: old", "title: Old", f"program: {program}", "parameters:", *lines]) + " 1\n")
    assert main(["plan", str(path), "--system", "local"]) == 2
    place = f"{path}:{4 + len(at)}:{1 + 2 * len(at)}: key {at[-1]!r} is now called {new!r}"
    assert place in capsys.readouterr().err


def test_old_axis_and_old_value_are_refused_with_the_present_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "old.yaml"
    path.write_text(
        "name: old\ntitle: Old\nprogram: train\nparameters: {loss_units: head}\nmatrix: {temperature: [1.0]}\n"
    )
    assert main(["plan", str(path), "--system", "local"]) == 2
    errors = capsys.readouterr().err
    assert f"{path}:4:14: parameters.loss_units: 'head' is now called 'per_head'" in errors
    assert f"{path}:5:10: key 'temperature' is now called 'sampling_temperature'" in errors


def test_old_hyperparameter_of_a_search_is_refused_with_the_present_one() -> None:
    with pytest.raises(UsageError, match="hyperparameter 'temperature' is now called 'sampling_temperature'"):
        parse_parameters("hpo", {"space": {"temperature": [1.0]}})


def test_every_old_key_names_a_present_one() -> None:
    assert not YAML_KEYS.keys() & set(YAML_KEYS.values())
