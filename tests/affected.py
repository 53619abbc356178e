"""Print the tests to run for a change: changed test files, and the tests that import a changed module.

If tests in the folder that mirrors the module's folder import it, only those are printed.
"""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parent.parent
# Patterns of files that are not Python modules -> the tests that depend on those files.
READERS = {
    "suites/*": ("tests/config/test_language.py", "tests/planning", "tests/experiments"),
    "systems/*": ("tests/config/test_language.py", "tests/execution/test_job_script.py"),
    "reports/claims/*": ("tests/claims",),
    "reports/*.j2": ("tests/report",),
    "*.md": ("tests/system/test_docs.py",),
}


def list_changed_files() -> list[str]:
    """Return the files that differ from the last commit or, if none does, the files of the last commit."""
    changed = _git("diff", "--name-only", "HEAD") + _git("ls-files", "--others", "--exclude-standard")
    return changed or _git("diff", "--name-only", "HEAD~1")


def find_tests(changed: Iterable[str]) -> list[str]:
    """Return the tests to run for changed files, both relative to the root of the repository."""
    imports = {path: _list_imports(path) for path in ROOT.glob("tests/**/*.py")}
    selected: set[Path] = set()
    for name in changed:
        path = ROOT / name
        for pattern, readers in READERS.items():
            selected |= {ROOT / reader for reader in readers if Path(name).match(pattern)}
        if path.suffix != ".py":
            continue
        if path.name.startswith("test_"):
            selected.add(path)
        module = ".".join(Path(name).with_suffix("").parts).removesuffix(".__init__")
        importers = {test for test, modules in imports.items() if module in modules and test.name.startswith("test_")}
        selected |= next(
            filter(None, (_select_in_folder(_mirror(path, depth), importers) for depth in (-1, 2))), importers
        )
    return sorted(str(path.relative_to(ROOT)) for path in selected if path.exists())


def _mirror(path: Path, depth: int) -> Path:
    """Return the folder in tests/ that mirrors a module's path, with the parts of the path up to index `depth`."""
    return ROOT.joinpath("tests", *path.relative_to(ROOT).parts[1:depth])


def _select_in_folder(folder: Path, tests: Iterable[Path]) -> set[Path]:
    return {test for test in tests if folder in test.parents}


def _list_imports(path: Path) -> set[str]:
    modules = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return modules


def _git(*args: str) -> list[str]:
    result = subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True, check=False)
    return result.stdout.splitlines()


if __name__ == "__main__":
    print("\n".join(find_tests(list_changed_files())))
