"""A randomly changed suite or system is planned or is refused with messages, never with a traceback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from harness.cli.main import main
from harness.config import resources

KINDS = ("suites", "systems")
FILES = [
    (kind, resources.get_resource_dir(kind) / f"{name}.yaml")
    for kind in KINDS
    for name in sorted(resources.list_resources(kind))
]
WORDS = (
    "name",
    "title",
    "nodes",
    "local",
    "slurm",
    "ladder",
    "fp64",
    "precision",
    "minutes",
    "settings",
    "overlays",
    "",
)
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
    lambda children: st.one_of(st.lists(children, max_size=3), st.dictionaries(TEXTS, children, max_size=3)),
    max_leaves=6,
)
MUTATION_SETTINGS = settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
BYTE_STRINGS = (
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
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the templates that systems name."""
    folder = tmp_path_factory.mktemp("mutations")
    for template in resources.get_resource_dir("systems").glob("*.j2"):
        (folder / template.name).write_bytes(template.read_bytes())
    return folder


@given(data=st.data())
@MUTATION_SETTINGS
def test_file_with_changed_bytes_is_planned_or_refused(
    data: st.DataObject, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kind, path = data.draw(st.sampled_from(FILES))
    text = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        start, length = data.draw(st.integers(0, len(text))), data.draw(st.integers(0, 20))
        text[start : start + length] = data.draw(st.one_of(st.sampled_from(BYTE_STRINGS), st.binary(max_size=4)))
    check_plan(kind, bytes(text), folder, capsys)


@given(data=st.data())
@MUTATION_SETTINGS
@pytest.mark.slow
def test_file_with_changed_values_is_planned_or_refused(
    data: st.DataObject, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kind, path = data.draw(st.sampled_from(FILES))
    tree = YAML(typ="safe", pure=True).load(path)
    for _ in range(data.draw(st.integers(1, 3))):
        change_entry(tree, data)
    target = folder / "changed.yaml"
    with target.open("w", encoding="utf-8", errors="backslashreplace") as stream:
        YAML(typ="safe", pure=True).dump(tree, stream)
    check_plan(kind, target.read_bytes(), folder, capsys)


def change_entry(tree: Any, data: st.DataObject) -> None:
    """Remove, replace, add or rename a random entry of a mapping or list."""
    containers = [node for node in _list_containers(tree) if node]
    if not containers:
        return
    node = data.draw(st.sampled_from(containers))
    key = data.draw(st.sampled_from(list(node) if isinstance(node, dict) else range(len(node))))
    match data.draw(st.sampled_from(("remove", "replace", "add", "rename"))):
        case "remove":
            del node[key]
        case "replace":
            node[key] = data.draw(VALUES)
        case "add" if isinstance(node, list):
            node.append(data.draw(VALUES))
        case "rename" if isinstance(node, dict):
            node[data.draw(TEXTS)] = node.pop(key)
        case _ if isinstance(node, dict):
            node[data.draw(TEXTS)] = data.draw(VALUES)


def _list_containers(node: Any) -> list[Any]:
    parts = list(node.values()) if isinstance(node, dict) else node if isinstance(node, list) else []
    return (
        [node, *(container for part in parts for container in _list_containers(part))]
        if isinstance(node, (dict, list))
        else []
    )


def check_plan(kind: str, text: bytes, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Plan the file and assert exit code 0, or exit code 2 with printable messages."""
    file = folder / "mutant.yaml"
    file.write_bytes(text)
    args = [str(file), "--system", "local"] if kind == "suites" else ["checkpoint", "--system", str(file)]
    code = main(["plan", *args, "--out", str(folder / "results")])
    message = capsys.readouterr().err
    assert code in (0, 2)
    assert (code == 2) == bool(message)
    for line in message.splitlines():
        assert line.startswith(("error: ", "    "))
        assert "Traceback" not in line
        assert line.isprintable()
