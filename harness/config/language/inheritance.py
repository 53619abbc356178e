"""Files that extend others: a suite or system is laid over its base, and that over its own."""

from __future__ import annotations

from pathlib import Path

from harness.config import resources
from harness.config.language import yaml_loader
from harness.config.language.document import Document, gather
from harness.protocol.errors import UsageError, shortened

MAX_CHAIN = 10


def layered(path: Path, kind: str, seen: tuple[Path, ...] = ()) -> Document:
    """The file over the file it `extends`, and so on; raises UsageError for a circle or a base that is not there."""
    document = yaml_loader.parse(path)
    if "extends" not in document.data:
        return document
    named = document.data["extends"]
    if not isinstance(named, str):
        raise document.error(("extends",), f"extends: expected the name or file of another, got {shortened(named)}")
    here = (*seen, path.resolve())
    try:
        base = base_of(path, kind, named)
    except UsageError as error:
        raise document.error(("extends",), f"extends: {error}") from None
    except OSError as error:
        raise document.error(("extends",), f"extends: {shortened(named)}: {error.strerror}") from None
    if base.resolve() in here:
        raise document.error(("extends",), f"extends: {named!r} leads back to itself")
    if len(here) > MAX_CHAIN:
        raise document.error(("extends",), f"extends: more than {MAX_CHAIN} files, one over the other")
    top, below = document.without("extends"), layered(base, kind, here)
    gather([top.takes_nothing(below)])
    return top.over(below)


def base_of(path: Path, kind: str, named: str) -> Path:
    """The file that another names as its base: a path beside it, a file beside it, or one that is shipped."""
    if named.endswith((".yaml", ".yml")):
        return resources.find(kind, str(path.parent / named))
    beside = path.parent / f"{named}.yaml"
    return beside if beside.is_file() and beside.resolve() != path.resolve() else resources.find(kind, named)
