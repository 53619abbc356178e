"""Where the suites, systems and report files that come with the harness are: in a clone, or in an installed wheel."""

from __future__ import annotations

from pathlib import Path

from harness.protocol.errors import UsageError, did_you_mean

PACKAGE = Path(__file__).parents[1]
CLONE = PACKAGE.parent
OWN: dict[str, list[Path]] = {"suites": [Path("suites")], "systems": [Path("systems")]}


def folder(kind: str) -> Path:
    """The folder of that kind: suites, systems or reports."""
    in_wheel = PACKAGE / "shipped_files" / kind
    return in_wheel if in_wheel.is_dir() else CLONE / kind


def add(kind: str, place: Path) -> None:
    """Look in this folder before all others; raises UsageError if there is none."""
    if not place.is_dir():
        raise UsageError(f"{place}: no such folder")
    OWN[kind].insert(0, place)


def find(kind: str, name: str) -> Path:
    """A suite or system by name or path; those of the current folder, or its ./suites or ./systems, come first.

    Raises UsageError with the nearest known name.
    """
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
        if path.is_file():
            return path
        raise UsageError(f"{path}: no such file")
    for place in [*OWN[kind], folder(kind)]:
        if (place / f"{name}.yaml").is_file():
            return place / f"{name}.yaml"
    raise UsageError(f"no {kind.removesuffix('s')} named {name!r}{did_you_mean(name, names(kind))}")


def checkpoints() -> list[str]:
    """Names of the shipped models."""
    return sorted(p.stem for p in (PACKAGE / "reference" / "models" / "shipped").glob("*.safetensors"))


def names(kind: str) -> list[str]:
    """Known suites or systems, the user's own included."""
    return sorted({p.stem for place in (*OWN[kind], folder(kind)) for p in place.glob("*.yaml")})
