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
from harness.protocol import case, checks
from harness.protocol.errors import UsageError
from harness.protocol.events import COMMON_EVENTS, VERSION
from harness.protocol.parameters import _iter_members
from harness.protocol.registry import IMPORTED, PROGRAMS, find_log_types, parse_parameters
from harness.protocol.renamed import (
    CASE_KEYS,
    CHECK_KEYS,
    CLAIM_KEYS,
    PARAMETERS,
    RECORDS,
    SETTINGS,
    SUFFIXES,
    SYSTEM_KEYS,
    Record,
)
from harness.protocol.upgrade import convert_event, convert_notes, convert_parameters
from harness.results.runs import RunRecord, load_run_folder

CONFIG = {"readout": "sum", "cutoff": 5.0}
PROGRAM_NAMES = [*PROGRAMS, *IMPORTED]


def make_example(kind: inspect.Type, name: str, record: Record) -> Any:  # noqa: PLR0911
    """Return a value of a type with all its fields; text has a renamed value if its field has one."""
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
    """Return plain data with the old names of fields and values."""
    names = {new: old for old, new in record.fields.items()}
    if isinstance(value, dict):
        return {
            names.get(key) or restore_suffix(key): restore_names(child, record, key) for key, child in value.items()
        }
    if isinstance(value, list):
        return [restore_names(child, record, name) for child in value]
    values = {new: old for old, new in record.values.get(name, {}).items()}
    return values.get(value, value) if isinstance(value, str) else value


def restore_suffix(name: str) -> str:
    """Return the name of a field with the old form of the unit at its end."""
    return next((name.removesuffix(new) + old for old, new in SUFFIXES.items() if name.endswith(new)), name)


def merge_records(program: str, old: str) -> Record:
    """Return one record with all renamed fields and values of an event or a fact of a program."""
    parts = [r for r in RECORDS if r.old == old and (not r.programs or program in r.programs.split())]
    fields = {a: b for part in parts for a, b in part.fields.items()}
    values = {a: b for part in parts for a, b in part.values.items()}
    return Record(program, old, next((part.new for part in parts if part.new), ""), fields, values)


def list_renamed_records() -> Iterator[tuple[str, str]]:
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


@pytest.mark.parametrize(("program", "old"), sorted(set(list_renamed_records())))
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


@pytest.mark.parametrize(("old", "new"), SUFFIXES.items())
def test_unit_at_the_end_of_a_field_has_its_present_name_in_every_event(tmp_path: Path, old: str, new: str) -> None:
    """This holds for events and facts without a row in the table, and for sanity checks."""
    event = {"event": "mine", f"force{old}": 1.0, "rows": [{f"stress{old}": 2.0, f"a{old}_b": 3.0}]}
    fact = {"event": "fact", "name": "mine", "value": {f"force{old}": 1.0}}
    assert convert_event("none", event) == {
        "event": "mine", f"force{new}": 1.0, "rows": [{f"stress{new}": 2.0, f"a{old}_b": 3.0}],
    }  # fmt: skip
    assert convert_event("none", fact) == fact | {"value": {f"force{new}": 1.0}}
    row = {"event": "mine", "where": {f"force{old}": 1.0}, "field": f"rows.0.stress{old}", "equals": 3.0}
    (tmp_path / "case.json").write_text(json.dumps({"program": "none", "sanity": [row], "performance": []}))
    assert case.read_case(tmp_path)["sanity"] == [
        {"event": "mine", "where": {f"force{new}": 1.0}, "field": f"rows.0.stress{new}", "equals": 3.0}
    ]


def test_every_renamed_record_belongs_to_a_program() -> None:
    known = {old for _, old in list_renamed_records()}
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
    old = {
        "sets": ["qm7x"],
        "epoch_length": 800,
        "units": "head",
        "messages": "plain",
        "temperature": 2.0,
        "seed": 1,
        "stores": "",
        "minutes": 5.0,
        "checkpoint_s": 9.0,
    }
    new = convert_parameters("train", old) | {"seed": 2}
    assert new == {"datasets": ["qm7x"], "samples_per_epoch": 800, "loss_units": "per_head",
                   "message_backend": "unfused", "sampling_temperature": 2.0, "store_folder": "",
                   "time_limit_minutes": 5.0, "checkpoint_interval_s": 9.0, "seed": 2}  # fmt: skip
    facts = {"workload": {"datasets": [{"dataset": "qm7x"}]}}
    records = [
        RunRecord("c/a", case.upgrade_case({"program": "train", "parameters": p, **v}), "done", facts=facts)
        for p, v in ((old, {}), (new, {"version": VERSION}))
    ]
    digests = [{k: metrics._get_run_columns(r)[k] for k in ("setup", "recipe")} for r in records]
    assert digests[0] == digests[1]


def test_notes_of_old_checkpoints_have_the_present_names() -> None:
    notes = {"training": {"held_out": 0.1}, "held_out": [{"set": "qm7x", "unseen_elements": 1}], "closest_of": 3}
    assert convert_notes(notes) == {
        "training": {"test_fraction": 0.1}, "closest_of": 3,
        "test_errors": [{"dataset": "qm7x", "structures_with_unseen_elements": 1}],
    }  # fmt: skip


def list_fields(model: type[BaseModel], parents: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the key path of each parameter."""
    for name, field in model.model_fields.items():
        yield (*parents, name)
        for member in _iter_members(field.annotation):
            if isinstance(member, type) and issubclass(member, BaseModel):
                yield from list_fields(member, (*parents, name))


def list_old_parameters() -> Iterator[tuple[str, tuple[str, ...], str]]:
    for program, group in PARAMETERS.items():
        for old, new in group.names.items():
            for key_path in list_fields(PROGRAMS[program].parameters):
                if key_path[-1] == new:
                    yield program, (*key_path[:-1], old), new


@pytest.mark.parametrize(("program", "key_path", "new"), sorted(set(list_old_parameters())))
def test_old_parameter_is_refused_with_the_present_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], program: str, key_path: tuple[str, ...], new: str
) -> None:
    lines = [f"{'  ' * depth}{key}:" for depth, key in enumerate(key_path, start=1)]
    path = tmp_path / "old.yaml"
    path.write_text("\n".join(["name: old", "title: Old", f"program: {program}", "parameters:", *lines]) + " 1\n")
    assert main(["plan", str(path), "--system", "local"]) == 2
    message = f"{path}:{4 + len(key_path)}:{1 + 2 * len(key_path)}: key {key_path[-1]!r} is now called {new!r}"
    assert message in capsys.readouterr().err


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


@pytest.mark.parametrize("keys", [CASE_KEYS, CLAIM_KEYS, SETTINGS, SYSTEM_KEYS])
def test_no_old_key_is_also_a_present_one(keys: Mapping[str, str]) -> None:
    assert not keys.keys() & set(keys.values())


def test_sanity_checks_of_old_cases_have_the_same_results_as_before(tmp_path: Path) -> None:
    row = {"event": "epoch", "field": "loss", "at_least": 2, "at_most": 3, "above": 0, "below": 1.5}
    old = {
        "program": "train",
        "minutes": 5,
        "after": ["a"],
        "settings": {"stores": "/s", "threads": 1},
        "sanity": [row],
    }
    (tmp_path / "case.json").write_text(json.dumps(old))
    new = case.read_case(tmp_path)
    assert (new["walltime_minutes"], new["depends_on"]) == (5, ["a"])
    assert new["settings"] == {"store_folder": "/s", "threads": 1}
    (check,) = new["sanity"]
    assert check.keys() == {"event", "field", *CHECK_KEYS.values()}
    for losses, passes in (
        ([0.5, 1], True), ([5e-324, 1.4999999], True), ([0, 1], False), ([1, 1.5], False), ([1], False),
        ([1] * 4, False),
    ):  # fmt: skip
        failure = checks.find_sanity_failure(check, [{"event": "epoch", "loss": loss} for loss in losses])
        assert (failure is None) is passes, losses


SUITE = "name: old\ntitle: Old\nprogram: train\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("scale: {local: {repeats: 2}}", "1: key 'scale' is now called 'overlays'"),
        ("resources: {minutes: 5}", "13: key 'minutes' is now called 'walltime_minutes'"),
        ("matrix: {link: [1, 2]}\nparameters: {seed: '{{ chain_index }}'}",
         "10: key 'link' is now called 'chain_index'"),
        ("parameters: {seed: '{{ per_node }}'}\nvariables: {ranks_per_node: 1}",
         "14: parameters.seed: unknown name 'per_node' (it is now called 'ranks_per_node')"),
        ("parameters: {store_folder: '{{ settings.stores }}'}",
         "settings has no 'stores' (it is now called 'store_folder')"),
        ("sanity: [{event: head}]", "11: sanity.0.event: event 'head' is now called 'head_errors'"),
        ("sanity: [{event: fact, where: {name: held_out}}]",
         "sanity.0.where.name: 'held_out' is now called 'test_errors'"),
        ("sanity: [{event: epoch, field: seconds}]", "sanity.0.field: field 'seconds' is now called 'duration_s'"),
        ("sanity: [{event: fact, where: {name: workload, value.units: head}}]",
         "sanity.0.where.value.units: field 'value.units' is now called 'value.loss_units'"),
        ("sanity: [{event: fact, where: {name: workload, value.loss_units: head}}]",
         "sanity.0.where.value.loss_units: 'head' is now called 'per_head'"),
        ("sanity: [{event: epoch, where: {seconds: 1, duration_s: 1}}]",
         "sanity.0.where.seconds: field 'seconds' is now called 'duration_s'"),
        ("performance: [{event: fact, where: {name: observed}, field: value.world_size, name: n, reference: 1,"
         " tolerance: 0.1, direction: equal, unit: ''}]",
         "performance.0.where.name: 'observed' is now called 'runtime'"),
    ],
)  # fmt: skip
def test_old_names_in_a_suite_are_refused_with_the_present_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    (tmp_path / "old.yaml").write_text(SUITE + text + "\n")
    assert main(["plan", str(tmp_path / "old.yaml"), "--system", "local"]) == 2
    assert message in capsys.readouterr().err


def test_checks_with_present_names_are_accepted(tmp_path: Path) -> None:
    rows = (
        "[{event: head_errors}, {event: epoch, field: duration_s, at_least: 0}, {event: fact, where: {name: runtime}}]"
    )
    (tmp_path / "new.yaml").write_text(f"{SUITE}sanity: {rows}\n")
    assert main(["plan", str(tmp_path / "new.yaml"), "--system", "local"]) == 0


def test_old_settings_are_refused_wherever_they_are_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    args = ["plan", "scaling", "--system", "local"]
    assert main([*args, "-S", "stores=/s"]) == 2
    assert capsys.readouterr().err == "error: -S stores: the setting is now called 'store_folder'\n"
    (tmp_path / "gfm-harness").mkdir()
    for text, location in (("stores: /s", "1:1"), ("local: {stores: /s}", "1:9")):
        (tmp_path / "gfm-harness" / "settings.yaml").write_text(text)
        assert main(args) == 2
        assert f"{location}: stores: the setting is now called 'store_folder'" in capsys.readouterr().err
    (tmp_path / "gfm-harness" / "settings.yaml").unlink()
    monkeypatch.setenv("HARNESS_STORES", "/s")
    assert main(args) == 2
    assert capsys.readouterr().err == "error: HARNESS_STORES is now called HARNESS_STORE_FOLDER\n"
