"""The process of one potential: it answers requests, one JSON object per line, from standard input.

The file runs as a script in the environment of the model, and imports nothing of the harness; it needs ASE and NumPy,
and torch-sim for its models. A request has the key `do`; the answer has its results, or `error` with a reason.
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

MAX_HINT_NAMES = 400
TERMINAL_CODES = r"\x1b\[[0-9;]*m"  # colours and bold text


class Absent(Exception):
    """A model that is not installed."""


def build(spec: dict[str, Any]) -> Any:
    """Import the class of a potential and return an adapter of it, or its object if that is an adapter."""
    sys.path[:0] = spec.get("paths", [])
    try:
        potential = build_object(spec)
    except ModuleNotFoundError as error:
        hint = f"; {spec['install']}" if spec.get("install") else ""
        raise Absent(f"no module {error.name!r} in {sys.executable}{hint}") from None
    adapt = {"torch_sim": TorchSimAdapter, "adapter": lambda model: model}.get(spec.get("interface", ""), AseAdapter)
    return adapt(potential)


def build_object(spec: dict[str, Any]) -> Any:
    """Return what a spec names: the result of a class or function, whose arguments may be specs too, or a constant."""
    target = importlib.import_module(spec["module"])
    for name in spec["class_name"].split("."):
        if not hasattr(target, name):
            near = difflib.get_close_matches(name, dir(target)[:MAX_HINT_NAMES], n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise ValueError(f"module {spec['module']} has no {spec['class_name']!r}{hint}")
        target = getattr(target, name)
    arguments = {name: build_argument(value) for name, value in spec.get("kwargs", {}).items()}
    return target(**arguments) if callable(target) else target


def build_argument(value: Any) -> Any:
    """Return an argument, with objects in place of the definitions in it."""
    if isinstance(value, list):
        return [build_argument(item) for item in value]
    if not isinstance(value, dict):
        return value
    return build_object(value) if {"module", "class_name"} <= value.keys() else value


class AseAdapter:
    """A potential behind ASE's interface of calculators, which takes one structure at a time."""

    def __init__(self, calculator: Any) -> None:
        self.calculator = calculator
        self.properties = list(getattr(calculator, "implemented_properties", []))

    def predict(self, atoms: Any, properties: list[str]) -> Any:
        """Return the results of a structure; nothing is cached, as every change is announced."""
        from ase.calculators.calculator import all_changes

        self.calculator.calculate(atoms, properties, all_changes)
        return self.calculator.results

    def predict_batch(self, structures: list[Any], properties: list[str]) -> list[dict[str, Any]]:
        """Return the results of each structure, or the reason why it was refused."""
        return [self.answer(atoms, properties) for atoms in structures]

    def answer(self, atoms: Any, properties: list[str]) -> dict[str, Any]:
        """Return the results of a structure, without a stress that the calculator refuses, or why there are none."""
        try:
            results = self.predict(atoms, properties)
            return {name: results[name] for name in properties if name in results}
        except Exception as error:  # a model may refuse an element, and each has its own error for that
            if hasattr(self.calculator, "reset"):
                self.calculator.reset()  # it may take results of the structure before for those of this one
            if "stress" in properties:
                return self.answer(atoms, [name for name in properties if name != "stress"])
            return {"error": describe(error)}

    def find_module(self) -> Any:
        """Return the torch module that the calculator holds, or None."""
        torch = sys.modules.get("torch")
        if torch is None:
            return None
        values = [getattr(self.calculator, name, None) for name in ("model", "models", "potential", "net")]
        values += [value[0] for value in values if isinstance(value, (list, tuple)) and value]
        return next((value for value in values if isinstance(value, torch.nn.Module)), None)


class TorchSimAdapter:
    """A potential behind torch-sim's interface of models, which takes all structures at once."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.properties = ["energy", *(n for n in ("forces", "stress") if getattr(model, f"compute_{n}", True))]

    def predict(self, atoms: Any, properties: list[str]) -> Any:
        """Return the results of a structure."""
        answer = self.predict_batch([atoms], properties)[0]
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    def predict_batch(self, structures: list[Any], properties: list[str]) -> list[dict[str, Any]]:
        """Return the results of all structures, computed in one batch."""
        import torch_sim

        state = torch_sim.io.atoms_to_state(structures, self.model.device, self.model.dtype)
        try:
            output = {name: value.detach().cpu().numpy() for name, value in self.model(state).items()}
        except Exception as error:
            return [{"error": describe(error)}] * len(structures)
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


def describe(error: Exception) -> str:
    """Return an exception as one line."""
    text = " ".join(re.sub(TERMINAL_CODES, "", str(error)).split())[:300]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def read_atoms(data: dict[str, Any]) -> Any:
    """Return ASE's atoms of a structure as a request holds it."""
    from ase import Atoms

    atoms = Atoms(numbers=data["numbers"], positions=data["positions"], cell=data["cell"], pbc=data["periodic"])
    atoms.info.update(data.get("info", {}))
    return atoms


def measure_peak_memory() -> tuple[int, int | None]:
    """Return the peak of resident memory in bytes, and that of the accelerator or None."""
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    torch: Any = sys.modules.get("torch")
    on_device = torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized()
    return resident, torch.cuda.max_memory_allocated() if on_device else None


def list_versions(module_name: str) -> dict[str, str]:
    """Return the versions of the potential's package and of those below it."""
    names = [module_name.split(".", maxsplit=1)[0], "ase", "numpy", "torch"]
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
    """The answers to requests; `load` comes first."""

    def __init__(self) -> None:
        self.adapter: Any = None

    def load(self, request: dict[str, Any]) -> dict[str, Any]:
        """Build the potential and describe it."""
        start = time.perf_counter()
        if request.get("threads") and "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(request["threads"])
        self.adapter = build(request["spec"])
        module = self.adapter.find_module()
        weights = [p for p in module.parameters() if p.is_floating_point()] if module is not None else []
        return {
            "load_s": time.perf_counter() - start,
            "properties": self.adapter.properties,
            "packages": list_versions(request["spec"]["module"]),
            "python": platform.python_version(),
            "parameters": sum(p.numel() for p in weights) if weights else None,
            "dtype": str(weights[0].dtype).replace("torch.", "") if weights else None,
        }

    def predict(self, request: dict[str, Any]) -> dict[str, Any]:
        """Predict all structures of a request."""
        atoms = [read_atoms(data) for data in request["structures"]]
        answers = self.adapter.predict_batch(atoms, request["properties"])
        return {"predictions": [{name: to_plain(value) for name, value in answer.items()} for answer in answers]}

    def call(self, request: dict[str, Any]) -> dict[str, Any]:
        """Call a method of the adapter."""
        result = getattr(self.adapter, request["method"])(**request["arguments"])
        return {name: to_plain(value) for name, value in result.items()}

    def time(self, request: dict[str, Any]) -> dict[str, Any]:
        """Displace all atoms and predict energy and forces, `repeats` times; return the seconds of each prediction."""
        import numpy as np

        atoms = read_atoms(request["structure"])
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
    """Return arrays and scalars as JSON data."""
    return value.tolist() if hasattr(value, "tolist") else value


def main() -> None:
    """Answer requests until standard input ends; the model's own output goes to standard error."""
    if not getattr(sys.flags, "safe_path", False):
        del sys.path[0]  # the folder of this file
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    worker = Worker()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(worker, request["do"])(request)
        except Absent as error:
            answer = {"error": str(error), "absent": True}
        except MemoryError:
            answer = {"error": "out of memory", "out_of_memory": True}
        except Exception as error:  # whatever a model raises is its answer
            text = describe(error)
            answer = {"error": text, "out_of_memory": "out of memory" in text.lower()}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
