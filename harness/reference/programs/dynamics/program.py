"""Move many structures through one batch: molecular dynamics or relaxation (suites/dynamics.yaml).

The run saves its state at intervals, and continues from it after a kill. At the end, it writes final.extxyz.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ase.io
import msgspec
import numpy as np
import torch
from ase import Atoms

from harness.protocol.events import CaseLog
from harness.protocol.programs.dynamics import (
    DynamicsFacts,
    DynamicsModel,
    DynamicsParameters,
    DynamicsSample,
    DynamicsWorkload,
    StructureRelaxation,
    StructureTrajectory,
    UnfinishedStructure,
)
from harness.protocol.records import EventRecord, Observed, Progress
from harness.reference.data.structure import Structure
from harness.reference.distributed.group import check_device
from harness.reference.inference.batch_run import BatchRun, Motion
from harness.reference.inference.batched_relaxation import Relaxation, RelaxedStructure
from harness.reference.inference.calculator import resolve_head
from harness.reference.inference.molecular_dynamics import Dynamics, Thermostat, Trajectory
from harness.reference.inference.precision import find_precision
from harness.reference.inference.structure_batch import StructureBatch
from harness.reference.models import checkpoints
from harness.reference.models.foundation import FoundationModel
from harness.reference.profiling import timing
from harness.reference.programs.dynamics import saved_state
from harness.reference.programs.dynamics.ase_baseline import AseBaseline
from harness.reference.programs.dynamics.workload import build_structures
from harness.reference.programs.screening.symmetry import find_spacegroup

FINAL_FILE = "final.extxyz"
Result = RelaxedStructure | Trajectory


def run(config: DynamicsParameters, log: CaseLog, folder: Path) -> None:
    """Move all structures, from the saved state if there is one, and log times, energies and the baseline."""
    check_device(config.device)
    model = checkpoints.load_named(config.checkpoint)[0]
    model = find_precision(config.precision).apply(model).to(config.device).eval().requires_grad_(False)
    source, structures = build_structures(config, model)
    head = None if config.head is None else resolve_head(config.head)
    session = Session(config, model, structures, head=head, log=log, folder=folder)
    session.log_facts(source)
    session.run()


def build_motion(config: DynamicsParameters) -> Motion[Result]:
    """Return the optimizer or the integrator of a case."""
    if config.motion == "relaxation":
        return Relaxation(config.fmax, config.steps)
    thermostat = Thermostat(config.temperature_k, config.friction_per_ps) if config.motion == "langevin" else None
    return Dynamics(
        config.steps, config.time_step_fs, config.temperature_k, thermostat, config.record_interval, config.seed
    )


class Session:
    """The run of a case, which may continue an earlier one.

    Args:
        config: The parameters of the case.
        model: The model in its precision on its device.
        structures: The structures.
        head: Index of the head; None for the gate's weighted sum.
        log: The log of the case.
        folder: The folder of the case.
    """

    def __init__(
        self,
        config: DynamicsParameters,
        model: FoundationModel,
        structures: Sequence[Structure],
        *,
        head: int | None,
        log: CaseLog,
        folder: Path,
    ) -> None:
        self.config, self.model, self.structures, self.log, self.folder = config, model, structures, log, folder
        self.batch = StructureBatch(model, head, deforms_cells=config.motion == "relaxation")
        self.batch_run: BatchRun[Result] = BatchRun(
            self.batch,
            build_motion(config),
            structures,
            max_edges=config.edges_per_batch,
            max_structures=config.batch_size,
        )
        self.identity = compute_identity(config, model, structures)
        self.logged: list[dict[str, Any]] = []  # events that the saved state has to include
        self.final: dict[int, Structure] = {}
        self.batch_steps = self.ase_rounds = 0
        self._saved_at = time.monotonic()
        self._restore()

    def _restore(self) -> None:
        saved = saved_state.load(self.folder, self.identity)
        if saved is None:
            return
        self.batch_run.restore(saved["run"])
        self.batch_steps, self.ase_rounds = saved["batch_steps"], saved["ase_rounds"]
        for index, (positions, cell) in saved["final"].items():
            self.final[index] = replace(self.structures[index], positions=positions.numpy(), cell=cell.numpy())
        for event in saved["logged"]:
            self.logged.append(event)
            self.log.write_plain(event)

    def _save(self) -> None:
        final = {k: (torch.tensor(s.positions), torch.tensor(s.cell)) for k, s in self.final.items()}
        saved_state.save(
            self.folder,
            {
                "identity": self.identity,
                "run": self.batch_run.save(),
                "batch_steps": self.batch_steps,
                "ase_rounds": self.ase_rounds,
                "final": final,
                "logged": self.logged,
            },
        )
        self._saved_at = time.monotonic()

    def log_facts(self, source: str) -> None:
        """Log the model, the structures and the runtime."""
        config = self.model.config
        self.log.record_facts(
            DynamicsFacts(
                model=DynamicsModel(
                    checkpoint=self.config.checkpoint, hidden_dim=config.hidden_dim, backbone=config.network,
                    parameters=sum(p.numel() for p in self.model.parameters()),
                    message_backend="fused" if self.batch.fused else "unfused",
                ),
                workload=DynamicsWorkload(
                    source=source, structures=len(self.structures), atoms=sum(map(len, self.structures)),
                    earlier_batch_steps=self.batch_steps, file=FINAL_FILE,
                ),
                runtime=timing.observe(Observed, self.model, self.config.device, precision=self.config.precision),
            )
        )  # fmt: skip

    def run(self) -> None:
        """Move all structures and save the state at intervals; ASE's rounds are spread over the run."""
        config = self.config
        baseline = AseBaseline(config, self.model, self.structures) if config.ase_rounds else None
        is_warmup = True
        while not self.batch_run.is_finished:
            self._log(self._time_steps(is_warmup))
            is_warmup = False
            self.log.write(Progress(done=len(self.logged_results), total=len(self.structures), activity="structures"))
            if baseline is not None and self.ase_rounds < config.ase_rounds * self._estimate_progress():
                self._compare(baseline)
            self._save_at_intervals()
        while baseline is not None and self.ase_rounds < config.ase_rounds:
            self.log.write(Progress(done=self.ase_rounds, total=config.ase_rounds, activity="comparisons with ASE"))
            self._compare(baseline)
            self._save_at_intervals()
        self._save()
        write_structures(self.folder / FINAL_FILE, self.final)

    def _save_at_intervals(self) -> None:
        if time.monotonic() - self._saved_at > self.config.state_interval_s:
            self._save()

    @property
    def logged_results(self) -> list[dict[str, Any]]:
        """The events about structures that have left the batch."""
        return [event for event in self.logged if event["event"] in ("trajectory", "relaxation", "unfinished")]

    def _estimate_progress(self) -> float:
        """Return the share of all steps of dynamics that is done; 0 in relaxations, which ASE repeats at the end."""
        if self.config.motion == "relaxation":
            return 0.0
        moving = float(self.batch.state.steps.sum()) / self.config.steps
        return (len(self.logged_results) + moving) / len(self.structures)

    def _compare(self, baseline: AseBaseline) -> None:
        indices = self._list_comparable()
        number = self.ase_rounds
        self.ase_rounds += 1
        if self.config.motion == "relaxation":
            if number >= len(indices):
                return
            # structures far apart in the list, so that they differ
            index = indices[number * len(indices) // min(self.config.ase_rounds, len(indices))]
            sample = baseline.measure(number, index, self._find_converged_end(index))
        else:
            sample = baseline.measure(number, indices[number % min(self.config.ase_structures, len(indices))])
        if sample is not None:
            self._log(sample)

    def _find_converged_end(self, index: int) -> Structure | None:
        """Return a structure and its energy at the end of its relaxation, or None if it has not converged."""
        (event,) = (e for e in self.logged if e["event"] == "relaxation" and e["index"] == index)
        return replace(self.final[index], energy=event["energy_ev"]) if event["converged"] else None

    def _list_comparable(self) -> list[int]:
        """Return the structures that ASE may move: in relaxations, those that have moved, and converged if any has."""
        if self.config.motion != "relaxation":
            return list(range(len(self.structures)))
        moved = [event for event in self.logged if event["event"] == "relaxation" and event["steps"]]
        converged = [event for event in moved if event["converged"]]
        return sorted(event["index"] for event in converged or moved)

    def _time_steps(self, is_warmup: bool) -> DynamicsSample:
        """Make some steps of the batch, log the results of the structures that finish, and return the times.

        A step in which no structure could be evaluated does not count.
        """
        before, steps, edges = replace(self.batch.times), 0, 0
        results: list[tuple[int, Result | str]] = []
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        while steps < self.config.steps_per_sample and not self.batch_run.is_finished:
            evaluated = self.batch.times.structure_steps
            results.extend(self.batch_run.step())
            steps += self.batch.times.structure_steps > evaluated
            edges = max(edges, self.batch.n_listed_pairs)
        wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
        self.batch_steps += steps
        for index, result in results:
            self._log_result(index, result)
        after = self.batch.times
        return DynamicsSample(
            batch_steps=steps, structure_steps=after.structure_steps - before.structure_steps,
            atom_steps=after.atom_steps - before.atom_steps, edges=edges, rebuilt_lists=after.built - before.built,
            wall_s=wall_s, cpu_s=cpu_s, lists_s=after.lists_s - before.lists_s, model_s=after.model_s - before.model_s,
            is_warmup=is_warmup, load_1min=os.getloadavg()[0],
        )  # fmt: skip

    def _log_result(self, index: int, result: Result | str) -> None:
        name = self.structures[index].name
        if isinstance(result, str):
            self._log(UnfinishedStructure(index=index, structure=name, reason=result))
            return
        self.final[index] = result.structure
        atoms = len(result.structure)
        if isinstance(result, Trajectory):
            self._log(
                StructureTrajectory(
                    index=index, structure=name, atoms=atoms, steps=list(result.steps),
                    potential_ev=list(result.potential_ev), kinetic_ev=list(result.kinetic_ev),
                )
            )  # fmt: skip
            return
        self._log(
            StructureRelaxation(
                index=index, structure=name, atoms=atoms, converged=result.converged, steps=result.steps,
                initial_energy_ev=result.initial_energy_ev, energy_ev=result.energy_ev,
                force_max_ev_per_angstrom=float(np.linalg.norm(result.forces, axis=1).max()),
                spacegroup=find_spacegroup(result.structure),
            )
        )  # fmt: skip

    def _log(self, event: EventRecord) -> None:
        plain = msgspec.to_builtins(event)
        self.logged.append(plain)
        self.log.write_plain(plain)


def compute_identity(config: DynamicsParameters, model: FoundationModel, structures: Sequence[Structure]) -> str:
    """Return a digest of all parameters, the weights and the structures."""
    digest = hashlib.sha256(config.model_dump_json().encode())
    for tensor in model.state_dict().values():
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    for structure in structures:
        digest.update(repr((len(structure), structure.charge, structure.multiplicity, structure.periodic)).encode())
        for array in (structure.numbers, structure.positions, structure.cell):
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def write_structures(path: Path, structures: dict[int, Structure]) -> None:
    """Write structures in the order of their indices as extended XYZ, atomically."""
    frames = [
        Atoms(s.numbers, s.positions, cell=s.cell, pbc=s.periodic, info={"index": index, "structure": s.name})
        for index, s in sorted(structures.items())
    ]
    part = path.with_name(f"{path.name}.part")
    if frames:
        ase.io.write(part, frames, format="extxyz")
    else:
        part.touch()
    os.replace(part, path)
