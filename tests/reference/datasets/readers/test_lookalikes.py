"""Files of another kind in place of a data file are identified; unrelated files next to it are ignored and counted."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.reference.datasets.__main__ import main
from harness.reference.datasets.readers.registry import FORMATS
from harness.reference.errors import InputError
from tests.reference.datasets.official_files import writers as official
from tests.reference.datasets.readers.test_any_damage import WRITERS, write_example


def pack_tar(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        member = tarfile.TarInfo("data")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def pack_zip(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("data", content)
    return buffer.getvalue()


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
LOOKALIKES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "nothing": (lambda content: b"", "the file is empty"),
    "pointer": (lambda content: POINTER, "a Git LFS pointer"),
    "page": (lambda content: b"\xef\xbb\xbf\n<!DOCTYPE html><html><body>Sign in</body></html>", "a web page"),
    "denied": (lambda content: b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "a web page"),
    "zip": (pack_zip, "packed with zip"),
    "gzip": (gzip.compress, "packed with gzip"),
    "bzip2": (bz2.compress, "packed with bzip2"),
    "xz": (lzma.compress, "packed with xz"),
    "tar": (pack_tar, "a tar archive"),
}
# compressions that a reader unpacks itself
UNPACKED = {
    "s2ef_text": ("gzip", "bzip2", "xz"),
    "alexandria": ("gzip", "bzip2", "xz"),
}


@pytest.mark.parametrize("kind", LOOKALIKES)
@pytest.mark.parametrize("reader", WRITERS)
def test_files_of_another_kind_are_identified(tmp_path: Path, reader: str, kind: str) -> None:
    path = write_example(tmp_path, reader)
    make, message = LOOKALIKES[kind]
    content = path.read_bytes()
    path.write_bytes(make(bz2.decompress(content) if reader == "alexandria" else content))
    if kind in UNPACKED.get(reader, ()):
        parts = FORMATS[reader].list_chunks([path])
        assert sum(len(item) for part in parts for item in FORMATS[reader].read_chunk(part)) == 3  # type: ignore[arg-type]
        return
    with pytest.raises(InputError, match=rf"{path.name}: {message}") as caught:
        FORMATS[reader].list_chunks([path])
    assert "\n" not in str(caught.value)


def test_truncated_sqlite_file_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    official.write_nabla(path, 4)
    complete = path.read_bytes()
    path.write_bytes(complete[: len(complete) // 2 + 100])
    with pytest.raises(InputError, match=rf"truncated, {len(complete) // 2 + 100} of {len(complete)} bytes"):
        FORMATS["asedb"].list_chunks([path])


@pytest.mark.parametrize(
    ("dataset", "reader"),
    [("ani1x", "ani1x"), ("nabla2dft", "asedb"), ("omol25", "aselmdb"), ("oc2022", "s2ef_lmdb"), ("qcml", "qcml"),
     ("mptrj", "mptrj"), ("alexandria", "alexandria"), ("transition1x", "transition1x"), ("oc2020", "s2ef_text")],
)  # fmt: skip
def test_system_files_are_ignored_and_counted(
    tmp_path: Path, dataset: str, reader: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_example(tmp_path / "data", reader)
    assert main(["check", dataset, str(path.parent), "-q"]) == 0
    expected = capsys.readouterr().out.splitlines()[0]
    for name in (f"._{path.name}", ".DS_Store", "Thumbs.db", f"__MACOSX/{path.name}", f"__MACOSX/._{path.name}"):
        system_file = path.parent / name
        system_file.parent.mkdir(exist_ok=True)
        system_file.write_bytes(b"\x00\x05\x16\x07" + bytes(200))
    (path.parent / "rest.zip").write_bytes(pack_zip(b"x"))
    (path.parent / f"{path.name}.crdownload").write_bytes(b"half")
    assert main(["check", dataset, str(path.parent), "-q"]) == 0
    result = capsys.readouterr().out.splitlines()
    assert result[0] == expected
    assert "  skipped: files of the operating system, such as ._* and .DS_Store: 5" in result
    assert "  skipped: archives, to be unpacked if their content is not here: 1" in result
    assert "  skipped: unfinished downloads: 1" in result


def test_system_files_in_archives_are_ignored(tmp_path: Path) -> None:
    path = tmp_path / "val.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, content in {
            "val/._0.extxyz": b"\x00\x05\x16\x07",
            "val/0.extxyz": official.format_extxyz_frame(0).encode(),
        }.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    assert len(official.read_all_files(FORMATS["s2ef_text"], path)[0]) == 1


def test_system_file_alone_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "._a.db").write_bytes(bytes(100))
    with pytest.raises(InputError, match=r"only files of the operating system \(\._\*\) were given"):
        FORMATS["asedb"].list_chunks([tmp_path / "._a.db"])


def test_folder_of_archives_is_refused_with_a_request_to_unpack(tmp_path: Path) -> None:
    (tmp_path / "s2ef_train_200K.tar").write_bytes(pack_tar(b"x"))
    with pytest.raises(InputError, match=r"it holds s2ef_train_200K\.tar, which has to be unpacked first"):
        FORMATS["s2ef_text"].list_chunks([tmp_path])
