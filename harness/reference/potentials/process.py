"""A potential in a process of its own, in whichever environment it is installed."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.protocol.programs.models import ModelDefinition, PotentialPrecision
from harness.reference.data.structure import Structure

WORKER = Path(__file__).with_name("worker.py")
PACKAGE_ROOT = Path(__file__).parents[3]
CALCULATORS = "harness.reference.inference.calculator"
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
MAX_ERROR_CHARACTERS = 300
Array = NDArray[np.float64]


class PotentialError(Exception):
    """A potential failed: it raised, ended, took too long, or gave an answer that is no prediction.

    Attributes:
        is_absence: whether the potential cannot be used here at all, since it, or the precision, is not there.
        is_out_of_memory: whether memory did not suffice.
    """

    def __init__(self, message: str, *, is_absence: bool = False, is_out_of_memory: bool = False) -> None:
        super().__init__(message)
        self.is_absence, self.is_out_of_memory = is_absence, is_out_of_memory


@dataclass(frozen=True)
class PotentialPrediction:
    """The prediction for one structure of n atoms.

    energy: eV. forces: [n, 3] eV/angstrom. stress: [6] eV/angstrom^3 in Voigt order, tension positive; None if the
    potential or the structure has none.
    """

    energy: float
    forces: Array
    stress: Array | None = None


def build_spec(
    definition: ModelDefinition, precision: PotentialPrecision, device: str, *, compiled: bool = False
) -> dict[str, Any]:
    """Return what the worker has to import and call; raise PotentialError if that is not offered."""
    if definition.checkpoint is not None or definition.hydragnn is not None:
        kwargs: dict[str, Any] = {"device": device}
        kwargs["precision"] = "fp64" if precision == "published" else precision
        if compiled:
            kwargs["compiled"] = True
        if definition.checkpoint is not None:
            kwargs["model"] = definition.checkpoint
            return {"module": CALCULATORS, "class_name": "ReferenceCalculator", "kwargs": kwargs}
        assert definition.hydragnn is not None
        kwargs |= definition.hydragnn.model_dump(exclude_none=True)
        return {"module": CALCULATORS, "class_name": "build_hydragnn_calculator", "kwargs": kwargs}
    if precision != "published" and precision not in definition.precisions:
        offered = ", ".join(definition.precisions) or "none but the published one"
        raise PotentialError(f"precision {precision} is not among those of its definition ({offered})", is_absence=True)
    added = definition.precisions.get(precision, {})
    if compiled:
        if definition.compiled is None:
            raise PotentialError("its definition has no arguments `compiled`", is_absence=True)
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
    """A potential that answers requests in its process; use it as a context manager.

    Args:
        spec: What to load (`build_spec`).
        python: The interpreter; None for this one.
        threads: Threads that its libraries may use.
        timeout_s: Time after which a request counts as failed, and the process is ended.
        log: File to which the process writes what it prints.

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
                raise PotentialError(f"{python}: {error.strerror or error}", is_absence=True) from None
        try:
            self.about = self._request({"do": "load", "spec": dict(spec), "threads": threads})
        except PotentialError:
            self.close()
            raise

    def __enter__(self) -> PotentialProcess:
        """Return the process, which is ready for requests."""
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
                with suppress(BrokenPipeError):  # what a process that has ended did not read
                    stream.close()

    def predict(self, structures: Sequence[Structure], *, with_stress: bool = False) -> list[PotentialPrediction]:
        """Return the prediction for each structure; raise PotentialError if one is refused or malformed."""
        results = self.try_predict(structures, with_stress=with_stress)
        for structure, result in zip(structures, results, strict=True):
            if isinstance(result, str):
                raise PotentialError(f"{structure.name}: {result}")
        return [result for result in results if not isinstance(result, str)]

    def try_predict(
        self, structures: Sequence[Structure], *, with_stress: bool = False
    ) -> list[PotentialPrediction | str]:
        """Return the prediction for each structure, or the reason why there is none."""
        properties = ["energy", "forces"]
        if with_stress and "stress" in self.about["properties"] and all(all(s.periodic) for s in structures):
            properties.append("stress")
        request = {"do": "predict", "structures": [encode(s) for s in structures], "properties": properties}
        answers = self._request(request)["predictions"]
        return [_decode(answer, len(s)) for s, answer in zip(structures, answers, strict=True)]

    def call(self, method: str, **arguments: Any) -> dict[str, Any]:
        """Return the results of a method of a potential that is its own adapter; raise PotentialError."""
        return self._request({"do": "call", "method": method, "arguments": arguments})

    def time(self, structure: Structure, *, repeats: int, displacement: float, seed: int) -> dict[str, Any]:
        """Return the seconds of repeated predictions after random displacements (angstrom), and the peak memory."""
        return self._request(
            {
                "do": "time",
                "structure": encode(structure),
                "repeats": repeats,
                "displacement": displacement,
                "seed": seed,
            }
        )

    def _request(self, request: Mapping[str, Any]) -> dict[str, Any]:
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
            raise PotentialError(
                answer["error"],
                is_absence=bool(answer.get("absent")),
                is_out_of_memory=bool(answer.get("out_of_memory")),
            )
        return answer

    def _read_line(self) -> bytes:
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
        """Return how the process ended, with the last line that it printed."""
        self._process.wait()
        code = self._process.returncode
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        lines = self._log_path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return f"its process ended ({how}){': ' + lines[-1].strip()[:MAX_ERROR_CHARACTERS] if lines else ''}"


def encode(structure: Structure) -> dict[str, Any]:
    """Return a structure as plain data."""
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


def _decode(answer: Mapping[str, Any], atoms: int) -> PotentialPrediction | str:
    """Return the prediction in an answer, or what is wrong with it."""
    if "error" in answer:
        return str(answer["error"])
    missing = [name for name in ("energy", "forces") if name not in answer]
    if missing:
        return f"it gives no {' and no '.join(missing)}"
    arrays: dict[str, Array] = {}
    for name, shape in {"energy": (), "forces": (atoms, 3), "stress": (6,)}.items():
        if name not in answer:
            continue
        try:
            array = np.asarray(answer[name], dtype=np.float64)
        except (TypeError, ValueError):
            return f"its {name} is no array of numbers"
        if name == "energy" and array.size == 1:
            array = array.reshape(())
        if name == "stress" and array.shape == (3, 3):
            array = array[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]
        if array.shape != shape:
            return f"its {name} has the shape {list(array.shape)}, expected {list(shape)}"
        if not np.isfinite(array).all():
            return f"its {name} is not finite"
        arrays[name] = array
    return PotentialPrediction(float(arrays["energy"]), arrays["forces"], arrays.get("stress"))


def count_reasons(reasons: Iterable[str]) -> dict[str, int]:
    """Return how often each reason occurs."""
    counts: dict[str, int] = {}
    for reason in reasons:
        counts[reason] = counts.get(reason, 0) + 1
    return counts
