"""A training run of a checkout of HydraGNN: its program on a store in its format, and the records of all ranks."""

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
from typing import Any

from harness.protocol.records import RankPlace
from harness.protocol.text import sanitize_line
from harness.reference.datasets.collection import Dataset, NeighbourSpec, find_stores, open_dataset
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
from harness.reference.external.architecture import TEMPLATE, build_config
from harness.reference.external.checkout import ADAPTERS, PROGRAMS, Checkout
from harness.reference.models.config import ModelConfig

PROGRAM = PROGRAMS / "gfm_mlip_all_mpnn.py"
DRIVER = ADAPTERS / "hydragnn_training.py"
NEEDED = (PROGRAM, TEMPLATE)
RUN_NAME = "case"
READY = "ready"
END = '{"kind": "end"}'
POLL_S = 0.5
Record = dict[str, Any]


@dataclass(frozen=True)
class TrainingRun:
    """What HydraGNN trains, and where.

    Attributes:
        checkout: Its code.
        folder: Folder of the run, inside that of the case.
        sizes: Sizes of the model.
        batch_size: Structures per rank and step.
        epochs: Number of epochs.
        precision: fp64, fp32 or bf16.
        learning_rate: Of AdamW.
        force_weight: Weight of forces in the loss.
        stops_early: Whether it ends when the validation loss no longer improves.
        device: Where it runs; HydraGNN takes an accelerator if it sees one.
        environment: Variables of its processes.
        timeout_s: Time that a rank waits for the others.
    """

    checkout: Checkout
    folder: Path
    sizes: ModelConfig
    batch_size: int
    epochs: int
    precision: str
    learning_rate: float
    force_weight: float
    stops_early: bool
    device: str
    environment: Mapping[str, str]
    timeout_s: float

    @property
    def log_folder(self) -> Path:
        """The folder in which HydraGNN writes its log, its configuration and its weights."""
        return self.folder / "logs" / RUN_NAME

    def export(self, stores: Path, rank_info: RankInfo) -> dict[str, Dataset]:
        """Write the only store of a folder for HydraGNN on rank 0, and return its splits.

        Their energies are total, and their references are those that HydraGNN's data have, of all splits.

        Raises:
            InputError: The folder has no store or several.
        """
        paths = find_stores(stores.expanduser())
        if len(paths) > 1:
            names = ", ".join(path.stem for path in paths)
            raise InputError(f"store_folder: without DDStore, HydraGNN trains on one dataset, and {stores} has {names}")
        target = self.folder / format_store_name(find_named_source(paths[0].stem).head)
        ready = self.folder / READY
        if rank_info.rank == 0:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            write_for_hydragnn(paths[0], target, lambda *_: None)
            (self.folder / "input.json").write_text(json.dumps(self.build_input(), indent=2), encoding="utf-8")
            ready.touch()
        else:
            self.wait_for(ready.exists, "rank 0 has not written the data")
        spec = NeighbourSpec(CUTOFF_ANGSTROM, MAX_NEIGHBOURS)
        references = open_dataset(target, spec, "on_demand").references
        splits = {split: open_dataset(paths[0], spec, "preload", split=split) for split in SPLITS}
        return {split: replace(dataset, references=references) for split, dataset in splits.items()}

    def build_input(self) -> dict[str, Any]:
        """Return the configuration of the run."""
        content = json.loads((self.checkout.folder / TEMPLATE).read_text(encoding="utf-8"))
        config = build_config(content, self.sizes)
        config["NeuralNetwork"]["Architecture"]["force_weight"] = self.force_weight
        training = config["NeuralNetwork"]["Training"]
        training |= {"EarlyStopping": self.stops_early, "batch_size": self.batch_size, "num_epoch": self.epochs}
        training["Optimizer"] = {"type": "AdamW", "learning_rate": self.learning_rate}
        return dict(config)

    def run(self, rank_info: RankInfo, log: Path) -> list[list[Record]]:
        """Run the program on this rank, and return the records of each rank; those of this one but for rank 0.

        Raises:
            InputError: The program failed.
        """
        (store,) = self.folder.glob("*-v2.bp")
        command = [
            self.checkout.python or sys.executable, "-u", str(DRIVER), str(self.checkout.folder),
            str(self.get_records(rank_info.rank)), str(self.checkout.folder / PROGRAM),
            "--inputfile", str(self.folder.absolute() / "input.json"), "--datadir", str(self.folder.absolute()),
            "--multi_model_list", store.name.removesuffix("-v2.bp"), "--log", RUN_NAME, "--multi",
            "--precision", self.precision, "--num_headlayers", str(self.sizes.num_headlayers),
            "--dim_headlayers", str(self.sizes.dim_headlayers),
        ]  # fmt: skip
        hidden = {"CUDA_VISIBLE_DEVICES": ""} if self.device == "cpu" else {}
        environment = {**os.environ, **self.environment, **hidden}
        if self.checkout.python is not None:
            environment.pop("PYTHONPATH", None)
        with open(log, "ab") as output:
            try:
                # a launcher's connection to its ranks is inherited
                code = subprocess.run(
                    command, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment,
                    close_fds=False, check=False,
                ).returncode  # fmt: skip
            except OSError as error:
                raise InputError(f"setting hydragnn_python: {command[0]}: {error.strerror}") from None
        if code != 0:
            raise InputError(
                f"implementation hydragnn: its training {describe_end(code, log)} ({self.checkout.settings})"
            )
        ranks = range(rank_info.size) if rank_info.rank == 0 else [rank_info.rank]
        return [self.read_records(rank) for rank in ranks]

    def get_records(self, rank: int) -> Path:
        """Return the file of the records of a rank."""
        return self.folder.absolute() / f"records.p{rank}.jsonl"

    def read_records(self, rank: int) -> list[Record]:
        """Return the records of a rank, once it has ended."""
        path = self.get_records(rank)
        self.wait_for(
            lambda: path.exists() and END in path.read_text(encoding="utf-8"), f"rank {rank} has not ended its training"
        )
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

    def wait_for(self, condition: Callable[[], bool], problem: str) -> None:
        """Wait until a condition holds; raise LostRank after `timeout_s`."""
        started = time.monotonic()
        while not condition():
            if time.monotonic() - started > self.timeout_s:
                raise LostRank(f"{problem} after {self.timeout_s:g} s")
            time.sleep(POLL_S)


def describe_end(code: int, log: Path) -> str:
    """Return how the program ended, with the last line of its output."""
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return f"ended ({how}){': ' + sanitize_line(lines[-1])[:300] if lines else ''}"


def find_record(records: Sequence[Record], kind: str) -> Record:
    """Return the first record of a kind; raise InputError if there is none."""
    record = next((r for r in records if r["kind"] == kind), None)
    if record is None:
        raise InputError(f"setting hydragnn_folder: the training of this version of HydraGNN reported no {kind}")
    return record


def observe(records: Sequence[Sequence[Record]], precision: str, backend: str) -> Record:
    """Return the fields of `Observed` that HydraGNN's first rank has reported."""
    model, environment = (find_record(records[0], kind) for kind in ("model", "environment"))
    return {
        "precision": precision,
        "parameters": [model["dtype"]],
        **{name: model[name] for name in ("device", "device_name", "threads")},
        "torch": environment["packages"].get("torch"),
        "world_size": len(records),
        "backend": backend,
    }


def list_places(records: Sequence[Sequence[Record]]) -> list[RankPlace]:
    """Return the place of each rank."""
    places = [find_record(some, "environment") for some in records]
    return [
        RankPlace(rank=rank, **{name: place[name] for name in ("host", "node", "cores")})
        for rank, place in enumerate(places)
    ]


@dataclass(frozen=True)
class Step:
    """A training step of one rank: its time, the time of each region, and the size of its batch."""

    duration_s: float
    regions: Mapping[str, float]
    structures: int
    atoms: int
    edges: int


@dataclass(frozen=True)
class Epoch:
    """A training epoch of one rank: its time in the region `train`, its steps, and losses and errors by split."""

    train_s: float
    steps: list[Step]
    losses: dict[str, Record]


def group_by_epoch(records: Sequence[Record]) -> list[Epoch]:
    """Return the epochs of a rank, in order.

    A step is from the start of its region `dataload` to the end of its region `opt_step`.
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
