"""The checkout of HydraGNN that the settings of a case name, and the processes that run its code."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.host.files import expand_path
from harness.host.provenance import run_git
from harness.protocol.programs.model import HYDRAGNN_FOLDER_SETTING, HYDRAGNN_PYTHON_SETTING
from harness.protocol.records import ImplementationSource
from harness.reference.errors import InputError
from harness.reference.potentials.process import PotentialError, PotentialProcess

# The folder of the programs with which the paper's results were computed, below the checkout.
PROGRAM_FOLDER = Path("examples/multidataset_hpo_sc26")
# The adapters are modules of this package that run in the environment of HydraGNN.
ADAPTER_FOLDER = Path(__file__).parent
# An hour, since the first prediction may compile the model.
REQUEST_TIMEOUT_S = 3600.0


@dataclass(frozen=True)
class Checkout:
    """A checkout of HydraGNN.

    Attributes:
        folder: The root of the repository.
        python: The Python interpreter that runs its code; None: the one that runs the harness.
    """

    folder: Path
    python: str | None

    def require_files(self, *paths: Path | str) -> None:
        """Raise InputError if the folder, HydraGNN's package or one of these files in the checkout is missing."""
        if not self.folder.is_dir():
            raise InputError(f"setting {HYDRAGNN_FOLDER_SETTING}: {self.folder} is not a folder")
        for path in ("hydragnn/__init__.py", *paths):
            if not (self.folder / path).is_file():
                raise InputError(
                    f"setting {HYDRAGNN_FOLDER_SETTING}: {self.folder} is not a checkout of HydraGNN (it has no {path})"
                )

    def describe_settings(self) -> str:
        """Return the settings that name this checkout, for error messages."""
        python = self.python or sys.executable
        return f"settings {HYDRAGNN_FOLDER_SETTING}={self.folder}, {HYDRAGNN_PYTHON_SETTING}={python}"

    def describe_source(self, python_version: str, packages: dict[str, str]) -> ImplementationSource:
        """Return the fact that identifies the code, its commit and its environment.

        Args:
            python_version: The version of the interpreter.
            packages: The versions of the packages in its environment, by name.
        """
        commit = run_git(self.folder, "rev-parse", "HEAD")
        status = run_git(self.folder, "status", "--porcelain", "--untracked-files=no")
        return ImplementationSource(
            name="HydraGNN",
            folder=str(self.folder),
            commit=commit,
            changed_since_commit=None if status is None else bool(status),
            interpreter=self.python or sys.executable,
            python=python_version,
            packages=packages,
        )

    @contextmanager
    def add_settings_to_errors(self) -> Iterator[None]:
        """Convert a PotentialError in the block to an InputError whose message names the settings."""
        try:
            yield
        except PotentialError as error:
            raise InputError(f"implementation hydragnn: {error} ({self.describe_settings()})") from None

    def start_adapter(
        self, module: str, class_name: str, *, threads: int, log: Path, **kwargs: Any
    ) -> PotentialProcess:
        """Start a process with an object of an adapter's class; raise PotentialError if that fails.

        Args:
            module: The module of the adapter in ADAPTER_FOLDER.
            class_name: The class in the module.
            threads: The number of threads that the process may use.
            log: The file to which the process writes its output.
            kwargs: Keyword arguments of the class.
        """
        import_paths = [str(self.folder), str(self.folder / PROGRAM_FOLDER), str(ADAPTER_FOLDER)]
        spec = {"interface": "adapter", "module": module, "class_name": class_name, "kwargs": kwargs}
        spec |= {"paths": import_paths}
        return PotentialProcess(spec, python=self.python, threads=threads, timeout_s=REQUEST_TIMEOUT_S, log=log)


def find_checkout(case_folder: Path, required_files: Sequence[Path | str] = ()) -> Checkout:
    """Return the checkout that the settings of a case name; raise InputError if it lacks one of the required files."""
    case = json.loads((case_folder / "case.json").read_text(encoding="utf-8"))
    settings = case.get("settings", {})
    folder = expand_path(settings.get(HYDRAGNN_FOLDER_SETTING, ""))
    python = expand_path(settings.get(HYDRAGNN_PYTHON_SETTING, ""))
    if not folder:
        raise InputError(f"implementation hydragnn needs the setting {HYDRAGNN_FOLDER_SETTING}: a checkout of HydraGNN")
    checkout = Checkout(Path(folder), python or None)
    checkout.require_files(*required_files)
    return checkout
