"""Results folders with damaged cases: no command fails, and every row of an undamaged case is unchanged."""

from __future__ import annotations

import contextlib
import io
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pandas as pd
import pytest

from harness.cli.main import main
from harness.experiments.hpo import metrics
from harness.experiments.hpo.promote import write_best_suite
from harness.protocol.errors import UsageError
from harness.report.render import write_report
from harness.results.runs import load_runs
from tests.fuzz.bounded import COUNT, run_fuzzer
from tests.support.published_results import CASES, FILES, copy_case, stop_drawing

pytestmark = pytest.mark.slow
DAMAGED_AT_ONCE = 6
# A report takes two seconds, so fewer reports than inputs are made.
INPUTS_PER_REPORT = 16
VALUES: list[Any] = [
    None, True, False, -1, 0, 3, -2.5, 1e300, -1e300, 2**63, -(2**63), 10**30, "", "x", "\x1b[2J", "a|b<script>\n", [],
    [None], [[]], {}, {"a": 1}, [1] * 3, "9" * 400, 1e-320, "NaN", [[[[]]]], "done", "failed", 119, 0.5,
]  # fmt: skip


@pytest.fixture(scope="module")
def intact_results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an undamaged results folder: a case of each program in its own campaign, with long logs shortened."""
    out = tmp_path_factory.mktemp("whole")
    for k, (result, path) in enumerate(CASES):
        copy_case(result, path, out / "runs" / f"campaign-{k:02}")
    return out


def read_rows(out: Path) -> set[tuple[str, frozenset[tuple[str, str]]]]:
    """Return every row of every table of a report, without empty cells and the column that depends on several cases."""
    rows = set()
    for path in sorted((out / "tables").glob("*.csv")):
        table = pd.read_csv(path, dtype=str, keep_default_na=False).drop(columns="is_pareto_optimal", errors="ignore")
        for row in table.to_dict("records"):
            rows.add((path.name, frozenset((str(k), normalize_number(v)) for k, v in row.items() if v)))
    return rows


def normalize_number(text: str) -> str:
    """Return 1 and 1.0 as the same text, since pandas writes integers as floats if their column has gaps."""
    with contextlib.suppress(ValueError):
        return str(float(text))
    return text


def test_damaged_cases_do_not_change_the_rows_of_other_cases(
    intact_results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_drawing(monkeypatch)
    folders = sorted(intact_results.glob("runs/*/*"))
    monkeypatch.setattr(metrics, "PERMUTATIONS", 20)
    rows_before = {}
    for folder in folders:
        single_case = tmp_path / folder.name
        shutil.copytree(folder.parent, single_case / "runs" / folder.parent.name)
        write_report(single_case)
        rows_before[folder.name] = read_rows(single_case)

    def examine(rng: random.Random, folder_of_input: Path) -> None:
        out = folder_of_input / "results"
        shutil.copytree(intact_results, out)
        damaged = rng.sample(folders, DAMAGED_AT_ONCE)
        changes = []
        for folder in damaged:
            case_folder = out / folder.relative_to(intact_results)
            changes.append(damage(rng, case_folder))
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            code = main(["check", "--out", str(out)])
            main(["report", "--out", str(out)])
            compare_code = main(["compare", f"{out}", f"{intact_results}"])
            for campaign in ("campaign-02", "none"):
                with contextlib.suppress(UsageError):
                    write_best_suite(out, campaign)
        assert code in (0, 1), changes
        assert compare_code in (0, 2), changes
        assert "\x1b" not in printed.getvalue(), changes
        rows_after = read_rows(out)
        for folder in folders:
            if folder not in damaged:
                missing = rows_before[folder.name] - rows_after
                assert not missing, (changes, [(name, sorted(row)) for name, row in missing][:2])
        page = (out / "index.html").read_text()
        for record in load_runs(out / "runs"):
            if record.state == "unreadable":
                assert record.folder.name in page, changes
        error_lines = [line for line in (out / "report.md").read_text().splitlines() if "cannot be shown" in line]
        assert not error_lines, (changes, error_lines)

    run_fuzzer(examine, tmp_path, max(1, COUNT // INPUTS_PER_REPORT))


def damage(rng: random.Random, folder: Path) -> str:
    """Damage the files of a case at random, and return a description of the damage."""
    kind = rng.choice([mutate_event] * 12 + [mutate_lines] * 4 + [mutate_json] * 4 + [mutate_bytes, mutate_files] * 2)
    return f"{folder.name}: {kind(rng, folder)}"


def mutate_event(rng: random.Random, folder: Path) -> str:
    lines = (folder / "events.jsonl").read_bytes().splitlines()
    kinds: dict[bytes, list[int]] = {}
    for k, line in enumerate(lines):  # group the lines by kind, so that each kind is changed equally often
        kinds.setdefault(line[:45].split(b"time_s")[0], []).append(k)
    k = rng.choice(rng.choice(list(kinds.values())))
    event = orjson.loads(lines[k])
    description = mutate(rng, event)
    lines[k] = orjson.dumps(event)
    (folder / "events.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    return f"line {k + 1}: {description}"


def mutate_json(rng: random.Random, folder: Path) -> str:
    path = folder / rng.choice(["case.json", "provenance.json"])
    value = orjson.loads(path.read_bytes())
    description = mutate(rng, value)
    path.write_bytes(orjson.dumps(value))
    return f"{path.name}: {description}"


def mutate(rng: random.Random, value: Any) -> str:
    """Change a random item of the value, at any depth, and return a description of the change."""
    path = ""
    while True:
        keys: list[Any] = list(value) if isinstance(value, dict) else list(range(len(value)))
        if not keys:
            return f"{path}: nothing"
        key = rng.choice(keys)
        path += f".{key}"
        if isinstance(value[key], (dict, list)) and value[key] and rng.random() < 0.8:
            value = value[key]
            continue
        match rng.randrange(4):
            case 0:
                del value[key]
                return f"{path} deleted"
            case 1 if isinstance(value[key], (int, float)):
                value[key] = -value[key] or 10**25
            case 2 if isinstance(value, dict):
                value[f"{key}x"] = value.pop(key)
                return f"{path} renamed"
            case _:
                value[key] = rng.choice(VALUES)
        text = repr(value[key])[:40]
        with contextlib.suppress(TypeError):
            orjson.dumps(value)
            return f"{path} = {text}"
        value[key] = 1e300
        return f"{path} = 1e300"


def mutate_lines(rng: random.Random, folder: Path) -> str:
    path = folder / "events.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    k = rng.randrange(len(lines))
    match rng.randrange(6):
        case 0:
            kind = orjson.loads(lines[k])["event"]
            lines = [x for x in lines if orjson.loads(x)["event"] != kind]
            description = f"no {kind}"
        case 1:
            del lines[k]
            description = f"line {k + 1} deleted"
        case 2:
            lines = lines[:k]
            description = f"cut after {k}"
        case 3:
            lines.insert(k, lines[rng.randrange(len(lines))])
            description = f"line repeated at {k + 1}"
        case 4:
            event = {"event": rng.choice(["sample", "new", "fit", "epoch", "rank", "start"]), "time_s": 1.0}
            lines.insert(k, orjson.dumps(event) + b"\n")
            description = f"{event} at {k + 1}"
        case _:
            rng.shuffle(lines)
            description = "shuffled"
    path.write_bytes(b"".join(lines))
    return description


def mutate_bytes(rng: random.Random, folder: Path) -> str:
    path = folder / rng.choice(FILES)
    content = bytearray(path.read_bytes())
    k = rng.randrange(len(content))
    match rng.randrange(4):
        case 0:
            content[k] ^= 1 << rng.randrange(8)
        case 1:
            content = content[:k]
        case 2:
            content[k:k] = rng.choice([b"\x00", b"\xff\xfe", b"\n", b"[" * 5000, b"nan", b"-", b"1e999"])
        case _:
            content = bytearray(
                rng.choice([b"", b"null", b"[]", b"0", b"-1 nan", b"1 -3", b"{}\n{}", b"\xef\xbb\xbf{}"])
            )
    path.write_bytes(bytes(content))
    return f"bytes of {path.name} at {k}"


def mutate_files(rng: random.Random, folder: Path) -> str:
    path = folder / rng.choice(FILES)
    others = [p for p in sorted(folder.parents[1].glob(f"*/*/{path.name}")) if p != path]
    replacements: list[Callable[[], object]] = [
        lambda: None, path.mkdir, lambda: os.mkfifo(path), lambda: path.symlink_to("nowhere"),
        lambda: path.symlink_to(path.name), lambda: path.symlink_to("/dev/zero"),
        lambda: shutil.copyfile(rng.choice(others), path) if others else None,
    ]  # fmt: skip
    k = rng.randrange(len(replacements))
    path.unlink()
    replacements[k]()
    return f"{path.name} replaced ({k})"
