"""Run HydraGNN's training program, and record what its tracer, its loader and its epochs report.

    python hydragnn_training.py CHECKOUT RECORDS PROGRAM ARGUMENTS...

The file runs in the environment of HydraGNN, and imports nothing of the harness. It runs PROGRAM as it is; functions of
HydraGNN that the program calls are wrapped, so that each call is also written to RECORDS, one JSON object per line.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import json
import os
import platform
import runpy
import sys
import time
from collections.abc import Callable
from typing import IO, Any

LOOP = "hydragnn.train.train_validate_test"
STORES = "hydragnn.utils.datasets.adiosdataset"
TRACER = "hydragnn.utils.profiling_and_tracing.tracer"
PACKAGES = ("torch", "torch_geometric", "torch_scatter", "e3nn", "numpy", "mpi4py", "adios2")
# The functions of an epoch, which return the loss and the errors of the tasks.
SPLITS = {"train": "train", "validate": "validation", "test": "test"}
TRAIN_REGION = "train"


class Recorder:
    """The records of this process.

    Attributes:
        file: Where they are written.
        begun: The times at which the regions that are open have begun.
    """

    def __init__(self, file: IO[str]) -> None:
        self.file = file
        self.begun: dict[str, float] = {}

    def write(self, kind: str, **values: Any) -> None:
        """Write a record."""
        self.file.write(json.dumps({"kind": kind, **values}) + "\n")
        self.file.flush()

    def watch_tracer(self, tracer: Any) -> None:
        """Record the regions of HydraGNN's tracer, with the time at which each ends."""
        start, stop = tracer.start, tracer.stop

        @functools.wraps(start)
        def begin(name: str, *arguments: Any, **options: Any) -> Any:
            result = start(name, *arguments, **options)
            self.begun[name] = time.perf_counter()
            return result

        @functools.wraps(stop)
        def end(name: str, *arguments: Any, **options: Any) -> Any:
            result = stop(name, *arguments, **options)
            now = time.perf_counter()
            self.write("region", name=name, duration_s=now - self.begun.pop(name, now), end_s=now)
            return result

        tracer.start, tracer.stop = begin, end

    def watch_epochs(self, loop: Any) -> None:
        """Record the losses of each epoch, and the sizes of training batches."""
        for name, split in SPLITS.items():
            setattr(loop, name, self._watch_losses(getattr(loop, name), split))
        move = loop.move_batch_to_device

        @functools.wraps(move)
        def record_batch(data: Any, *arguments: Any, **options: Any) -> Any:
            if TRAIN_REGION in self.begun and hasattr(data, "num_graphs"):
                self.write("batch", structures=data.num_graphs, atoms=data.num_nodes, edges=data.num_edges)
            return move(data, *arguments, **options)

        loop.move_batch_to_device = record_batch

    def _watch_losses(self, function: Callable[..., Any], split: str) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*arguments: Any, **options: Any) -> Any:
            result = function(*arguments, **options)
            self.write("losses", split=split, loss=float(result[0]), errors=[float(error) for error in result[1]])
            return result

        return call

    def watch_model(self, models: Any) -> None:
        """Record the size and the type of the model, and where it is trained."""
        create = models.create_model_config

        @functools.wraps(create)
        def record_model(*arguments: Any, **options: Any) -> Any:
            import torch

            model = create(*arguments, **options)
            weights = list(model.parameters())
            on_gpu = weights[0].device.type == "cuda"
            self.write(
                "model",
                parameters=sum(p.numel() for p in weights),
                dtype=str(weights[0].dtype),
                device=weights[0].device.type,
                device_name=torch.cuda.get_device_name(weights[0].device) if on_gpu else None,
                threads=torch.get_num_threads(),
            )
            return model

        models.create_model_config = record_model


def main(arguments: list[str]) -> None:
    """Run the program with its arguments."""
    checkout, records, program, *options = arguments
    del sys.path[0]  # the folder of this file
    sys.path[:0] = [checkout, os.path.dirname(program)]
    with open(records, "w", encoding="utf-8") as file:
        recorder = Recorder(file)
        loop, tracer = importlib.import_module(LOOP), importlib.import_module(TRACER)
        importlib.import_module("hydragnn.utils.input_config_parsing")  # which the program uses without importing it
        recorder.write(
            "environment",
            python=platform.python_version(),
            packages={name: version for name in PACKAGES if (version := find_version(name))},
            host=platform.node(),
            node=os.environ.get("SLURMD_NODENAME", platform.node()),
            cores=len(os.sched_getaffinity(0)),
        )
        let_ranks_read(importlib.import_module(STORES))
        recorder.watch_tracer(tracer)
        recorder.watch_epochs(loop)
        recorder.watch_model(importlib.import_module("hydragnn.models"))
        sys.argv = [program, *options]
        runpy.run_path(program, run_name="__main__")
        recorder.write("end")


def let_ranks_read(stores: Any) -> None:
    """Let each rank open a store by itself where ADIOS2 was built without MPI; HydraGNN would open it together."""
    import adios2

    if not adios2.is_built_with_mpi:
        open_together = stores.adios2_open
        stores.adios2_open = lambda path, mode, *_: open_together(path, mode)


def find_version(package: str) -> str | None:
    """Return the version of an installed package, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    main(sys.argv[1:])
