"""Label new structures with a calculator that runs in its own process on each rank (suites/labels.yaml).

A rank appends every finished structure to labels-<rank>.jsonl at once; a later attempt continues after them. At the
end, rank 0 writes labels.extxyz, which `harness data convert` and training read.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.data import chemical_symbols

from harness.protocol.errors import did_you_mean
from harness.protocol.events import CaseLog, JsonLinesLog, read
from harness.protocol.programs.labels import (
    LabelCalculator,
    LabelsFacts,
    LabelsParameters,
    LabelsWorkload,
    StructureLabel,
    UnlabelledStructure,
)
from harness.protocol.programs.models import ModelDefinition
from harness.protocol.records import Progress
from harness.reference.data.structure import Structure
from harness.reference.distributed import launch
from harness.reference.errors import InputError
from harness.reference.inference.calculator import ReferenceCalculator
from harness.reference.models.coverage import OutsideTraining
from harness.reference.potentials.process import PotentialError, PotentialProcess, build_spec
from harness.reference.programs.labels_source import Source, load_source
from harness.reference.programs.models.loading import describe_class

LABELS_FILE = "labels.extxyz"
LOAD_TIMEOUT_S = 600.0  # for the calculator
POLL_S = 0.5  # between looks at the records of the other ranks
MAX_READING_SHARE = 0.05  # of the time until the other ranks have finished

Record = dict[str, Any]


def run(config: LabelsParameters, log: CaseLog, folder: Path) -> None:
    """Label the structures that no earlier attempt has finished, and collect all labels on rank 0."""
    rank_info = launch.detect_rank(os.environ)
    definition = find_definition(config)
    source = load_source(config)
    earlier = read_records(folder, source)
    # small structures come first, so that the ranks get similar work; the share of a rank does not depend
    # on what is finished, since another rank may already have begun
    order = sorted(range(len(source.structures)), key=lambda k: len(source.structures[k]))
    share = [k for k in launch.shard(order, rank_info.rank, rank_info.size) if k not in earlier]
    with closing(Labeller(config, definition, folder / f"calculator-{rank_info.rank}.log")) as labeller:
        if rank_info.rank == 0:
            log_facts(config, labeller, source, log=log, finished=len(earlier), ranks=rank_info.size)
        writer = JsonLinesLog(folder / f"labels-{rank_info.rank}.jsonl")
        for done, index in enumerate(share):
            log.write(Progress(done=done, total=len(share), activity="structures of the first rank"))
            structure = source.structures[index]
            writer.write("label", index=index, digest=compute_digest(structure), **labeller.label(structure))
            writer.sync()
    if rank_info.rank == 0:
        records = wait_for_records(folder, source)
        write_labels(folder / LABELS_FILE, source, records, labeller)
        log_labels(config, source, records, log)
        log.record_facts(LabelsFacts(file=LABELS_FILE))


def find_definition(config: LabelsParameters) -> ModelDefinition:
    """Return the definition of the calculator; raise InputError if the case has none."""
    if config.calculator not in config.definitions:
        raise InputError(
            f"calculator {config.calculator!r}: no definition with this name in models/*.yaml or in the package"
            f"{did_you_mean(config.calculator, config.definitions)}"
        )
    return config.definitions[config.calculator]


def compute_digest(structure: Structure) -> str:
    """Return a digest of everything that the calculator receives."""
    content = (structure.numbers.tolist(), structure.positions.tolist(), structure.cell.tolist(), structure.periodic)
    text = json.dumps([*content, structure.charge, structure.multiplicity])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Labeller:
    """A calculator in its own process, which is started again if a calculation has made it exit or hang.

    Args:
        config: The parameters of the case.
        definition: The definition of the calculator.
        log: The file for the output of the process.

    Attributes:
        description: The description of the calculator, from its process.

    Raises:
        InputError: The calculator cannot be loaded; the message names the file and the line of its definition.
    """

    def __init__(self, config: LabelsParameters, definition: ModelDefinition, log: Path) -> None:
        self.config, self.definition, self._log = config, definition, log
        self._process = self._start()
        self.description = self._process.description

    def _start(self) -> PotentialProcess:
        try:
            process = PotentialProcess(
                build_spec(self.definition, "published", "cpu"),
                python=self.definition.python,
                threads=self.config.threads,
                timeout_s=LOAD_TIMEOUT_S,
                log=self._log,
            )
        except PotentialError as error:
            where = f"{self.definition.place}: " if self.definition.place else ""
            raise InputError(f"{where}{self.config.calculator}: {error}") from None
        process.timeout_s = self.config.time_limit_s
        return process

    def label(self, structure: Structure) -> Record:
        """Return the fields of a label, in eV, eV/angstrom and eV/angstrom^3, or the `reason` of a failure."""
        if len(structure) > self.config.max_atoms:
            return {"reason": f"more than {self.config.max_atoms} atoms", "calculation_s": 0.0}
        started = time.monotonic()
        try:
            (answer,) = self._process.try_predict([structure], with_stress=True)
        except PotentialError as error:
            seconds = time.monotonic() - started
            self._process.close()
            self._process = self._start()
            return {"reason": str(error), "calculation_s": seconds}
        seconds = time.monotonic() - started
        if isinstance(answer, str):
            return {"reason": answer, "calculation_s": seconds}
        stress = None if answer.stress is None else answer.stress.tolist()
        return {
            "energy_ev": answer.energy, "forces": answer.forces.tolist(), "stress": stress, "calculation_s": seconds
        }  # fmt: skip

    def close(self) -> None:
        """End the process in which the calculator runs."""
        self._process.close()


def read_records(folder: Path, source: Source) -> dict[int, Record]:
    """Return the records of all ranks by index; records whose digest does not match the structure are left out."""
    records = {}
    for path in sorted(folder.glob("labels-*.jsonl")):
        for record in read(path):
            index = record.get("index", -1)
            if 0 <= index < len(source.structures) and record["digest"] == compute_digest(source.structures[index]):
                records[index] = record
    return records


def wait_for_records(folder: Path, source: Source) -> dict[int, Record]:
    """Return the records of all structures; a launcher ends this rank if another one fails."""
    while True:
        started = time.monotonic()
        records = read_records(folder, source)
        if len(records) == len(source.structures):
            return dict(sorted(records.items()))
        time.sleep(max(POLL_S, (time.monotonic() - started) / MAX_READING_SHARE))


def log_facts(
    config: LabelsParameters, labeller: Labeller, source: Source, *, log: CaseLog, finished: int, ranks: int
) -> None:
    """Log the calculator and the structures."""
    definition, description = labeller.definition, labeller.description
    log.record_facts(
        LabelsFacts(
            calculator=LabelCalculator(
                name=config.calculator, class_name=describe_class(definition), level_of_theory=get_level(definition),
                properties=description["properties"], packages=description["packages"], python=description["python"],
            ),
            workload=LabelsWorkload(
                source=source.name, sha256=source.sha256, structures=len(source.structures), finished_earlier=finished,
                ranks=ranks, threads=config.threads, checkpoint=config.checkpoint, head=config.head,
            ),
        )
    )  # fmt: skip


def get_level(definition: ModelDefinition) -> str:
    """Return the level of theory of a definition, by default its class."""
    return definition.level_of_theory or describe_class(definition)


def write_labels(path: Path, source: Source, records: dict[int, Record], labeller: Labeller) -> None:
    """Write the labelled structures as extended XYZ, with level of theory, source and versions, atomically."""
    versions = ", ".join(f"{name} {version}" for name, version in labeller.description["packages"].items())
    frames = []
    for index, record in records.items():
        if "reason" in record:
            continue
        structure = source.structures[index]
        atoms = Atoms(structure.numbers, structure.positions, cell=structure.cell, pbc=structure.periodic)
        atoms.info |= {
            "structure": structure.name, "source": source.name, "level_of_theory": get_level(labeller.definition),
            "calculator": versions, "charge": structure.charge, "calculation_s": record["calculation_s"],
        }  # fmt: skip
        if structure.multiplicity:
            atoms.info["multiplicity"] = structure.multiplicity
        labels = {"energy": record["energy_ev"], "forces": np.array(record["forces"])}
        if record["stress"] is not None:
            labels["stress"] = np.array(record["stress"])
        atoms.calc = SinglePointCalculator(atoms, **labels)
        frames.append(atoms)
    part = path.with_name(f"{path.name}.part")
    if frames:
        ase.io.write(part, frames, format="extxyz")
    else:
        part.touch()
    os.replace(part, path)


def log_labels(config: LabelsParameters, source: Source, records: dict[int, Record], log: CaseLog) -> None:
    """Log every label with the prediction of the model, and every failure."""
    predict = build_predictor(config)
    for index, record in records.items():
        structure = source.structures[index]
        counts = Counter(chemical_symbols[z] for z in structure.numbers.tolist())
        elements, seconds = dict(sorted(counts.items())), record["calculation_s"]
        if "reason" in record:
            log.write(
                UnlabelledStructure(
                    index=index, structure=structure.name, elements=elements, reason=record["reason"],
                    calculation_s=seconds,
                )
            )  # fmt: skip
            continue
        forces = np.array(record["forces"])
        log.write(
            StructureLabel(
                index=index, structure=structure.name, elements=elements, energy_ev=record["energy_ev"],
                force_mean_ev_per_angstrom=float(np.abs(forces).mean()),
                force_max_ev_per_angstrom=float(np.abs(forces).max()), calculation_s=seconds,
                **predict(structure, forces),
            )
        )  # fmt: skip


def build_predictor(config: LabelsParameters) -> Callable[[Structure, Any], Record]:
    """Return a function from a structure and its forces to the fields about the model's prediction."""
    if config.checkpoint is None:
        return lambda structure, forces: {}
    calculator = ReferenceCalculator(config.checkpoint, head=config.head, precision="fp64")

    def predict(structure: Structure, forces: Any) -> Record:
        atoms = Atoms(structure.numbers, structure.positions, cell=structure.cell, pbc=structure.periodic)
        atoms.info |= {"charge": structure.charge, "multiplicity": structure.multiplicity}
        atoms.calc = calculator
        try:
            energy, predicted = atoms.get_potential_energy(), atoms.get_forces()
        except (OutsideTraining, InputError) as error:
            return {"unpredicted_reason": str(error)}
        if not (np.isfinite(energy) and np.isfinite(predicted).all()):
            return {"unpredicted_reason": "energy or forces not finite"}
        return {
            "predicted_energy_ev": float(energy),
            "force_error_ev_per_angstrom": float(np.abs(predicted - forces).mean()),
        }

    return predict
