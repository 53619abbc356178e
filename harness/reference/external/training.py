"""A training run by HydraGNN's own program: export of a store to its format, the run, and the records of all ranks."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from harness.protocol.programs.data_parallel import DataParallelParameters
from harness.protocol.programs.model import HYDRAGNN_FOLDER_SETTING, HYDRAGNN_PYTHON_SETTING
from harness.protocol.programs.train import TrainParameters
from harness.protocol.records import RankPlace
from harness.reference.data.neighbours import NeighbourSpec
from harness.reference.datasets.collection import Dataset, find_stores, open_dataset
from harness.reference.datasets.hydragnn.export import (
    CUTOFF_ANGSTROM,
    MAX_NEIGHBOURS,
    format_store_name,
    write_for_hydragnn,
)
from harness.reference.datasets.hydragnn.stores import find_named_source
from harness.reference.datasets.splits import SPLITS
from harness.reference.distributed.launch import LostRank, RankInfo
from harness.reference.errors import InputError
from harness.reference.external.architecture import TEMPLATE, build_model_config, fill_template
from harness.reference.external.checkout import ADAPTER_FOLDER, PROGRAM_FOLDER, Checkout, find_checkout
from harness.reference.models.config import ModelConfig
from harness.reference.potentials.process import describe_end

# HydraGNN's training program, which the adapter runs.
PROGRAM = PROGRAM_FOLDER / "gfm_mlip_all_mpnn.py"
ADAPTER = ADAPTER_FOLDER / "hydragnn_training.py"
REQUIRED_FILES = (PROGRAM, TEMPLATE)
RUN_NAME = "case"
# Rank 0 creates this file when it has exported the data.
READY_FILE = "ready"
# The last line of a rank's records.
END_LINE = '{"kind": "end"}'
POLL_INTERVAL_S = 0.5
Record = dict[str, Any]


@dataclass(frozen=True)
class TrainingRun:
    """The options of a training run.

    Attributes:
        checkout: The checkout of HydraGNN.
        folder: The folder of the run, inside the folder of the case.
        model_config: The sizes and options of the model.
        batch_size: The number of structures per rank and step.
        epochs: The number of epochs.
        precision: fp64, fp32 or bf16.
        learning_rate: The learning rate of AdamW.
        force_weight: The weight of forces in the loss.
        stops_early: Whether the run ends when the validation loss no longer improves.
        device: cpu, or an accelerator; HydraGNN uses an accelerator whenever it sees one.
        environment: Environment variables of the program.
        timeout_s: The time that a rank waits for the files of another rank.
    """

    checkout: Checkout
    folder: Path
    model_config: ModelConfig
    batch_size: int
    epochs: int
    precision: str
    learning_rate: float
    force_weight: float
    stops_early: bool
    device: str
    environment: Mapping[str, str]
    timeout_s: float

    @classmethod
    def from_parameters(
        cls,
        parameters: TrainParameters | DataParallelParameters,
        case_folder: Path,
        *,
        stops_early: bool = False,
        environment: Mapping[str, str] | None = None,
    ) -> Self:
        """Return the run of a case on one dataset.

        Args:
            parameters: The parameters of the case.
            case_folder: The folder of the case, whose settings name the checkout.
            stops_early: Whether the run ends when the validation loss no longer improves.
            environment: Environment variables of the program, in addition to the backend.

        Raises:
            InputError: The checkout or one of its files is missing.
        """
        return cls(
            checkout=find_checkout(case_folder, REQUIRED_FILES),
            folder=case_folder / "hydragnn",
            model_config=build_model_config(parameters.model, heads=1, max_neighbours=MAX_NEIGHBOURS),
            batch_size=parameters.batch_size,
            epochs=parameters.epochs,
            precision=parameters.precision,
            learning_rate=parameters.learning_rate,
            force_weight=parameters.force_weight,
            stops_early=stops_early,
            device=parameters.device,
            environment={"HYDRAGNN_BACKEND": parameters.backend, **(environment or {})},
            timeout_s=parameters.timeout_s,
        )

    @property
    def log_folder(self) -> Path:
        """The folder to which HydraGNN writes its log, its configuration and its weights."""
        return self.folder / "logs" / RUN_NAME

    def export(self, stores: Path, rank_info: RankInfo) -> dict[str, Dataset]:
        """Export a store to HydraGNN's format on rank 0, wait for it on the other ranks, and return its splits by name.

        The returned splits have total energies, and the reference energies that the export has fitted to all splits.

        Args:
            stores: A folder with a single store.
            rank_info: The rank of this process.

        Raises:
            InputError: The folder has no store, or several.
            LostRank: Rank 0 did not finish the export in time.
        """
        paths = find_stores(stores.expanduser())
        if len(paths) > 1:
            names = ", ".join(path.stem for path in paths)
            raise InputError(f"store_folder: without DDStore, HydraGNN trains on one dataset, but {stores} has {names}")
        target = self.folder / format_store_name(find_named_source(paths[0].stem).head)
        ready = self.folder / READY_FILE
        if rank_info.rank == 0:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            write_for_hydragnn(paths[0], target, lambda *_: None)
            (self.folder / "input.json").write_text(json.dumps(self.build_input(), indent=2), encoding="utf-8")
            ready.touch()
        else:
            self.wait_for(ready.exists, "rank 0 has not exported the data")
        spec = NeighbourSpec(CUTOFF_ANGSTROM, MAX_NEIGHBOURS)
        references = open_dataset(target, spec, "on_demand").references
        splits = {split: open_dataset(paths[0], spec, "preload", split=split) for split in SPLITS}
        return {split: replace(dataset, references=references) for split, dataset in splits.items()}

    def build_input(self) -> dict[str, Any]:
        """Return the content of HydraGNN's input file."""
        content = json.loads((self.checkout.folder / TEMPLATE).read_text(encoding="utf-8"))
        config = fill_template(content, self.model_config)
        config["NeuralNetwork"]["Architecture"]["force_weight"] = self.force_weight
        training = config["NeuralNetwork"]["Training"]
        training |= {"EarlyStopping": self.stops_early, "batch_size": self.batch_size, "num_epoch": self.epochs}
        training["Optimizer"] = {"type": "AdamW", "learning_rate": self.learning_rate}
        return dict(config)

    def run(self, rank_info: RankInfo, log: Path) -> list[list[Record]]:
        """Run HydraGNN's program on this rank, and return its records.

        Args:
            rank_info: The rank of this process.
            log: The file to which the program writes its output.

        Returns:
            One list of records per rank on rank 0; on other ranks, only the list of this rank.

        Raises:
            InputError: The program failed.
            LostRank: Another rank did not end in time.
        """
        (store,) = self.folder.glob("*-v2.bp")
        command = [
            self.checkout.python or sys.executable, "-u", str(ADAPTER), str(self.checkout.folder),
            str(self.get_record_path(rank_info.rank)), str(self.checkout.folder / PROGRAM),
            "--inputfile", str(self.folder.absolute() / "input.json"), "--datadir", str(self.folder.absolute()),
            "--multi_model_list", store.name.removesuffix("-v2.bp"), "--log", RUN_NAME, "--multi",
            "--precision", self.precision, "--num_headlayers", str(self.model_config.num_headlayers),
            "--dim_headlayers", str(self.model_config.dim_headlayers),
        ]  # fmt: skip
        hidden_devices = {"CUDA_VISIBLE_DEVICES": ""} if self.device == "cpu" else {}
        environment = {**os.environ, **self.environment, **hidden_devices}
        if self.checkout.python is not None:
            environment.pop("PYTHONPATH", None)
        with open(log, "ab") as output:
            try:
                # the program inherits the file descriptors by which an MPI launcher reaches its ranks
                code = subprocess.run(
                    command, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment,
                    close_fds=False, check=False,
                ).returncode  # fmt: skip
            except OSError as error:
                raise InputError(f"setting {HYDRAGNN_PYTHON_SETTING}: {command[0]}: {error.strerror}") from None
        if code != 0:
            end = describe_end(code, log)
            raise InputError(f"implementation hydragnn: its training {end} ({self.checkout.describe_settings()})")
        ranks = range(rank_info.size) if rank_info.rank == 0 else [rank_info.rank]
        return [self.read_records(rank) for rank in ranks]

    def get_record_path(self, rank: int) -> Path:
        """Return the path of a rank's records."""
        return self.folder.absolute() / f"records.p{rank}.jsonl"

    def read_records(self, rank: int) -> list[Record]:
        """Wait until a rank has ended, and return its records; raise LostRank after `timeout_s`."""
        path = self.get_record_path(rank)
        self.wait_for(
            lambda: path.exists() and END_LINE in path.read_text(encoding="utf-8"),
            f"rank {rank} has not ended its training",
        )
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

    def wait_for(self, condition: Callable[[], bool], problem: str) -> None:
        """Wait until a condition holds; after `timeout_s`, raise LostRank with the problem in its message."""
        started = time.monotonic()
        while not condition():
            if time.monotonic() - started > self.timeout_s:
                raise LostRank(f"{problem} after {self.timeout_s:g} s")
            time.sleep(POLL_INTERVAL_S)


def find_first_record(records: Sequence[Record], kind: str) -> Record:
    """Return the first record of a kind; raise InputError if the list has none."""
    record = next((r for r in records if r["kind"] == kind), None)
    if record is None:
        raise InputError(
            f"setting {HYDRAGNN_FOLDER_SETTING}: the training of this version of HydraGNN reported no {kind}"
        )
    return record


def describe_runtime(records: Sequence[Sequence[Record]], precision: str, backend: str) -> Record:
    """Return the fields of the fact `Observed` from the records of each rank; rank 0 reports model and environment."""
    model, environment = (find_first_record(records[0], kind) for kind in ("model", "environment"))
    return {
        "precision": precision,
        "parameters": [model["dtype"]],
        **{name: model[name] for name in ("device", "device_name", "threads")},
        "torch": environment["packages"].get("torch"),
        "world_size": len(records),
        "backend": backend,
    }


def list_rank_places(records: Sequence[Sequence[Record]]) -> list[RankPlace]:
    """Return the node and the number of cores of each rank from the records of the ranks."""
    environments = [find_first_record(rank_records, "environment") for rank_records in records]
    return [
        RankPlace(rank=rank, **{name: environment[name] for name in ("host", "node", "cores")})
        for rank, environment in enumerate(environments)
    ]


@dataclass(frozen=True)
class Step:
    """A training step of one rank.

    Attributes:
        duration_s: The time from the loading of the batch to the end of the optimizer's update.
        regions: The seconds of each region of HydraGNN's tracer, by name.
        structures, atoms, edges: The size of the batch.
    """

    duration_s: float
    regions: Mapping[str, float]
    structures: int
    atoms: int
    edges: int


@dataclass(frozen=True)
class Epoch:
    """A training epoch of one rank.

    Attributes:
        train_s: The time of the region `train`.
        steps: The training steps.
        losses: The record with the loss and the errors of each split, by split.
    """

    train_s: float
    steps: list[Step]
    losses: dict[str, Record]


def group_by_epoch(records: Sequence[Record]) -> list[Epoch]:
    """Return the epochs of a rank, in order.

    A step lasts from the start of the region `dataload` to the end of the region `opt_step`.
    """
    epochs: list[Epoch] = []
    steps: list[Step] = []
    regions: dict[str, Record] = {}
    batch: Record = {}
    losses: dict[str, Record] = {}
    for record in records:
        if record["kind"] == "batch":
            batch = record
        elif record["kind"] == "losses" and record["split"] == "train":
            losses = {"train": record}
        elif record["kind"] == "losses":
            epochs[-1].losses[record["split"]] = record
        elif record["kind"] == "region" and record["name"] == "train":
            epochs.append(Epoch(record["duration_s"], steps, losses))
            steps = []
        elif record["kind"] == "region":
            regions[record["name"]] = record
            if record["name"] == "opt_step":
                load = regions["dataload"]
                steps.append(
                    Step(
                        record["end_s"] - (load["end_s"] - load["duration_s"]),
                        {name: region["duration_s"] for name, region in regions.items()},
                        *(batch[name] for name in ("structures", "atoms", "edges")),
                    )
                )
                regions = {}
    return epochs
