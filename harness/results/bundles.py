"""Bundles of run folders: compressed files for publication.

`python -m harness.results.bundles RESULTS FILE.tar.xz` writes a bundle; `harness report FILE.tar.xz` unpacks it.
"""

from __future__ import annotations

import io
import lzma
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from harness.host.files import write_below, write_bytes
from harness.protocol.errors import UsageError

FOLDER = "runs"
# Files that are derived from other files, and written again when needed.
EXCLUDED_FILES = ("telemetry.cache.json",)
MAX_BYTES, MAX_FILE_BYTES = 8 << 30, 1 << 29


def write_bundle(results: Path, file: Path) -> int:
    """Pack the run folders of a results folder; equal files give equal bundles.

    Returns:
        The number of files in the bundle.

    Raises:
        UsageError: there is no file to pack.
    """
    paths = [p for p in sorted((results / FOLDER).rglob("*")) if p.is_file() and p.name not in EXCLUDED_FILES]
    if not paths:
        raise UsageError(f"{results / FOLDER}: no run folders to pack")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz", preset=9, format=tarfile.PAX_FORMAT) as archive:
        for path in paths:
            member = tarfile.TarInfo(path.relative_to(results).as_posix())
            content = path.read_bytes()
            member.size, member.mode = len(content), 0o644
            archive.addfile(member, io.BytesIO(content))
    write_bytes(file, buffer.getvalue())
    return len(paths)


def unpack_bundle(file: Path, results: Path) -> int:
    """Unpack a bundle below a results folder; existing files with the same content are left unchanged.

    Returns:
        The number of files in the bundle.

    Raises:
        UsageError: the file is not a bundle, is damaged, is too large, or differs from a file that exists.
    """
    count = 0
    for name, content in _read_members(file):
        path = results / name
        if not path.is_symlink() and path.is_file():
            if path.read_bytes() != content:
                raise UsageError(f"{file}: {name} differs from {path}; unpack it into another folder (--out DIR)")
        else:
            write_below(results, name, content)
        count += 1
    if not count:
        raise UsageError(f"{file}: contains no run folders")
    return count


def _read_members(file: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the name and the content of each file of a bundle; raise UsageError for an invalid bundle."""
    total = 0
    try:
        with tarfile.open(file, mode="r:xz") as archive:
            for member in archive:
                parts = PurePosixPath(member.name).parts
                if not member.isfile() or parts[:1] != (FOLDER,) or ".." in parts or "\0" in member.name:
                    raise UsageError(f"{file}: {member.name!r} is not a file below {FOLDER}/; not a bundle of results")
                total += member.size
                if total > MAX_BYTES or member.size > MAX_FILE_BYTES:
                    raise UsageError(
                        f"{file}: contains more than {MAX_BYTES >> 30} GiB, or a file above {MAX_FILE_BYTES >> 20} MiB"
                    )
                content = archive.extractfile(member)
                assert content is not None
                yield member.name, content.read()
    except FileNotFoundError:
        raise UsageError(f"{file}: no such file") from None
    except IsADirectoryError:
        raise UsageError(f"{file}: a folder; expected a bundle (.tar.xz), or use --out for a results folder") from None
    except (tarfile.TarError, lzma.LZMAError, EOFError) as error:
        raise UsageError(f"{file}: not a bundle of results, or damaged ({error})") from None


if __name__ == "__main__":
    try:
        print(f"{write_bundle(Path(sys.argv[1]), Path(sys.argv[2]))} files packed")
    except (UsageError, OSError) as error:
        sys.exit(f"error: {error}")
    except IndexError:
        sys.exit("usage: python -m harness.results.bundles RESULTS FILE.tar.xz")
