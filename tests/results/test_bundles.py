"""Unpacking a bundle restores its files, equal files give equal bundles, and no bundle writes outside its folder.

A changed file is found by its checksum, and the changed line in it.
"""

from __future__ import annotations

import io
import json
import random
import subprocess
import tarfile
from pathlib import Path

import pytest

from harness.cli.main import main
from harness.protocol.errors import UsageError
from harness.results.bundles import read_run_files, unpack_bundle, verify_bundle, write_bundle
from harness.results.checksums import MANIFEST, compute_line_checksums, describe_change
from tests.support.published_results import PUBLISHED


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Write a results folder of two cases, with an empty log, a cache and a page."""
    for name, content in {"a/1/case.json": "{}", "a/1/events.jsonl": "", "b/2/case.json": "[]"}.items():
        path = tmp_path / "results" / "runs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    (tmp_path / "results" / "runs" / "a" / "telemetry.cache.json").write_text("{}")
    (tmp_path / "results" / "runs" / "a" / "1" / "model.safetensors").write_bytes(b"\0\1\2")
    (tmp_path / "results" / "runs" / "a" / "1" / "link").symlink_to("/etc/passwd")
    (tmp_path / "results" / "index.html").write_text("")
    return tmp_path / "results"


def pack(results: Path, target: Path) -> Path:
    write_bundle(read_run_files(results).contents, target)
    return target


def read_files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_unpacking_restores_every_run_folder(results: Path, tmp_path: Path) -> None:
    assert read_run_files(results).left_out == {"runs/a/1/link": 0, "runs/a/1/model.safetensors": 3}
    expected = {"runs/a/1/case.json": b"{}", "runs/a/1/events.jsonl": b"", "runs/b/2/case.json": b"[]"}
    for target in ("one.tar.xz", "folder"):
        bundle = pack(results, tmp_path / target)
        copy = tmp_path / f"copy-{target}"
        for _ in range(2):  # the second time, every file exists
            assert unpack_bundle(bundle, copy) == 3
        assert read_files(copy) == expected
    with pytest.raises(UsageError, match="the folder is not empty"):
        pack(results, tmp_path / "folder")


def test_history_of_commits_is_unpacked_only_where_there_is_none(results: Path, tmp_path: Path) -> None:
    (results / "history.jsonl").write_text("{}\n")
    bundle = pack(results, tmp_path / "one.tar.xz")
    unpack_bundle(bundle, tmp_path / "copy")
    assert (tmp_path / "copy" / "history.jsonl").read_text() == "{}\n"
    (tmp_path / "copy" / "history.jsonl").write_text("{}\n{}\n")
    unpack_bundle(bundle, tmp_path / "copy")
    assert (tmp_path / "copy" / "history.jsonl").read_text() == "{}\n{}\n"


def test_one_changed_digit_in_ten_thousand_samples_is_located(results: Path, tmp_path: Path) -> None:
    generator = random.Random(7)
    log = results / "runs" / "a" / "1" / "events.jsonl"
    log.write_text(
        "".join(json.dumps({"event": "sample", "seconds": generator.random()}) + "\n" for _ in range(10_000))
    )
    bundle = pack(results, tmp_path / "bundle")
    subprocess.run(["sha256sum", "--check", "--quiet", MANIFEST], cwd=bundle, check=True)
    assert (verify_bundle(bundle).problems, verify_bundle(bundle).n_files) == ([], 4)
    packed = bundle / "runs" / "a" / "1" / "events.jsonl"
    original = packed.read_bytes()
    for _ in range(20):
        position = generator.choice([k for k, byte in enumerate(original) if chr(byte).isdecimal()])
        digit = generator.choice([d for d in b"0123456789" if d != original[position]])
        packed.write_bytes(original[:position] + bytes([digit]) + original[position + 1 :])
        line = original.count(b"\n", 0, position) + 1
        assert verify_bundle(bundle).problems == [f"runs/a/1/events.jsonl:{line}: was changed"]
        with pytest.raises(UsageError, match=rf"bundle: runs/a/1/events\.jsonl:{line}: was changed"):
            unpack_bundle(bundle, tmp_path / "out")
    packed.write_bytes(original.replace(b"\n", b"\n{}\n", 1))
    after = "differs from here on; the file had 10001 lines and has 10002"
    assert verify_bundle(bundle).problems == [f"runs/a/1/events.jsonl:2: {after}"]


def test_missing_added_and_binary_files_are_found(results: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    write_bundle({"runs/a/1/case.json": b"{}", "runs/a/1/stdout": b"x", "runs/a/1/md.0": b"\0\1"}, bundle)
    folder = bundle / "runs" / "a" / "1"
    (folder / "stdout").unlink()
    (folder / "stderr").write_text("")
    (folder / "md.0").write_bytes(b"\0\2")
    assert verify_bundle(bundle).problems == [
        "runs/a/1/md.0: was changed", f"runs/a/1/stderr: is not in {MANIFEST}", "runs/a/1/stdout: is missing",
    ]  # fmt: skip
    (folder / "link").symlink_to("/etc/passwd")
    with pytest.raises(UsageError, match="a bundle has no links"):
        verify_bundle(bundle)


def test_incomplete_bundle_is_not_unpacked(results: Path, tmp_path: Path) -> None:
    bundle = pack(results, tmp_path / "bundle")
    (bundle / "runs" / "b" / "2" / "case.json").unlink()
    with pytest.raises(UsageError, match=r"bundle: runs/b/2/case\.json: is missing"):
        unpack_bundle(bundle, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_damaged_bundle_leaves_nothing_behind(results: Path, tmp_path: Path) -> None:
    bundle = pack(results, tmp_path / "bundle")
    (bundle / "runs" / "b" / "2" / "case.json").write_text("{}")  # the last file
    with pytest.raises(UsageError, match="was changed"):
        unpack_bundle(bundle, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_archive_that_could_not_be_read_is_not_written(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (results / "runs" / "a" / "1" / "events.jsonl").write_text("{}\n" * (1 << 19))
    monkeypatch.setattr("harness.results.bundles.MAX_FILE_BYTES", 1 << 20)
    with pytest.raises(UsageError, match=r"or a file above 1 MiB; write a folder instead"):
        pack(results, tmp_path / "one.tar.xz")
    assert not (tmp_path / "one.tar.xz").exists()
    assert unpack_bundle(pack(results, tmp_path / "folder"), tmp_path / "copy") == 3


def test_change_of_two_lines_is_described_in_the_singular() -> None:
    before, after = (compute_line_checksums(text) for text in (b"a\nb\nc", b"a\nx\ny"))
    assert describe_change(before, after) == ":2: was changed, and 1 more line"


def test_verification_reports_changes_and_refuses_what_is_no_bundle(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = pack(results, tmp_path / "bundle")
    assert main(["artifact", "--verify", str(bundle)]) == 0
    assert "4 files, as written; SHA-256 of the manifest: " in capsys.readouterr().out
    (bundle / "runs" / "b" / "2" / "case.json").write_text("{}")
    assert main(["artifact", "--verify", str(bundle)]) == 1
    assert "runs/b/2/case.json:1: was changed\n" in capsys.readouterr().out
    (bundle / MANIFEST).write_text("0 x\n")
    (tmp_path / "empty").mkdir()
    for path, message in (
        (bundle, rf"{MANIFEST}:1: expected two columns"),
        (tmp_path / "none.tar.xz", "no such file"),
        (tmp_path / "empty", "not a bundle of results"),
        (results, f"has no {MANIFEST}"),
    ):
        if path == results:
            (results / "runs" / "a" / "1" / "link").unlink()
        assert main(["artifact", "--verify", str(path)]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


def test_equal_files_give_equal_bytes(results: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        pack(results, tmp_path / f"{name}.tar.xz")
    assert (tmp_path / "one.tar.xz").read_bytes() == (tmp_path / "two.tar.xz").read_bytes()


def test_file_that_differs_is_not_overwritten(results: Path, tmp_path: Path) -> None:
    pack(results, tmp_path / "one.tar.xz")
    (results / "runs" / "b" / "2" / "case.json").write_text("other")
    with pytest.raises(UsageError, match=r"runs/b/2/case\.json differs from .*--out DIR"):
        unpack_bundle(tmp_path / "one.tar.xz", results)
    assert (results / "runs" / "b" / "2" / "case.json").read_text() == "other"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("runs/../../evil", tarfile.REGTYPE), ("/runs/evil", tarfile.REGTYPE), ("elsewhere/evil", tarfile.REGTYPE),
        ("runs/a/link", tarfile.SYMTYPE), ("runs/a/hard", tarfile.LNKTYPE), ("runs/a/pipe", tarfile.FIFOTYPE),
    ],
)  # fmt: skip
def test_bundle_writes_only_files_below_its_folder(tmp_path: Path, name: str, kind: bytes) -> None:
    with tarfile.open(tmp_path / "bad.tar.xz", "w:xz") as archive:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, "../../evil"
        archive.addfile(member)
    with pytest.raises(UsageError, match=r"is not a file (inside the bundle|below runs/; not a bundle)"):
        unpack_bundle(tmp_path / "bad.tar.xz", tmp_path / "inner" / "out")
    assert not list(tmp_path.rglob("evil"))


def test_bundle_is_not_unpacked_through_a_link(results: Path, tmp_path: Path) -> None:
    pack(results, tmp_path / "one.tar.xz")
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out" / "runs").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="symbolic link"):
        unpack_bundle(tmp_path / "one.tar.xz", tmp_path / "out")
    assert not list((tmp_path / "elsewhere").iterdir())


def test_damaged_bundles_are_named(results: Path, tmp_path: Path) -> None:
    file = tmp_path / "one.tar.xz"
    pack(results, file)
    original = file.read_bytes()
    changed = bytes(
        [*original[: len(original) // 2], original[len(original) // 2] ^ 1, *original[len(original) // 2 + 1 :]]
    )
    for content in (b"", b"no archive", original[: len(original) // 2], changed):
        file.write_bytes(content)
        with pytest.raises(UsageError, match=r"one\.tar\.xz: not a bundle of results, or damaged"):
            unpack_bundle(file, tmp_path / "out")
    with pytest.raises(UsageError, match="no such file"):
        unpack_bundle(tmp_path / "none.tar.xz", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"empty: not a bundle of results; expected"):
        unpack_bundle(tmp_path / "empty", tmp_path / "out")


def test_bundle_that_claims_to_be_huge_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "huge.tar.xz", "w:xz") as archive:
        member = tarfile.TarInfo("runs/a/1/events.jsonl")
        member.size = 1 << 40
        archive.fileobj.write(member.tobuf(tarfile.PAX_FORMAT))  # type: ignore[union-attr]
        archive.addfile(tarfile.TarInfo("runs/a/1/case.json"), io.BytesIO())
    with pytest.raises(UsageError, match="contains more than 8 GiB"):
        unpack_bundle(tmp_path / "huge.tar.xz", tmp_path / "out")


def test_report_reads_a_published_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(PUBLISHED / "runs.tar.xz"), "--out", str(tmp_path / "out")]) == 0
    assert "ladder-speedup-fp64: reproduced: 43.9 x (paper: 33 x)" in capsys.readouterr().out
    assert (tmp_path / "out" / "index.html").exists()
    assert main(["report", str(tmp_path / "none.tar.xz"), "--out", str(tmp_path / "out")]) == 2
    assert "none.tar.xz: no such file" in capsys.readouterr().err
