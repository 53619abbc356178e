"""Measure the files of small runs: `python -m tests.builders.file_use` writes harness/planning/shipped/file_use.json.

Each program runs with several numbers of nodes and ranks on this machine. Nodes are emulated: their ranks have another
name of the node, and a local rank that begins at 0.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.config.resources import find_resource
from harness.config.suite import load_suite
from harness.config.system import load_system
from harness.drills.ports import find_free_ports
from harness.host.files import write_json
from harness.planning.expand import expand_suite
from harness.planning.footprint import FILE
from harness.protocol.programs.model import ModelParameters
from harness.reference.models.config import ModelConfig
from harness.reference.models.foundation import FoundationModel
from harness.reference.programs.screening.merge_results import MAX_NODES
from tests.conftest import ROOT
from tests.support.mpi import environment_without_launcher

SHAPES = ((1, 2), (2, 1), (2, 2))  # nodes and ranks per node
# Programs whose files are shared by several nodes also need a run on more nodes than share a file.
MORE_SHAPES = {"screening": ((MAX_NODES + 1, 1),)}
MODEL = {"hidden_dim": 16, "num_conv_layers": 2, "cutoff": 4.0, "num_sharedlayers": 0, "dim_headlayers": 8}
PROGRAMS: dict[str, dict[str, Any]] = {
    "data_parallel": {
        "precision": "fp64", "model": MODEL, "datasets": ["omat24"], "atoms": [16, 16], "batch_size": 2, "steps": 20,
        "epochs": 2, "timeout_s": 120,
    },
    "train": {
        "precision": "fp64", "model": MODEL, "datasets": ["qm7x", "oc2022"], "batch_size": 4, "epochs": 2,
        "samples_per_epoch": 32, "max_validation_structures": 8, "gate_steps": 5, "compile": False, "timeout_s": 120,
    },
    "screening": {
        "workload": {"kind": "random", "streams": 32, "per_stream": 2}, "checkpoint": "painn-64", "part_size": 2,
        "precision": "fp64", "message_backend": "unfused", "compile": False,
    },
}  # fmt: skip
SYSTEMS, TRAINING_SUITES = ("frontier", "perlmutter", "aurora"), ("scaling", "pretrain")
# Starts a rank on an emulated node, whose name is the first argument.
RANK = (
    "import platform, sys; name = sys.argv.pop(1); platform.node = lambda: name\n"
    "from harness.reference.__main__ import main; sys.exit(main(sys.argv[1:]))"
)


@dataclass(frozen=True)
class Shape:
    """The numbers of nodes and of ranks per node of a run."""

    nodes: int
    ranks_per_node: int

    @property
    def ranks(self) -> int:
        """The number of ranks."""
        return self.nodes * self.ranks_per_node


def measure(program: str, parameters: Mapping[str, Any], shape: Shape, folder: Path) -> dict[str, Any]:
    """Run a program, and return the opens by place of all ranks, the files and bytes of each folder, and the seconds.

    Args:
        program: The program.
        parameters: Its parameters.
        shape: The numbers of nodes and ranks.
        folder: An empty folder.
    """
    case, counts = folder / "case", folder / "counts"
    case.mkdir()
    counts.mkdir()
    (case / "case.json").write_text(
        json.dumps({"id": "1", "program": program, "ranks": shape.ranks, "parameters": dict(parameters)})
    )
    started, port = time.time(), str(find_free_ports())
    processes = [start_rank(case, counts, shape, rank, port) for rank in range(shape.ranks)]
    codes = [process.wait(timeout=600) for process in processes]
    if any(codes):
        raise RuntimeError(f"{program} on {shape}: exit codes {codes}")
    events = [json.loads(line) for line in (case / "events.jsonl").read_text().splitlines()]
    facts = [event["time_s"] for event in events if event["event"] == "fact"]
    opens = Counter[str]()
    for path in counts.iterdir():
        opens.update(json.loads(path.read_text())["opens"])
    return {
        "nodes": shape.nodes, "ranks": shape.ranks, "opens": dict(sorted(opens.items())),
        "files": count_files(case), "bytes": sum_bytes(case), "start_s": facts[0] - started,
    }  # fmt: skip


def start_rank(case: Path, counts: Path, shape: Shape, rank: int, port: str) -> subprocess.Popen[bytes]:
    """Start a rank with the variables that Open MPI sets."""
    node, local_rank = divmod(rank, shape.ranks_per_node)
    variables = {"RANK": rank, "SIZE": shape.ranks, "LOCAL_RANK": local_rank}
    environment = environment_without_launcher() | {f"OMPI_COMM_WORLD_{k}": str(v) for k, v in variables.items()}
    environment |= {
        "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
        "GFM_HARNESS_FILE_USE": str(counts), "GFM_HARNESS_SAMPLER_S": "1",
        "GFM_HARNESS_CASE": f"{case}\t{(case / 'case.json').read_text()}",
    }  # fmt: skip
    return subprocess.Popen([sys.executable, "-c", RANK, f"n{node}", str(case)], env=environment)


def count_files(case: Path) -> dict[str, int]:
    """Return the number of entries of the case's folder and of each folder in it."""
    folders = [case, *(path for path in case.rglob("*") if path.is_dir())]
    return {str(folder.relative_to(case)): len(os.listdir(folder)) for folder in folders}


def sum_bytes(case: Path) -> dict[str, int]:
    """Return the size of each file directly in the case's folder, without case.json."""
    return {path.name: path.stat().st_size for path in case.iterdir() if path.is_file() and path.name != "case.json"}


def iter_models() -> Iterator[dict[str, Any]]:
    """Yield the models that shipped suites train on large systems, with the numbers of their trained parameters."""
    models: list[dict[str, Any]] = []
    for site in SYSTEMS:
        system = load_system(find_resource("systems", site), {})
        for name in TRAINING_SUITES:
            cases = expand_suite(load_suite(find_resource("suites", name), site), system).cases
            models += [case.parameters["model"] for case in cases if case.parameters["model"] not in models]
    for plain in models:
        model = FoundationModel(ModelConfig.from_parameters(ModelParameters.model_validate(plain)))
        model.gate.requires_grad_(False)
        yield {"model": plain, "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad)}


def main(names: Sequence[str]) -> None:
    """Measure these programs, or all, and write the file."""
    known = json.loads(FILE.read_text()) if FILE.exists() else {}
    programs, models = known.get("programs", {}), list(iter_models())
    for program in names or PROGRAMS:
        parameters = PROGRAMS[program]
        programs[program] = {"parameters": parameters, "runs": []}
        for nodes, ranks_per_node in (*SHAPES, *MORE_SHAPES.get(program, ())):
            with tempfile.TemporaryDirectory() as name:
                programs[program]["runs"].append(measure(program, parameters, Shape(nodes, ranks_per_node), Path(name)))
        write_json(FILE, {"source": "tests/builders/file_use.py", "programs": programs, "models": models})


if __name__ == "__main__":
    main(sys.argv[1:])
