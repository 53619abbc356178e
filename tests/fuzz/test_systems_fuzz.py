"""Randomly changed suites, systems, settings and expressions are planned, or refused with readable errors."""

from __future__ import annotations

import copy
import io
import math
import os
import random
from collections.abc import Callable
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from harness.cli.main import main
from harness.config import expressions, resources
from harness.config.evaluation import FILTERS, ExpressionError
from tests.fuzz.bounded import COUNT, run_fuzzer

pytestmark = pytest.mark.slow
YAML_FILES = YAML(typ="safe", pure=True)
FILES = {kind: sorted(resources.get_resource_dir(kind).glob("*.yaml")) for kind in ("suites", "systems")}
DOCUMENTS = {path: YAML_FILES.load(path) for paths in FILES.values() for path in paths}
BYTES = (b"", b"\n", b": ", b"- ", b"'", b"\xff", b"&a ", b"*a", b"\t", b"0")
NAMES = ("a", "b", "long", "deep", "none", "system.nodes", "settings.threads", "nope")
VALUES = {
    "a": 3, "b": -0.5, "long": "x" * 900, "deep": [[1, "two"], {"k": [3]}], "system": {"nodes": 8},
    "settings": {"threads": 2},
}  # fmt: skip
STRINGS = (
    "", "0123", "1e400", "~", "null", "yes", "é", "\u202e", "a b", "$HOME", "${X:?", "`x`", "'", '"', "\\", "{{", "}}",
    "%p", "x" * 3000, "../..", "/dev/null", "local", "slurm", "pbs", "painn-64", "fp64", "nodes",
)  # fmt: skip
NUMBERS = (0, 1, -1, 2, 7, 63, 64, 2**31, 2**62, 10**9, 10**30, 0.0, -0.0, 1.5, 1e-300, 1e300, math.inf, math.nan)


def draw_expression(rng: random.Random, depth: int = 0) -> str:
    """Draw an expression that is valid or nearly valid."""
    if depth > 6 or rng.random() < 0.25:
        return rng.choice(
            [str(rng.choice(NUMBERS)), repr(rng.choice(STRINGS[:14])), rng.choice(NAMES), "true", "none", "[]", "{}"]
        )
    first, second, third = (draw_expression(rng, depth + 1 + rng.randrange(3)) for _ in range(3))
    operator = rng.choice(("+", "-", "*", "/", "//", "%", "**", "~", "==", "!=", "<", "<=", "and", "or", "in"))
    filter_name = rng.choice((*FILTERS, "center", "indent", "batch", "slice", "format", "replace", "join"))
    return rng.choice(
        [
            f"({first} {operator} {second})",
            f"(not {first})", f"(-{first})", f"({first} if {second} else {third})", f"[{first}, {second}, {third}]",
            f"{{'k': {first}, {second}: {third}}}", f"({first}) | {filter_name}",
            f"({first}) | {filter_name}({second}, {third})",
            f"({first})[{second}]", f"({first})[{second}:{third}]", f"range({first})",
            f"({first}).{rng.choice(('x', '__class__'))}",
            f"({first} is defined)", first * rng.randrange(1, 4), "(" * rng.randrange(300) + first,
        ]
    )  # fmt: skip


def draw_value(rng: random.Random) -> Any:
    match rng.randrange(6):
        case 0:
            return rng.choice(NUMBERS)
        case 1:
            return rng.choice(STRINGS)
        case 2:
            return "{{ " + draw_expression(rng, 2) + " }}"
        case 3:
            return rng.choice([None, True, False])
        case 4:
            return [draw_value(rng) for _ in range(rng.randrange(4))]
    return {rng.choice(STRINGS[5:]): draw_value(rng) for _ in range(rng.randrange(4))}


def mutate(rng: random.Random, document: Any) -> None:
    """Change a random key, value or item of the document."""
    nodes = [node for node in _list_nodes(document) if node]
    node, other = rng.choice(nodes), rng.choice(nodes)
    key = rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
    match rng.randrange(6):
        case 0:
            del node[key]
        case 1 | 2:
            node[key] = draw_value(rng)
        case 3:
            node[key] = copy.deepcopy(other)
        case 4 if isinstance(node, dict):
            node[rng.choice(STRINGS)] = node.pop(key)
        case _ if isinstance(node, list):
            node.extend([draw_value(rng)] * rng.randrange(1, 50))
        case _:
            node[rng.choice(("settings", "chunk", "overlay", "extends", "matrix", "where", "depends_on"))] = draw_value(
                rng
            )


def _list_nodes(node: Any) -> list[Any]:
    parts = list(node.values()) if isinstance(node, dict) else node if isinstance(node, list) else []
    return (
        [node, *(descendant for part in parts for descendant in _list_nodes(part))]
        if isinstance(node, (dict, list))
        else []
    )


def write_yaml(rng: random.Random, path: Path, document: Any) -> None:
    """Write the document as YAML, sometimes with changed bytes."""
    text = io.StringIO()
    YAML_FILES.dump(document, text)
    data = bytearray(text.getvalue().encode("utf-8", "backslashreplace"))
    for _ in range(rng.choice((0, 0, 0, 1, 3))):
        position = rng.randrange(len(data) + 1)
        data[position : position + rng.randrange(4)] = rng.choice(BYTES)
    path.write_bytes(data)


def examine_files(rng: random.Random, folder: Path) -> None:
    """Run a command on a suite and a system, of which at least one is changed, with random settings."""
    suite, system = (copy.deepcopy(DOCUMENTS[rng.choice(FILES[kind])]) for kind in ("suites", "systems"))
    for document in [[suite], [system], [suite, system]][rng.randrange(3)]:
        for _ in range(rng.randrange(1, 4)):
            mutate(rng, document)
    write_yaml(rng, folder / "suite.yaml", suite)
    write_yaml(rng, folder / "system.yaml", system)
    settings_file = folder / "config" / "gfm-harness" / "settings.yaml"
    settings_file.parent.mkdir(parents=True)
    if rng.random() < 0.3:
        write_yaml(
            rng, settings_file, {rng.choice(("account", "frontier", "threads", "x")): draw_value(rng) for _ in range(3)}
        )
    os.environ["XDG_CONFIG_HOME"] = str(folder / "config")
    arguments = [rng.choice(["plan", "plan", "plan", "list", "run", "setup"]), "suite.yaml", "--system", "system.yaml"]
    if arguments[0] == "setup":
        del arguments[1]
    if arguments[0] == "run":
        arguments += ["--quiet"]
        arguments += ["--dry-run"] if "local" in (folder / "system.yaml").read_text(errors="replace") else []
    if rng.random() < 0.3:
        arguments += ["-S", f"{rng.choice(('account', 'threads', 'spare_nodes', 'telemetry'))}={rng.choice(STRINGS)}"]
    stdout, stderr = io.StringIO(), io.StringIO()
    with chdir(folder), redirect_stdout(stdout), redirect_stderr(stderr):
        code = main([filter_name.replace("\0", "") for filter_name in arguments])
    messages = stderr.getvalue().splitlines()
    assert all(line.isprintable() for line in messages), messages
    errors = [line for line in messages if not line.startswith("warning: ")]
    assert code in (0, 2), (code, errors)
    assert (code == 2) == bool(errors), (arguments, errors)
    assert all(line.startswith(("error: ", "    ")) for line in errors), errors
    for script in folder.rglob("jobs/*.sh"):
        assert "{{" not in script.read_text() or "{{" in (folder / "system.yaml").read_text(errors="replace")


def examine_expressions(rng: random.Random, folder: Path) -> None:
    """Evaluate an expression, alone or inside text."""
    del folder
    expression = draw_expression(rng)
    parse: Callable[[str], Any] = rng.choice([expressions.parse, expressions.parse_condition])
    text = (
        expression
        if parse is expressions.parse_condition
        else rng.choice(["{{ %s }}", "x{{ %s }}y", "{{ %s }}{{ a }}"]) % expression
    )
    try:
        value = parse(text)(VALUES)
    except ExpressionError:
        return
    assert _count_parts(value) <= 20_000, text


def _count_parts(value: Any) -> int:
    if isinstance(value, dict):
        return sum(1 + _count_parts(part) for part in value.values())
    if isinstance(value, list):
        return sum(1 + _count_parts(part) for part in value)
    assert value is None or isinstance(value, (bool, int, float, str))
    return len(value) if isinstance(value, str) else 1


def test_changed_files_are_planned_or_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    run_fuzzer(examine_files, tmp_path, COUNT // 2)


def test_expressions_are_evaluated_or_refused(tmp_path: Path) -> None:
    run_fuzzer(examine_expressions, tmp_path)
