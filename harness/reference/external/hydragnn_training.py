"""Run HydraGNN's training program, and record the times of its regions, its batches and its losses.

    python hydragnn_training.py CHECKOUT RECORDS PROGRAM ARGUMENTS...

This script runs in the environment of HydraGNN, where the harness cannot be imported. It runs PROGRAM unchanged, but
wraps functions of HydraGNN that the program calls, so that each call writes a line to RECORDS: a JSON object with the
key `kind`.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import platform
import runpy
import sys
import time
from collections.abc import Callable
from importlib.metadata import distributions
from typing import IO, Any

LOOP_MODULE = "hydragnn.train.train_validate_test"
STORES_MODULE = "hydragnn.utils.datasets.adiosdataset"
TRACER_MODULE = "hydragnn.utils.profiling_and_tracing.tracer"
PACKAGES = ("torch", "torch_geometric", "torch_scatter", "e3nn", "numpy", "mpi4py", "adios2")
# The functions that run an epoch, and their splits; each returns the loss and the errors of the tasks.
SPLIT_FUNCTIONS = {"train": "train", "validate": "validation", "test": "test"}
# The region of HydraGNN's tracer that covers the training steps of an epoch.
TRAIN_REGION = "train"


class Recorder:
    """Wrappers of HydraGNN's functions that write records of their calls in this process.

    Attributes:
        file: The file of the records.
        start_times: The start times of the regions that have not ended, by name.
    """

    def __init__(self, file: IO[str]) -> None:
        self.file = file
        self.start_times: dict[str, float] = {}

    def write(self, kind: str, **values: Any) -> None:
        """Write a record of some kind with its values."""
        self.file.write(json.dumps({"kind": kind, **values}) + "\n")
        self.file.flush()

    def wrap_tracer(self, tracer: Any) -> None:
        """Make HydraGNN's tracer record the duration and the end time of each region."""
        start, stop = tracer.start, tracer.stop

        @functools.wraps(start)
        def begin(name: str, *arguments: Any, **options: Any) -> Any:
            result = start(name, *arguments, **options)
            self.start_times[name] = time.perf_counter()
            return result

        @functools.wraps(stop)
        def end(name: str, *arguments: Any, **options: Any) -> Any:
            result = stop(name, *arguments, **options)
            now = time.perf_counter()
            self.write("region", name=name, duration_s=now - self.start_times.pop(name, now), end_s=now)
            return result

        tracer.start, tracer.stop = begin, end

    def wrap_epochs(self, loop: Any) -> None:
        """Make HydraGNN's training loop record the losses of each epoch and the sizes of the training batches."""
        for name, split in SPLIT_FUNCTIONS.items():
            setattr(loop, name, self._wrap_loss_function(getattr(loop, name), split))
        move = loop.move_batch_to_device

        @functools.wraps(move)
        def record_batch(data: Any, *arguments: Any, **options: Any) -> Any:
            if TRAIN_REGION in self.start_times and hasattr(data, "num_graphs"):
                self.write("batch", structures=data.num_graphs, atoms=data.num_nodes, edges=data.num_edges)
            return move(data, *arguments, **options)

        loop.move_batch_to_device = record_batch

    def _wrap_loss_function(self, function: Callable[..., Any], split: str) -> Callable[..., Any]:
        """Return a function that also records the loss and the errors of a split."""

        @functools.wraps(function)
        def record_losses(*arguments: Any, **options: Any) -> Any:
            result = function(*arguments, **options)
            self.write("losses", split=split, loss=float(result[0]), errors=[float(error) for error in result[1]])
            return result

        return record_losses

    def wrap_model(self, models: Any) -> None:
        """Make HydraGNN record the size, the type and the device of the model that it creates."""
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
    """Run a training program and record its calls.

    Args:
        arguments: CHECKOUT, RECORDS, PROGRAM, and the arguments of the program.
    """
    checkout, records, program, *options = arguments
    del sys.path[0]  # the folder of this script
    sys.path[:0] = [checkout, os.path.dirname(program)]
    with open(records, "w", encoding="utf-8") as file:
        recorder = Recorder(file)
        loop, tracer = importlib.import_module(LOOP_MODULE), importlib.import_module(TRACER_MODULE)
        importlib.import_module(
            "hydragnn.utils.input_config_parsing"
        )  # the program uses this module, but does not import it
        recorder.write(
            "environment",
            python=platform.python_version(),
            packages={name: d.version for name in PACKAGES for d in [*distributions(name=name)][:1]},
            host=platform.node(),
            node=os.environ.get("SLURMD_NODENAME", platform.node()),
            cores=len(os.sched_getaffinity(0)),
        )
        open_stores_without_mpi(importlib.import_module(STORES_MODULE))
        recorder.wrap_tracer(tracer)
        recorder.wrap_epochs(loop)
        recorder.wrap_model(importlib.import_module("hydragnn.models"))
        sys.argv = [program, *options]
        runpy.run_path(program, run_name="__main__")
        recorder.write("end")


def open_stores_without_mpi(stores: Any) -> None:
    """Make HydraGNN open stores without a communicator if ADIOS2 was built without MPI."""
    import adios2

    if not adios2.is_built_with_mpi:
        open_store = stores.adios2_open
        stores.adios2_open = lambda path, mode, *_: open_store(path, mode)


if __name__ == "__main__":
    main(sys.argv[1:])
