"""The folders of suites, systems and report files: in a clone, or in an installed wheel."""

from __future__ import annotations

from pathlib import Path

from harness.protocol.errors import UsageError, did_you_mean

PACKAGE = Path(__file__).parents[1]
REPO_ROOT = PACKAGE.parent
# The user's folders, which are searched before the shipped files.
SEARCH_PATH: dict[str, list[Path]] = {"suites": [Path("suites")], "systems": [Path("systems")]}


def get_resource_dir(kind: str) -> Path:
    """Return the folder of the shipped files of a kind: suites, systems or reports."""
    in_wheel = PACKAGE / "shipped_files" / kind
    return in_wheel if in_wheel.is_dir() else REPO_ROOT / kind


def add_search_path(kind: str, folder: Path) -> None:
    """Add a folder that is searched before all others; raise UsageError if it does not exist."""
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder")
    SEARCH_PATH[kind].insert(0, folder)


def find_resource(kind: str, name: str) -> Path:
    """Return the file of a suite or system.

    Args:
        kind: suites or systems.
        name: A path that ends in .yaml or .yml, or a name, which is looked up in SEARCH_PATH and in the shipped files.

    Raises:
        UsageError: there is no such file; the message has the nearest known name.
    """
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
        if path.is_file():
            return path
        raise UsageError(f"{path}: no such file")
    for folder in [*SEARCH_PATH[kind], get_resource_dir(kind)]:
        if (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    raise UsageError(f"no {kind.removesuffix('s')} named {name!r}{did_you_mean(name, list_resources(kind))}")


def list_checkpoints() -> list[str]:
    """Return the names of the shipped checkpoints, which contain trained weights."""
    return sorted(path.stem for path in (PACKAGE / "reference" / "models" / "shipped").glob("*.safetensors"))


def list_resources(kind: str) -> list[str]:
    """Return the names of known suites or systems, including the user's."""
    folders = (*SEARCH_PATH[kind], get_resource_dir(kind))
    return sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})
