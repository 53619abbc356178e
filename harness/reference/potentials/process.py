"""Interatomic potentials in separate processes, each in the Python environment in which the potential is installed."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.protocol.programs.models import ModelDefinition, PotentialPrecision
from harness.protocol.text import sanitize_line
from harness.reference.data.structure import Structure

WORKER = Path(__file__).with_name("worker.py")
PACKAGE_ROOT = Path(__file__).parents[3]
CALCULATOR_MODULE = "harness.reference.inference.calculator"
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
MAX_ERROR_CHARACTERS = 300
Array = NDArray[np.float64]


class PotentialError(Exception):
    """The failure of a potential: an exception, the end of its process, a timeout, or a malformed prediction.

    Attributes:
        is_unavailable: Whether the potential is not installed, or does not offer the precision or compilation.
    """

    def __init__(self, message: str, *, is_unavailable: bool = False) -> None:
        super().__init__(message)
        self.is_unavailable = is_unavailable


@dataclass(frozen=True)
class PotentialPrediction:
    """The prediction for one structure of n atoms.

    Attributes:
        energy: eV.
        forces: [n, 3] eV/angstrom.
        stress: [6] eV/angstrom^3 in Voigt order, positive under tension; None if it was not requested, or if the
            potential or the structure has no stress.
    """

    energy: float
    forces: Array
    stress: Array | None = None


def build_spec(
    definition: ModelDefinition, precision: PotentialPrecision, device: str, *, compiled: bool = False
) -> dict[str, Any]:
    """Return the specification of a potential, from which the worker builds it.

    Args:
        definition: The model as defined in a YAML file.
        precision: The precision of the model.
        device: The device, by its torch name; only checkpoints use it.
        compiled: Whether the model is compiled.

    Raises:
        PotentialError: The definition does not offer the precision, or compilation.
    """
    if definition.checkpoint is not None or definition.hydragnn is not None:
        kwargs: dict[str, Any] = {"device": device}
        kwargs["precision"] = "fp64" if precision == "published" else precision
        if compiled:
            kwargs["compiled"] = True
        if definition.checkpoint is not None:
            kwargs["model"] = definition.checkpoint
            return {"module": CALCULATOR_MODULE, "class_name": "ReferenceCalculator", "kwargs": kwargs}
        assert definition.hydragnn is not None
        kwargs |= definition.hydragnn.model_dump(exclude_none=True)
        return {"module": CALCULATOR_MODULE, "class_name": "build_hydragnn_calculator", "kwargs": kwargs}
    if precision != "published" and precision not in definition.precisions:
        offered = ", ".join(definition.precisions) or "none but the published one"
        raise PotentialError(
            f"precision {precision} is not among those of its definition ({offered})", is_unavailable=True
        )
    added = definition.precisions.get(precision, {})
    if compiled:
        if definition.compiled is None:
            raise PotentialError("its definition has no key `compiled`", is_unavailable=True)
        added = added | definition.compiled
    spec: dict[str, Any] = {"install": definition.install}
    if definition.torch_sim is not None:
        source = definition.torch_sim
        spec |= {"interface": "torch_sim", "module": source.module, "class_name": source.class_name}
        return spec | {"kwargs": source.kwargs | added}
    return spec | {
        "module": definition.module,
        "class_name": definition.class_name,
        "kwargs": definition.kwargs | added,
    }


class PotentialProcess:
    """A process with one potential, which answers requests; a context manager that ends the process.

    Args:
        spec: The specification of the potential (see `build_spec`).
        python: The Python interpreter; None: the one that runs the harness.
        threads: The number of threads that its libraries may use.
        timeout_s: The time after which a request fails and the process is ended.
        log: The file to which the process writes its output.

    Attributes:
        description: The worker's description of the potential: its properties, type, number of weights and packages.

    Raises:
        PotentialError: The potential cannot be loaded.
    """

    def __init__(self, spec: Mapping[str, Any], *, python: str | None, threads: int, timeout_s: float, log: Path):
        self.timeout_s, self._log_path = timeout_s, log
        environment = {**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(threads))}
        if python is None:  # the same environment, with the same modules
            environment["PYTHONPATH"] = os.pathsep.join(map(str, [PACKAGE_ROOT, *filter(None, sys.path)]))
        else:
            environment.pop("PYTHONPATH", None)
        with open(log, "ab") as errors:
            try:
                self._process = subprocess.Popen(
                    [python or sys.executable, "-P" if python is None else "-u", str(WORKER)],
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=environment,
                )  # fmt: skip
            except OSError as error:
                raise PotentialError(f"{python}: {error.strerror or error}", is_unavailable=True) from None
        try:
            self.description = self._request({"do": "load", "spec": dict(spec), "threads": threads})
        except PotentialError:
            self.close()
            raise

    def __enter__(self) -> PotentialProcess:
        """Return this object; the potential is loaded already."""
        return self

    def __exit__(self, *error: object) -> None:
        """End the process."""
        self.close()

    def raise_if_ended(self) -> None:
        """Raise PotentialError if the process has ended."""
        if self._process.poll() is not None:
            raise PotentialError(self._describe_end())

    def close(self) -> None:
        """End the process."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with suppress(BrokenPipeError):  # the process ended before it read the last request
                    stream.close()

    def predict(self, structures: Sequence[Structure], *, with_stress: bool = False) -> list[PotentialPrediction]:
        """Return the prediction for each structure; raise PotentialError if the potential fails for one of them."""
        results = self.try_predict(structures, with_stress=with_stress)
        for structure, result in zip(structures, results, strict=True):
            if isinstance(result, str):
                raise PotentialError(f"{structure.name}: {result}")
        return [result for result in results if not isinstance(result, str)]

    def try_predict(
        self, structures: Sequence[Structure], *, with_stress: bool = False
    ) -> list[PotentialPrediction | str]:
        """Return the prediction for each structure, or the reason why it failed; raise PotentialError if all fail."""
        properties = ["energy", "forces"]
        if with_stress and "stress" in self.description["properties"] and all(all(s.periodic) for s in structures):
            properties.append("stress")
        request = {"do": "predict", "structures": [encode_structure(s) for s in structures], "properties": properties}
        answers = self._request(request)["predictions"]
        return [_decode_prediction(answer, len(s)) for s, answer in zip(structures, answers, strict=True)]

    def call(self, method: str, **arguments: Any) -> dict[str, Any]:
        """Call a method of an adapter in the process, and return its results; raise PotentialError if it fails."""
        return self._request({"do": "call", "method": method, "arguments": arguments})

    def time_predictions(self, structure: Structure, *, repeats: int, displacement: float, seed: int) -> dict[str, Any]:
        """Time repeated predictions of energy and forces, each after random displacements of all atoms.

        Args:
            structure: The structure without displacements.
            repeats: The number of predictions.
            displacement: The standard deviation of the displacements, angstrom.
            seed: The seed of the displacements.

        Returns:
            seconds: the seconds of each prediction; peak_bytes: the peak memory of the process; device_peak_bytes:
            that of the accelerator, or None.

        Raises:
            PotentialError: A prediction failed.
        """
        return self._request(
            {
                "do": "time",
                "structure": encode_structure(structure),
                "repeats": repeats,
                "displacement": displacement,
                "seed": seed,
            }
        )

    def _request(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Send a request and return its answer; raise PotentialError if the answer is an error."""
        self.raise_if_ended()
        process = self._process
        assert process.stdin is not None
        try:
            process.stdin.write((json.dumps(request) + "\n").encode())
            process.stdin.flush()
        except OSError:
            raise PotentialError(self._describe_end()) from None
        line = self._read_line()
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise PotentialError(answer["error"], is_unavailable=bool(answer.get("absent")))
        return answer

    def _read_line(self) -> bytes:
        """Return the next line of answers; raise PotentialError after the timeout, or if the process has ended."""
        stream = self._process.stdout
        assert stream is not None
        with selectors.DefaultSelector() as selector:
            selector.register(stream, selectors.EVENT_READ)
            if not selector.select(self.timeout_s):
                self.close()
                raise PotentialError(f"no answer within {self.timeout_s:g} s")
        line = stream.readline()
        if not line.endswith(b"\n"):
            raise PotentialError(self._describe_end())
        return line

    def _describe_end(self) -> str:
        return f"its process {describe_end(self._process.wait(), self._log_path)}"


def describe_end(exit_code: int, log: Path) -> str:
    """Return a phrase such as `ended (exit code 1): MemoryError`, with the last line of the process's output."""
    how = f"signal {-exit_code}" if exit_code < 0 else f"exit code {exit_code}"
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return f"ended ({how}){': ' + sanitize_line(lines[-1])[:MAX_ERROR_CHARACTERS] if lines else ''}"


def encode_structure(structure: Structure) -> dict[str, Any]:
    """Return a structure as plain data, as the worker reads it."""
    info: dict[str, Any] = {}
    if structure.charge:
        info["charge"] = structure.charge
    if structure.multiplicity:
        info["multiplicity"] = structure.multiplicity
    return {
        "numbers": structure.numbers.tolist(),
        "positions": structure.positions.tolist(),
        "cell": structure.cell.tolist(),
        "periodic": list(structure.periodic),
        "info": info,
    }


def _decode_prediction(answer: Mapping[str, Any], atoms: int) -> PotentialPrediction | str:
    """Return the prediction in an answer, or a message if the answer is an error or malformed."""
    if "error" in answer:
        return str(answer["error"])
    missing = [name for name in ("energy", "forces") if name not in answer]
    if missing:
        return f"it predicts no {' and no '.join(missing)}"
    arrays: dict[str, Array] = {}
    for name, shape in {"energy": (), "forces": (atoms, 3), "stress": (6,)}.items():
        if name not in answer:
            continue
        try:
            array = np.asarray(answer[name], dtype=np.float64)
        except (TypeError, ValueError):
            return f"its {name} is not an array of numbers"
        if name == "energy" and array.size == 1:
            array = array.reshape(())
        if name == "stress" and array.shape == (3, 3):
            array = convert_to_voigt(array)
        if array.shape != shape:
            return f"its {name} has the shape {list(array.shape)}, expected {list(shape)}"
        if not np.isfinite(array).all():
            return f"its {name} is not finite"
        arrays[name] = array
    return PotentialPrediction(float(arrays["energy"]), arrays["forces"], arrays.get("stress"))


def convert_to_voigt(stress: Array) -> Array:
    """Return a symmetric stress tensor [3, 3] in Voigt order [6]: xx, yy, zz, yz, xz, xy."""
    return np.asarray(stress[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]])
