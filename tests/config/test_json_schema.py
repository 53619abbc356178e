"""The JSON schemas for editors agree with the loader of suites and systems; in overlays, they check only keys."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from jsonschema.protocols import Validator

from harness.config import json_schema, resources, suite, system, yaml_loader
from harness.protocol.errors import UsageError

SUITE = "name: mine\ntitle: Mine\nprogram: ladder\nparameters: {workload: random, precision: fp64}\n"
WITHOUT_PARAMETERS = "name: mine\ntitle: Mine\nprogram: ladder\n"
EXTENSION = "extends: ladder\nname: mine\n"
SYSTEM = """\
name: here
title: Here
scheduler: local
template: job.sh.j2
node: {ranks_per_node: 1}
launch: [""]
"""

GOOD_SUITES = [
    SUITE,
    SUITE + "matrix: {seed: [1, 2], batch_size: [4]}",
    SUITE + "matrix: {mode: [a, 2, 2.5, true]}\nwhere: [mode != 'a']",
    SUITE + "zips: {both: {seed: [1, 2], rounds: [2, 3]}}",
    SUITE + 'variables: {n: 1, m: {k: ["{{ repeat }}"]}}\nwhere: [n == 1, "{{ m != 2 }}"]',
    SUITE + 'resources: {nodes: "{{ 1 + 1 }}", walltime_minutes: 2.5, expected_minutes: null}',
    SUITE + 'sanity: [{event: fact, field: value, at_least: "{{ repeat }}", at_most: 3, equals: [x]}]',
    SUITE + "performance: [{name: p, event: e, field: f, reference: 1, tolerance: 0.1, direction: equal, unit: s}]",
    SUITE + "overlays: {local: {title: Other, parameters: {precision: fp32}}}",
    WITHOUT_PARAMETERS + "matrix: {workload: [random]}\nzips: {z: {precision: [fp64], seed: [1]}}",
    WITHOUT_PARAMETERS + 'parameters: {workload: "{{ w }}", precision: fp64}\nmatrix: {w: [random, crystals]}',
    WITHOUT_PARAMETERS
    + 'parameters: {workload: random, precision: fp64, stages: ["{{ s }}"]}\nmatrix: {s: [baseline]}',
    WITHOUT_PARAMETERS
    + "parameters: {workload: random, precision: fp64, checkpoint: null,"
    + ' model: {hidden_dim: "{{ 8 * 2 }}", num_radial: 2}}',
    WITHOUT_PARAMETERS + "parameters: {workload: random, precision: fp64, atoms: [2, 9], stages: [baseline]}",
    EXTENSION,
    EXTENSION + "parameters: {rounds: null, atoms: [2, 9]}\nresources: null\ntags: null",
    EXTENSION + "matrix: {workload: null}\nparameters: {workload: crystals}\noverlays: {local: {repeats: 2}}",
    "name: t\ntitle: T\nprogram: train",
]
BAD_SUITES = [
    SUITE + "matrixx: {}",
    SUITE + "repeats: 0",
    SUITE + "repeats: [1]",
    SUITE + "pack: 1.5",
    SUITE + "tags: inference",
    SUITE + "tags: [In Capitals]",
    SUITE + "description:",
    SUITE + 'description: "{{ repeat }}"',
    SUITE + "matrix: {seed: 1}",
    SUITE + "matrix: {seed: []}",
    SUITE + "matrix: {seed: [one]}",
    SUITE + "matrix: {mode: [[1]]}\nwhere: [mode]",
    SUITE + 'matrix: {mode: ["{{ repeat }}"]}\nwhere: [mode]',
    SUITE + "zips: {Both: {seed: [1]}}",
    SUITE + "zips: {both: {seed: 1}}",
    SUITE + "exclude: [{}]",
    SUITE + "depends_on: [{cases: {seed: 1}}]",
    SUITE + "variables: {UPPER: 1}\nwhere: [UPPER]",
    SUITE + "resources: {walltime_minutes: long}",
    SUITE + "resources: {minute: 5}",
    SUITE + "resources: {nodes: 0}",
    SUITE + 'resources: "{{ repeat }}"',
    SUITE + "sanity: [{event: fact, field: value, at_least: much}]",
    SUITE + "performance: [{name: p, event: e, field: f, reference: 1, tolerance: 0, direction: equal, unit: s}]",
    SUITE + "performance: [{name: p, event: e, field: f, reference: 1, tolerance: 1, direction: up, unit: s}]",
    SUITE + "overlays: {local: {name: other}}",
    SUITE + "overlays: {local: 1}",
    SUITE + "overlays: [local]",
    SUITE.replace("random", "randm"),
    SUITE.replace("ladder", "lader"),
    SUITE.replace("fp64", "64"),
    SUITE.replace("title: Mine\n", ""),
    SUITE.replace("program: ladder\n", ""),
    SUITE.replace("workload: random, ", ""),
    SUITE.replace("workload", "workloads"),
    SUITE.replace("fp64", "fp64, rounds: many"),
    SUITE.replace("fp64", "fp64, atoms: [1]"),
    SUITE.replace("fp64", "fp64, stages: [baseline, baseline]"),
    SUITE.replace("fp64", "fp64, active_heads: 17"),
    SUITE.replace("fp64", "fp64, model: {widht: 8}"),
    "program: train\nname: t\ntitle: T\nparameters: {workload: random}",
    EXTENSION + "repeat: 2",
    SUITE + "overlays: {local: {repeat: 2}}",
    "extends: [ladder]\nname: mine",
]
# The schema cannot check names, consistency between sections, other files, or values in overlays.
SUITES_ONLY_THE_LOADER_REFUSES = [
    SUITE + "matrix: {sed: [1, 2]}",
    SUITE + 'resources: {nodes: "{{ nods }}"}',
    SUITE + "variables: {unused: 1}",
    SUITE + "matrix: {precision: [fp32]}",
    SUITE + "zips: {both: {seed: [1, 2], rounds: [2]}}",
    SUITE + "overlays: {nowhere: {repeats: 2}}",
    SUITE + "sanity: [{event: fact, at_least: 1}]",
    SUITE.replace("fp64", "fp64, checkpoint: nothing"),
    EXTENSION.replace("ladder", "nothing"),
    EXTENSION + "parameters: {seed: null}",
    EXTENSION + "parameters: {rouns: 3}",
    EXTENSION + "matrix: {precision: []}",
    EXTENSION + "repeats: many",
    EXTENSION + "program: lader",
    SUITE + "overlays: {local: {parameters: {rouns: 3}}}",
]
GOOD_SYSTEMS = [
    SYSTEM,
    SYSTEM.replace("1}", '"{{ settings.n }}"}') + "settings: {n: {help: ranks, default: 2, affects_results: true}}",
    SYSTEM + 'environment: {OMP_NUM_THREADS: "1"}\nlimits: {nodes: null, walltime: [{nodes: 1, minutes: 5}]}',
    "extends: slurm\nname: here",
    "extends: slurm\nname: here\nsettings: {threads: {default: 4}, spare_nodes: null}\nlimits: {array: null}",
]
BAD_SYSTEMS = [
    SYSTEM + "nodes: 3",
    SYSTEM + "environment: {OMP_NUM_THREADS: 1}",
    SYSTEM + "environment: {a b: x}",
    SYSTEM + "modules: module reset",
    SYSTEM + "limits: {walltime: [{nodes: 1}]}",
    SYSTEM + "settings: {n: {default: 2}}",
    SYSTEM + "settings: {n: 2}",
    SYSTEM + "overhead_minutes: -1",
    SYSTEM + 'health_check: "{{ settings.n }}"\nsettings: {n: {help: ranks, default: 2}}',
    SYSTEM.replace("scheduler: local", "scheduler: lsf"),
    SYSTEM.replace("job.sh.j2", "../job.sh.j2"),
    SYSTEM.replace("node: {ranks_per_node: 1}\n", ""),
    SYSTEM.replace("ranks_per_node: 1", "ranks_per_node: many"),
    "extends: slurm\nname: here\nlimit: {}",
]
SYSTEMS_ONLY_THE_LOADER_REFUSES = [
    SYSTEM + 'modules: ["{{ settings.unknown }}"]',
    SYSTEM + "limits: {walltime: [{nodes: 2, minutes: 5}, {nodes: 1, minutes: 5}]}",
    SYSTEM.replace("job.sh.j2", "absent.sh.j2"),
    "extends: slurm\nname: here\nsettings: {threads: {defalt: 4}}",
]
CASES = [
    *(("suites", text, True, True) for text in GOOD_SUITES),
    *(("suites", text, False, False) for text in BAD_SUITES),
    *(("suites", text, True, False) for text in SUITES_ONLY_THE_LOADER_REFUSES),
    *(("systems", text, True, True) for text in GOOD_SYSTEMS),
    *(("systems", text, False, False) for text in BAD_SYSTEMS),
    *(("systems", text, True, False) for text in SYSTEMS_ONLY_THE_LOADER_REFUSES),
]
# A suite with every key; most of REPLACEMENTS are invalid at every key.
COMPLETE_SUITE = (
    SUITE.replace("fp64}", 'fp64, rounds: "{{ n * 2 }}", atoms: [2, 9], model: {hidden_dim: 8, dim_headlayers: 4}}')
    + """
description: Long
variables: {n: "{{ repeat + 1 }}"}
matrix: {mode: [a, b], seed: [1, 2]}
zips: {z: {batches: [1, 2], k: [3, 4]}}
where: [k == 3 or mode == 'a']
exclude: [{mode: a, seed: [1]}]
depends_on: [{cases: {mode: b}, required_cases: {mode: a}}]
sanity: [{event: e, where: {x: 1}, field: f, min_events: 1, max_events: 4, equals: 1, at_least: 1, at_most: 2}]
performance: [{name: p, event: e, field: f, reference: 1, tolerance: 0.1, direction: equal, unit: s}]
repeats: 2
resources: {nodes: 1, ranks_per_node: 1, walltime_minutes: 5, expected_minutes: 1}
pack: 2
retries: 0
tags: [t]
overlays: {local: {matrix: {seed: [1]}, repeats: 1, parameters: {batch_size: 3}}}
"""
)
REPLACEMENTS: list[Any] = [None, "word", "{{ repeat }}", -1, 3.5, [], [1], {}, {"a": 1}]

FILES = json_schema.build_files()
VALIDATORS: dict[str, Validator] = {path.parent.name: Draft202012Validator(json.loads(FILES[path])) for path in FILES}


def is_accepted(kind: str, path: Path) -> bool:
    """Return whether the loader accepts a file."""
    try:
        _ = suite.load_suite(path) if kind == "suites" else system.load_system(path, {})
    except UsageError:
        return False
    return True


def iter_paths(node: Any, loc: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the key path of every part of a document."""
    if loc:
        yield loc
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield from iter_paths(value, (*loc, key))


def replace_value(node: Any, loc: tuple[Any, ...], value: Any) -> Any:
    """Return a copy with another value at a key path."""
    changed = parent = copy.deepcopy(node)
    for key in loc[:-1]:
        parent = parent[key]
    parent[loc[-1]] = value
    return changed


def test_write_files_writes_both_schemas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in VALIDATORS:
        (tmp_path / kind).mkdir()
    monkeypatch.setattr(resources, "get_resource_dir", lambda kind: tmp_path / kind)
    json_schema.write_files()
    for kind, name in json_schema.FILES.items():
        written = json.loads((tmp_path / kind / name).read_text(encoding="utf-8"))
        assert written == VALIDATORS[kind].schema
        Draft202012Validator.check_schema(written)


@pytest.mark.parametrize("kind", VALIDATORS)
def test_every_key_has_a_description(kind: str) -> None:
    root: Any = VALIDATORS[kind].schema
    model = suite.Suite if kind == "suites" else system.System
    extra_keys = {"extends", "overlays"} if kind == "suites" else {"extends"}
    assert set(root["properties"]) == {*model.model_fields, *extra_keys}
    assert all(value["description"] for value in root["properties"].values())
    assert all(value["description"] for value in root["$defs"][model.__name__]["properties"].values())


def test_descriptions_are_the_docstrings_of_the_fields() -> None:
    definitions = VALIDATORS["suites"].schema["$defs"]
    minutes = definitions["Resources-template"]["properties"]["walltime_minutes"]
    assert minutes["description"] == "Wall time after which the case is stopped."
    event = definitions["Check"]["properties"]["event"]
    assert event["description"] == "The kind of event, such as `sample`, whose fields are checked."


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind in VALIDATORS for name in resources.list_resources(kind)]
)
def test_every_shipped_file_is_valid_and_names_its_schema(kind: str, name: str) -> None:
    path = resources.find_resource(kind, name)
    VALIDATORS[kind].validate(yaml_loader.load_yaml(path).data)
    assert path.read_text().startswith(f"# yaml-language-server: $schema={json_schema.FILES[kind]}\n")


@pytest.mark.parametrize(("kind", "text", "schema_accepts", "loader_accepts"), CASES)
def test_schema_and_loader_agree(
    tmp_path: Path, kind: str, text: str, schema_accepts: bool, loader_accepts: bool
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    for name in ("job.sh.j2", "slurm.sh.j2"):
        (tmp_path / name).touch()
    assert VALIDATORS[kind].is_valid(yaml_loader.load_yaml(path).data) is schema_accepts
    assert is_accepted(kind, path) is loader_accepts


@pytest.mark.slow
def test_the_loader_refuses_every_suite_that_the_schema_refuses(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(COMPLETE_SUITE)
    data = yaml_loader.load_yaml(path).data
    assert VALIDATORS["suites"].is_valid(data)
    assert is_accepted("suites", path)
    refused_count = 0
    for loc in iter_paths(data):
        for value in REPLACEMENTS:
            changed = replace_value(data, loc, value)
            # The loader accepts null in a user-defined axis; the schema does not, since it is rarely intended.
            if not VALIDATORS["suites"].is_valid(changed) and not (value is None and isinstance(loc[-1], int)):
                refused_count += 1
                path.write_text(json.dumps(changed))
                assert not is_accepted("suites", path), (loc, value)
    assert refused_count > 3 * len(list(iter_paths(data)))
