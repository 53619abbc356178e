"""Whatever becomes of a suite or a system, it is planned or told what is wrong with it: no traceback, and in time."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from harness.cli.main import main
from harness.config import resources

SECONDS = 5.0
KINDS = ("suites", "systems")
FILES = [(kind, resources.folder(kind) / f"{name}.yaml") for kind in KINDS for name in sorted(resources.names(kind))]
WORDS = ("name", "title", "nodes", "local", "slurm", "ladder", "fp64", "precision", "minutes", "settings", "scale", "")
TEXTS = st.one_of(
    st.sampled_from(WORDS),
    st.text(max_size=8),
    st.sampled_from(
        ("{{ 1 }}", "{{ nodes }}", "{{ x", "{{ system }}", "{{ 1 / 0 }}", "{{ settings.threads }}", "{% x %}")
    ),
)
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXTS)
VALUES = st.recursive(
    SCALARS,
    lambda inside: st.one_of(st.lists(inside, max_size=3), st.dictionaries(TEXTS, inside, max_size=3)),
    max_leaves=6,
)
HARD = settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
BYTES = (
    b"\t",
    b"\n",
    b"\0",
    b"{",
    b"}",
    b"[",
    b"]",
    b":",
    b"- ",
    b"&a ",
    b"*a",
    b"!",
    b"'",
    b'"',
    b"#",
    b"{{ ",
    b"\xff",
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the templates that systems name."""
    folder = tmp_path_factory.mktemp("mutations")
    for template in resources.folder("systems").glob("*.j2"):
        (folder / template.name).write_bytes(template.read_bytes())
    return folder


@given(data=st.data())
@HARD
def test_bytes_that_change(data: st.DataObject, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kind, path = data.draw(st.sampled_from(FILES))
    text = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at, length = data.draw(st.integers(0, len(text))), data.draw(st.integers(0, 20))
        text[at : at + length] = data.draw(st.one_of(st.sampled_from(BYTES), st.binary(max_size=4)))
    judged(kind, bytes(text), place, capsys)


@given(data=st.data())
@HARD
def test_parts_that_change(data: st.DataObject, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kind, path = data.draw(st.sampled_from(FILES))
    tree = YAML(typ="safe", pure=True).load(path)
    for _ in range(data.draw(st.integers(1, 3))):
        change(tree, data)
    target = place / "changed.yaml"
    with target.open("w", encoding="utf-8", errors="backslashreplace") as stream:
        YAML(typ="safe", pure=True).dump(tree, stream)
    judged(kind, target.read_bytes(), place, capsys)


def change(tree: Any, data: st.DataObject) -> None:
    """Take a part away, put another in its place, or add one."""
    inner = [node for node in _inner(tree) if node]
    if not inner:
        return
    node = data.draw(st.sampled_from(inner))
    key = data.draw(st.sampled_from(list(node) if isinstance(node, dict) else range(len(node))))
    match data.draw(st.sampled_from(("take", "put", "add", "rename"))):
        case "take":
            del node[key]
        case "put":
            node[key] = data.draw(VALUES)
        case "add" if isinstance(node, list):
            node.append(data.draw(VALUES))
        case "rename" if isinstance(node, dict):
            node[data.draw(TEXTS)] = node.pop(key)
        case _ if isinstance(node, dict):
            node[data.draw(TEXTS)] = data.draw(VALUES)


def _inner(node: Any) -> list[Any]:
    parts = list(node.values()) if isinstance(node, dict) else node if isinstance(node, list) else []
    return [node, *(found for part in parts for found in _inner(part))] if isinstance(node, (dict, list)) else []


def judged(kind: str, text: bytes, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Plan the file: exit code 0, or 2 with what is wrong in printable lines, within the time."""
    file = place / "mutant.yaml"
    file.write_bytes(text)
    words = [str(file), "--system", "local"] if kind == "suites" else ["checkpoint", "--system", str(file)]
    began = time.process_time()
    code = main(["plan", *words, "--out", str(place / "results")])
    assert time.process_time() - began < SECONDS
    said = capsys.readouterr().err
    assert code in (0, 2)
    assert (code == 2) == bool(said)
    for line in said.splitlines():
        assert line.startswith(("error: ", "    "))
        assert "Traceback" not in line
        assert line.isprintable()
