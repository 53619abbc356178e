"""Unpacking a bundle restores its files, equal files give equal bundles, and no bundle writes outside its folder."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from harness.cli.main import main
from harness.protocol.errors import UsageError
from harness.results.bundles import unpack_bundle, write_bundle
from tests.support.published_results import PUBLISHED


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Write a results folder of two cases, with an empty log, a cache and a page."""
    for name, content in {"a/1/case.json": "{}", "a/1/events.jsonl": "", "b/2/case.json": "[]"}.items():
        path = tmp_path / "results" / "runs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    (tmp_path / "results" / "runs" / "a" / "telemetry.cache.json").write_text("{}")
    (tmp_path / "results" / "index.html").write_text("")
    return tmp_path / "results"


def read_files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_unpacking_restores_every_run_folder(results: Path, tmp_path: Path) -> None:
    assert write_bundle(results, tmp_path / "one.tar.xz") == 3
    for _ in range(2):  # the second time, every file exists
        assert unpack_bundle(tmp_path / "one.tar.xz", tmp_path / "copy") == 3
    expected = read_files(results)
    for name in ("runs/a/telemetry.cache.json", "index.html"):
        del expected[name]
    assert read_files(tmp_path / "copy") == expected


def test_equal_files_give_equal_bytes(results: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_bundle(results, tmp_path / f"{name}.tar.xz")
    assert (tmp_path / "one.tar.xz").read_bytes() == (tmp_path / "two.tar.xz").read_bytes()


def test_file_that_differs_is_not_overwritten(results: Path, tmp_path: Path) -> None:
    write_bundle(results, tmp_path / "one.tar.xz")
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
    with pytest.raises(UsageError, match=r"is not a file below runs/; not a bundle"):
        unpack_bundle(tmp_path / "bad.tar.xz", tmp_path / "inner" / "out")
    assert not list(tmp_path.rglob("evil"))


def test_bundle_is_not_unpacked_through_a_link(results: Path, tmp_path: Path) -> None:
    write_bundle(results, tmp_path / "one.tar.xz")
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out" / "runs").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="symbolic link"):
        unpack_bundle(tmp_path / "one.tar.xz", tmp_path / "out")
    assert not list((tmp_path / "elsewhere").iterdir())


def test_damaged_bundles_are_named(results: Path, tmp_path: Path) -> None:
    file = tmp_path / "one.tar.xz"
    write_bundle(results, file)
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
    with pytest.raises(UsageError, match="a folder; expected a bundle"):
        unpack_bundle(tmp_path, tmp_path / "out")


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
    assert "ladder-speedup-fp64: reproduced: 42.1 x (paper: 33 x)" in capsys.readouterr().out
    assert (tmp_path / "out" / "index.html").exists()
    assert main(["report", str(tmp_path / "none.tar.xz"), "--out", str(tmp_path / "out")]) == 2
    assert "none.tar.xz: no such file" in capsys.readouterr().err
