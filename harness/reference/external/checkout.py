"""A checkout of another implementation, as the settings of a case name it, and the processes that run its code."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.host.provenance import run_git
from harness.protocol.records import ImplementationSource
from harness.reference.errors import InputError
from harness.reference.potentials.process import PotentialError, PotentialProcess

FOLDER_SETTING, PYTHON_SETTING = "hydragnn_folder", "hydragnn_python"
# Where HydraGNN has the programs of its paper.
PROGRAMS = Path("examples/multidataset_hpo_sc26")
ADAPTERS = Path(__file__).parent
# A first prediction may compile the model.
TIMEOUT_S = 3600.0


@dataclass(frozen=True)
class Checkout:
    """A checkout of HydraGNN, and the interpreter that runs it, None for this one."""

    folder: Path
    python: str | None

    def require(self, *names: Path | str) -> None:
        """Raise InputError if a file that belongs to HydraGNN is missing."""
        if not self.folder.is_dir():
            raise InputError(f"setting {FOLDER_SETTING}: {self.folder} is no folder")
        for name in ("hydragnn/__init__.py", *names):
            if not (self.folder / name).is_file():
                raise InputError(f"setting {FOLDER_SETTING}: {self.folder} has no {name}, as HydraGNN has")

    @property
    def settings(self) -> str:
        """The settings, for messages."""
        return f"settings {FOLDER_SETTING}={self.folder}, {PYTHON_SETTING}={self.python or sys.executable}"

    @property
    def paths(self) -> list[str]:
        """The folders from which its modules and the adapters are imported."""
        return [str(self.folder), str(self.folder / PROGRAMS), str(ADAPTERS)]

    def describe(self, python: str, packages: dict[str, str]) -> ImplementationSource:
        """Return the fact about the checkout, from the version of its interpreter and of its packages."""
        commit = run_git(self.folder, "rev-parse", "HEAD")
        status = run_git(self.folder, "status", "--porcelain", "--untracked-files=no")
        return ImplementationSource(
            name="HydraGNN",
            folder=str(self.folder),
            commit=commit,
            changed_since_commit=None if status is None else bool(status),
            interpreter=self.python or sys.executable,
            python=python,
            packages=packages,
        )

    @contextmanager
    def naming_settings(self) -> Iterator[None]:
        """Raise InputError, with the settings in the message, in place of PotentialError."""
        try:
            yield
        except PotentialError as error:
            raise InputError(f"implementation hydragnn: {error} ({self.settings})") from None

    def start(self, module: str, class_name: str, *, threads: int, log: Path, **kwargs: Any) -> PotentialProcess:
        """Start an object of one of the adapters in a process; raise PotentialError."""
        spec = {"interface": "adapter", "module": module, "class_name": class_name, "kwargs": kwargs}
        spec |= {"paths": self.paths}
        return PotentialProcess(spec, python=self.python, threads=threads, timeout_s=TIMEOUT_S, log=log)


def find_checkout(case_folder: Path, needed: Sequence[Path | str] = ()) -> Checkout:
    """Return the checkout that the settings of a case name; raise InputError if it lacks one of the files."""
    case = json.loads((case_folder / "case.json").read_text(encoding="utf-8"))
    folder, python = (expand(case.get("settings", {}).get(name, "")) for name in (FOLDER_SETTING, PYTHON_SETTING))
    if not folder:
        raise InputError(f"implementation hydragnn needs the setting {FOLDER_SETTING}: a checkout of HydraGNN")
    checkout = Checkout(Path(folder), python or None)
    checkout.require(*needed)
    return checkout


def expand(path: str) -> str:
    """Return a path with its variables and its ~ expanded."""
    return os.path.expanduser(os.path.expandvars(path))
