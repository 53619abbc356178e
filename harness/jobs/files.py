"""Small files that are never seen half-written."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson

INDENTED = orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE


def absolute(path: Path) -> Path:
    """Return the path from the root as the user names it: other machines may not have what its links lead to."""
    here = os.environ.get("PWD", "")
    with suppress(OSError):
        if os.path.isabs(here) and os.path.samefile(here, "."):
            return Path(os.path.normpath(os.path.join(here, path)))
    return Path(os.path.abspath(path))


def write_bytes(path: Path | str, content: bytes) -> None:
    """Write beside, then rename into place: a kill or a full disk leaves the old file or none."""
    part = f"{path}.part"
    handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        written = os.write(handle, content)
        while written < len(content):
            written += os.write(handle, content[written:])
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        os.close(handle)
    os.replace(part, path)


def write_text(path: Path | str, text: str) -> None:
    """The text as UTF-8, atomically."""
    write_bytes(path, text.encode())


def write_json(path: Path | str, value: Any) -> None:
    """The value, or dataclass, as indented JSON, atomically."""
    write_bytes(path, orjson.dumps(value, option=INDENTED))
