"""Files that are not YAML or are too large are refused with the location of the error, and need little memory."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from tests.config.conftest import GetErrors
from tests.conftest import ROOT
from tests.support.expected_errors import SUITE

BILLION_LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 10)}]\n" for k in range(1, 12)
)
NESTED_BILLION_LAUGHS = "a0: &a0 {x: 1}\n" + "".join(
    f"a{k}: &a{k} {{{', '.join(f'k{n}: *a{k - 1}' for n in range(9))}}}\n" for k in range(1, 12)
)
AXES = "".join(f"  {axis}: {list(range(1, 1001))}\n" for axis in ("seed", "batches", "batch_size", "rounds"))
NO_MAPPING = "expected a mapping of keys at the top of the file"
TOO_DEEP = "nested more than 40 levels deep"
TOO_LARGE = "larger than 150 kB, the limit for YAML files"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", f":1:1: {NO_MAPPING}"),
        ("# nothing\n", f":1:1: {NO_MAPPING}"),
        ("- a\n- list\n", f":1:1: {NO_MAPPING}"),
        ("just words", f":1:1: {NO_MAPPING}"),
        ("---\n...\n", f":1:1: {NO_MAPPING}"),
        (SUITE + "---\n" + SUITE, ":9:1: a second document begins, but a file contains only one"),
        (SUITE.encode("utf-16"), ":1:1: expected UTF-8 text, got the byte 0xff"),
        (SUITE.encode("utf-16-le"), ":1:2: expected plain text, got the invisible character '\\x00'"),
        (SUITE.replace("A s", "Ä s").encode("latin-1"), ":2:8: expected UTF-8 text, got the byte 0xc4"),
        (SUITE + "\0", ":9:1: expected plain text, got the invisible character '\\x00'"),
        (bytes(range(256)), ":2:118: expected UTF-8 text, got the byte 0x80"),
        (random.Random(0).randbytes(1000), ":1:"),
        (SUITE + BILLION_LAUGHS, ":9:5: more than 100000 values with aliases expanded"),
        (SUITE + NESTED_BILLION_LAUGHS, ":10:5: more than 100000 values with aliases expanded"),
        (SUITE + "x: " + "[" * 10_000, f":9:43: {TOO_DEEP}"),
        (SUITE + "x: " + "[" * 10_000 + "]" * 10_000, f":9:43: {TOO_DEEP}"),
        (SUITE + "x: " + "{a: " * 10_000, f":9:160: {TOO_DEEP}"),
        (SUITE + "x:\n" + "".join(" " * k + "a:\n" for k in range(1, 400)), f":49:41: {TOO_DEEP}"),
        (SUITE + "x: " + "9" * 5000, ":9:4: expected a number of at most 63 bits, got '999"),
        (SUITE + "description: " + "x" * 5_000_000, f": {TOO_LARGE}"),
        (SUITE + "#\n" * 2_500_000, f": {TOO_LARGE}"),
        (SUITE + "where: [" + "1, " * 45_000 + "1]\n", ":9:9: where.0: expected text, got 1"),
        (SUITE + AXES, ":7:1: 2,000,000,000,000 combinations (before exclude and where), but the limit is 1,000,000"),
        (SUITE + "description: >\n" + " word" * 20_000 + "\nx: 3\n", ":11:1: unknown key 'x'"),
    ],
    ids=range(24),
)
def test_malformed_yaml_is_refused_with_its_location(get_errors: GetErrors, text: str | bytes, expected: str) -> None:
    assert get_errors("plan", "suite.yaml", suite=text)[0].startswith(f"error: suite.yaml{expected}")


@pytest.mark.parametrize(
    "data",
    [
        b"\xef\xbb\xbf" + SUITE.encode(),
        SUITE.replace("\n", "\r\n").encode(),
        SUITE.replace("\n", "\r").encode(),
        SUITE.replace("A suite", "Größe × 2 — 漢字 🎉").encode(),
        SUITE.replace("fp64, fp32]", "fp64,\n    fp32]").encode(),
        (SUITE + "exclude:\n  - &row {precision: fp64}\n  - *row\n").encode(),
        SUITE.replace("  workload: random", "  <<: {workload: crystals, seed: 3}\n  workload: random").encode(),
    ],
    ids=["byte order mark", "crlf", "cr", "unicode", "two lines", "alias", "merge key"],
)
def test_unusual_encodings_and_features_are_read(data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.cli.main import main

    monkeypatch.chdir(tmp_path)
    (tmp_path / "suite.yaml").write_bytes(data)
    assert main(["plan", "suite.yaml"]) == 0


def test_quoted_line_is_correct_for_every_line_ending(get_errors: GetErrors) -> None:
    for line_ending in ("\n", "\r\n", "\r"):
        lines = get_errors("plan", "suite.yaml", suite=SUITE.replace("matrix", "matrixx").replace("\n", line_ending))
        assert lines[1] == "    7 | matrixx:"


def test_unreadable_files_are_reported(get_errors: GetErrors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder.yaml").mkdir()
    assert get_errors("plan", "folder.yaml") == ["error: folder.yaml: no such file"]
    assert get_errors("plan", "nothing.yaml") == ["error: nothing.yaml: no such file"]

    original_open = Path.open

    def refuse(path: Path, *args: Any) -> Any:
        if path.name == "suite.yaml":
            raise PermissionError(13, "Permission denied", str(path))
        return original_open(path, *args)

    (tmp_path / "suite.yaml").write_text(SUITE)
    monkeypatch.setattr(Path, "open", refuse)
    assert get_errors("plan", "suite.yaml") == ["error: suite.yaml: Permission denied"]


def test_expansion_bombs_use_little_memory(get_errors: GetErrors) -> None:
    tracemalloc.start()
    try:
        for text in (BILLION_LAUGHS, "variables: {a: '{{ 9 ** 64 ** 9 }}', b: '{{ \"a\" * 10 ** 12 }}'}\n", AXES):
            get_errors("plan", "suite.yaml", suite=SUITE + text)
        assert tracemalloc.get_traced_memory()[1] < 200e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("repeats", ["1000000", "99999999999999"])
def test_too_many_repeats_on_the_command_line_are_refused(get_errors: GetErrors, repeats: str) -> None:
    lines = get_errors("list", "suite.yaml", "--repeat", repeats, suite=SUITE)
    message = f"{2 * int(repeats):,} combinations (before exclude and where), but the limit is 1,000,000"
    assert lines[0] == f"error: suite.yaml:1:1: {message}"


def test_messages_contain_no_control_characters(get_errors: GetErrors) -> None:
    """The fixture asserts that every line is printable."""
    escape = "\x1b[31m"
    get_errors("plan", "suite.yaml", suite=SUITE.replace("A suite", f'"{escape}"'))
    get_errors("plan", "suite.yaml", suite=SUITE.replace("A suite", '"\\e[31m"'))
    get_errors("plan", "suite.yaml", suite=SUITE.replace("random", json.dumps("{{ '" + escape + "' }}")))
    get_errors("plan", "suite.yaml", suite=SUITE.replace("name: mine", f"{escape}: 3\nname: mine"))
    get_errors("plan", f"{escape}.yaml")
    get_errors("plan", escape)
    get_errors("plan", "suite.yaml", "-S", f"threads={escape}", suite=SUITE)
    get_errors("plan", "suite.yaml", "-S", f"{escape}=3")


def test_an_alias_bomb_is_refused_in_a_new_process(tmp_path: Path) -> None:
    (tmp_path / "suite.yaml").write_text(SUITE + BILLION_LAUGHS)
    result = subprocess.run(
        [sys.executable, "-m", "harness", "plan", "suite.yaml"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 2
    assert result.stderr.startswith("error: suite.yaml:9:5: more than 100000 values")
