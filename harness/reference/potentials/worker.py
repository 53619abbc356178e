"""A process with one potential, which answers requests from standard input, each a JSON object on a line.

This script runs in the environment of the potential, where the harness cannot be imported. It needs ASE and NumPy, and
torch-sim for models of torch-sim. The key `do` of a request names a method of `Worker`; the answer has the results of
the method, or a reason under the key `error`.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import json
import os
import platform
import re
import resource
import sys
import time
from typing import Any

MAX_HINT_NAMES = 400  # names of a module among which a misspelt name is searched
TERMINAL_CODES = r"\x1b\[[0-9;]*m"  # colours and bold text


class NotInstalledError(Exception):
    """The module of a potential is not installed."""


def build_adapter(spec: dict[str, Any]) -> Any:
    """Return an adapter of a specified potential; an object with the interface `adapter` is returned as it is."""
    sys.path[:0] = spec.get("paths", [])
    try:
        potential = build_object(spec)
    except ModuleNotFoundError as error:
        hint = f"; {spec['install']}" if spec.get("install") else ""
        raise NotInstalledError(f"no module {error.name!r} in {sys.executable}{hint}") from None
    adapt = {"torch_sim": TorchSimAdapter, "adapter": lambda model: model}.get(spec.get("interface", ""), AseAdapter)
    return adapt(potential)


def build_object(spec: dict[str, Any]) -> Any:
    """Return the object that a specification names.

    This is the result of calling a class or function, whose arguments may be specifications too, or else a constant.
    """
    target = importlib.import_module(spec["module"])
    for name in spec["class_name"].split("."):
        if not hasattr(target, name):
            matches = difflib.get_close_matches(name, dir(target)[:MAX_HINT_NAMES], n=1)
            hint = f" (did you mean {matches[0]!r}?)" if matches else ""
            raise ValueError(f"module {spec['module']} has no {spec['class_name']!r}{hint}")
        target = getattr(target, name)
    arguments = {name: build_argument(value) for name, value in spec.get("kwargs", {}).items()}
    return target(**arguments) if callable(target) else target


def build_argument(value: Any) -> Any:
    """Return an argument in which specifications are replaced by the objects that they name."""
    if isinstance(value, list):
        return [build_argument(item) for item in value]
    if not isinstance(value, dict):
        return value
    return build_object(value) if {"module", "class_name"} <= value.keys() else value


class AseAdapter:
    """A potential with ASE's calculator interface, which takes one structure at a time."""

    def __init__(self, calculator: Any) -> None:
        self.calculator = calculator
        self.properties = list(getattr(calculator, "implemented_properties", []))

    def predict(self, atoms: Any, properties: list[str]) -> Any:
        """Return the results for a structure; ASE caches nothing, since all inputs are declared as changed."""
        from ase.calculators.calculator import all_changes

        self.calculator.calculate(atoms, properties, all_changes)
        return self.calculator.results

    def predict_batch(self, structures: list[Any], properties: list[str]) -> list[dict[str, Any]]:
        """Return the results for each structure, or the reason why the calculator refuses it."""
        return [self.predict_one(atoms, properties) for atoms in structures]

    def predict_one(self, atoms: Any, properties: list[str]) -> dict[str, Any]:
        """Return the results for a structure, or the reason why the calculator refuses it.

        If the calculator fails, it is called again without the stress, which it may not support.
        """
        try:
            results = self.predict(atoms, properties)
            return {name: results[name] for name in properties if name in results}
        except Exception as error:  # each potential has its own error for an element that it refuses
            if hasattr(self.calculator, "reset"):
                self.calculator.reset()  # otherwise the results of the previous structure may remain
            if "stress" in properties:
                return self.predict_one(atoms, [name for name in properties if name != "stress"])
            return {"error": describe_error(error)}

    def find_module(self) -> Any:
        """Return the torch module that the calculator holds, or None."""
        torch = sys.modules.get("torch")
        if torch is None:
            return None
        values = [getattr(self.calculator, name, None) for name in ("model", "models", "potential", "net")]
        values += [value[0] for value in values if isinstance(value, (list, tuple)) and value]
        return next((value for value in values if isinstance(value, torch.nn.Module)), None)


class TorchSimAdapter:
    """A potential with torch-sim's model interface, which takes all structures at once."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.properties = ["energy", *(n for n in ("forces", "stress") if getattr(model, f"compute_{n}", True))]

    def predict(self, atoms: Any, properties: list[str]) -> Any:
        """Return the results for a structure; raise RuntimeError if the model refuses it."""
        answer = self.predict_batch([atoms], properties)[0]
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    def predict_batch(self, structures: list[Any], properties: list[str]) -> list[dict[str, Any]]:
        """Return the results for each structure of one batch, or the reason why the model refuses the batch."""
        import torch_sim

        state = torch_sim.io.atoms_to_state(structures, self.model.device, self.model.dtype)
        try:
            output = {name: value.detach().cpu().numpy() for name, value in self.model(state).items()}
        except Exception as error:
            return [{"error": describe_error(error)}] * len(structures)
        answers: list[dict[str, Any]] = []
        first = 0
        for k, atoms in enumerate(structures):
            answer: dict[str, Any] = {"energy": float(output["energy"][k])}
            if "forces" in properties and "forces" in output:
                answer["forces"] = output["forces"][first : first + len(atoms)]
            if "stress" in properties and "stress" in output:
                answer["stress"] = [
                    output["stress"][k][i][j] for i, j in ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))
                ]
            answers.append(answer)
            first += len(atoms)
        return answers

    def find_module(self) -> Any:
        """Return the model, which is a torch module."""
        return self.model


def describe_error(error: Exception) -> str:
    """Return the type and the message of an exception on one line, without terminal codes."""
    text = " ".join(re.sub(TERMINAL_CODES, "", str(error)).split())[:300]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def build_atoms(data: dict[str, Any]) -> Any:
    """Return the ASE atoms of a structure in a request."""
    from ase import Atoms

    atoms = Atoms(numbers=data["numbers"], positions=data["positions"], cell=data["cell"], pbc=data["periodic"])
    info = data.get("info", {})
    atoms.info.update(info)
    # calculators of ASE such as those of tblite and DFTB+ read charge and spin from the initial values of the atoms
    if info.get("charge"):
        atoms.set_initial_charges([info["charge"] / len(atoms)] * len(atoms))
    if info.get("multiplicity", 1) > 1:
        atoms.set_initial_magnetic_moments([(info["multiplicity"] - 1) / len(atoms)] * len(atoms))
    return atoms


def measure_peak_memory() -> tuple[int, int | None]:
    """Return the peak of the resident memory in bytes, and that of the accelerator, or None without one."""
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    torch: Any = sys.modules.get("torch")
    on_device = torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized()
    return resident, torch.cuda.max_memory_allocated() if on_device else None


def list_versions(module_name: str, adapter: Any) -> dict[str, str]:
    """Return the versions of the potential's packages, ASE, NumPy and torch, as far as they are installed.

    An adapter's calculator may name the packages that it calls in its attribute `packages`.
    """
    packages = getattr(getattr(adapter, "calculator", None), "packages", [module_name.split(".", maxsplit=1)[0]])
    names = [*packages, "ase", "numpy", "torch"]
    known = importlib.metadata.packages_distributions() if hasattr(importlib.metadata, "packages_distributions") else {}
    versions: dict[str, str] = {}
    for name in names:
        for distribution in known.get(name, [name])[:1]:
            try:
                versions[distribution] = importlib.metadata.version(distribution)
            except importlib.metadata.PackageNotFoundError:
                continue
    return versions


class Worker:
    """The methods that answer requests; the first request must be `load`."""

    def __init__(self) -> None:
        self.adapter: Any = None

    def load(self, request: dict[str, Any]) -> dict[str, Any]:
        """Build the potential; return its load time, properties, versions, number of weights and type of weights."""
        start = time.perf_counter()
        if request.get("threads") and "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(request["threads"])
        self.adapter = build_adapter(request["spec"])
        module = self.adapter.find_module()
        weights = [p for p in module.parameters() if p.is_floating_point()] if module is not None else []
        return {
            "load_s": time.perf_counter() - start,
            "properties": self.adapter.properties,
            "packages": list_versions(request["spec"]["module"], self.adapter),
            "python": platform.python_version(),
            "parameters": sum(p.numel() for p in weights) if weights else None,
            "dtype": str(weights[0].dtype).replace("torch.", "") if weights else None,
        }

    def predict(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return the predictions for the structures of a request."""
        atoms = [build_atoms(data) for data in request["structures"]]
        answers = self.adapter.predict_batch(atoms, request["properties"])
        return {"predictions": [{name: to_plain(value) for name, value in answer.items()} for answer in answers]}

    def call(self, request: dict[str, Any]) -> dict[str, Any]:
        """Call a method of the adapter, and return its results as JSON data."""
        result = getattr(self.adapter, request["method"])(**request["arguments"])
        return {name: to_plain(value) for name, value in result.items()}

    def time(self, request: dict[str, Any]) -> dict[str, Any]:
        """Time `repeats` predictions of energy and forces, each after random displacements of all atoms."""
        import numpy as np

        atoms = build_atoms(request["structure"])
        rng = np.random.default_rng(request["seed"])
        start_positions = atoms.positions.copy()
        seconds = []
        for _ in range(request["repeats"]):
            atoms.positions[:] = start_positions + rng.normal(scale=request["displacement"], size=start_positions.shape)
            start = time.perf_counter()
            results = self.adapter.predict(atoms, ["energy", "forces"])
            float(results["energy"])  # waits for an accelerator
            seconds.append(time.perf_counter() - start)
        resident, on_device = measure_peak_memory()
        return {"seconds": seconds, "peak_bytes": resident, "device_peak_bytes": on_device}


def to_plain(value: Any) -> Any:
    """Return a value as JSON data; arrays and NumPy scalars are converted."""
    return value.tolist() if hasattr(value, "tolist") else value


def main() -> None:
    """Answer requests until standard input ends; the model's own output goes to standard error."""
    if not getattr(sys.flags, "safe_path", False):
        del sys.path[0]  # the folder of this script
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    worker = Worker()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(worker, request["do"])(request)
        except NotInstalledError as error:
            answer = {"error": str(error), "absent": True}
        except MemoryError:
            answer = {"error": "out of memory"}
        except Exception as error:  # a potential may raise any exception
            answer = {"error": describe_error(error)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
