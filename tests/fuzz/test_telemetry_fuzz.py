"""Randomly changed telemetry exports and HydraGNN logs give valid results, or one clear error without traceback."""

from __future__ import annotations

import contextlib
import io
import json
import math
import random
import warnings
from pathlib import Path

import orjson
import pytest

from harness.importers import hydragnn, omnistat
from harness.protocol.errors import UsageError
from harness.results.runs import load_runs
from harness.telemetry.collect import CACHE_FILE, collect_usage
from tests.fuzz.bounded import run_fuzzer
from tests.importers.test_hydragnn_runs import COMMAND, CONFIG, format_epochs, format_trace
from tests.telemetry.exports import Recording, sample, write_case

pytestmark = pytest.mark.slow
FRAGMENTS = (
    b"-1", b"1e308", b"1e-308", b"nan", b"NaN", b"null", b"\x00", b'"', b"[", b"]", b"{", b"}", b",", b":", b"9" * 5000,
    b"\n", b"\r", b"\xff\xfe", b"[" * 2000, b"0", b"true", b'"values":5', b"Epoch: 00", b"Command: a.py --log=GFM ",
    b"x" * 100_000, b"-35700", b"1e17", b"../..", b"\xc2\xb2",
)  # fmt: skip
METRICS = ("rocm_energy_joules", "rocm_average_socket_power_watts", "rmsjob_annotations", "omnistat_fom",
           "rocm_utilization_percentage", "omnistat_hardware_counter", "harness_gpu_energy_joules")  # fmt: skip


def mutate(rng: random.Random, content: bytes) -> bytes:
    for _ in range(rng.choice((0, 1, 1, 2, 5, 20))):
        position, length = rng.randrange(len(content) + 1), rng.choice((0, 0, 1, 3, 30, 300))
        draw = rng.random()
        if draw < 0.5:
            content = content[:position] + rng.choice(FRAGMENTS) + content[position + length :]
        elif draw < 0.7:
            content = content[:position] + content[position + length :]
        elif draw < 0.85:
            content = content[:position] + content[position : position + length] * 2 + content[position + length :]
        else:
            content = content[:position]
    return content


def make_export(rng: random.Random) -> Recording:
    export = Recording()
    for k in range(rng.randrange(1, 5)):
        values = rng.choice((200.0, lambda t: 100 * t, lambda t: rng.choice((-1.0, 1e17, 5.0, math.inf, 1e308))))
        labels = {
            "card": str(k),
            "name": rng.choice(("FETCH_SIZE", "x")),
            "marker": rng.choice(("a", "a/b", "m" * 400)),
        }
        export.add(rng.choice(METRICS), rng.choice(("n1", "n2")), sample(1, 60, values), **labels)
    return export


def examine_telemetry(rng: random.Random, folder: Path) -> None:
    write_case(folder, "a", 10, 50, nodes=["n1"] if rng.random() < 0.5 else [])
    campaign = folder / "runs/mine"
    path = campaign / rng.choice(("jobs/j.omnistat.jsonl", "a/telemetry/n1-0.jsonl", "jobs/j.omnistat/omnistat-x.csv"))
    export = make_export(rng)
    if path.suffix == ".csv":
        export.write_csv(path, "card", "name")
    else:
        export.write(path)
    path.write_bytes(mutate(rng, path.read_bytes()))
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        for is_repeated in (False, True):
            if is_repeated and (cache := campaign / CACHE_FILE).exists():
                cache.write_bytes(mutate(rng, cache.read_bytes()))
            for usage in collect_usage(load_runs(folder / "runs")).usages:
                assert all(math.isfinite(j) and j >= 0 for j in usage.energy_j.values())
        with contextlib.suppress(UsageError):
            omnistat.import_export(path if path.suffix == ".jsonl" else path.parent, folder / "out")
    check_events(folder / "out")


def examine_logs(rng: random.Random, folder: Path) -> None:
    logs = folder / "GFM"
    log = COMMAND.format(name="GFM", more="--batch_size=200") + format_epochs(0, 0.5, 0.4, 0.3)
    log += "0: Tasks Val Loss: [12.5, 0.11, 0.3]\n0: Process 0 - Local timer:  train_validate_test  :  123.45\n"
    log += "0: LossComponents epoch=04 split=validation total=0.2 supervised.energy.raw=0.1 weight=1 weighted=0.1\n"
    table = "Stats for thread 0:\n   Called Recurse Wall\n train 3 - 30.5 10.5 10.0\n"
    files = {
        "run.log": log, "job-1.out": "srun -N2 -n16 python -u a.py --log=GFM\n" + log,
        "config.json": json.dumps(CONFIG),
        "gp_full.p0": format_trace(0, {"train": [1.0, 2.0], "opt_step": [0.1] * 9}), "gp_timing.p1": table,
        "rocm_energy.p0": "name, ncalls, mean, total, median, std_dev, max, min\n"
        "train, 3, 1e9, 3e9, 1e9, 0.0, 1e9, 1e9\n",
    }  # fmt: skip
    logs.mkdir()
    for name, content in files.items():
        (logs / name).write_bytes(mutate(rng, content.encode()))
    with contextlib.suppress(UsageError), contextlib.redirect_stdout(io.StringIO()):
        hydragnn.import_logs(logs, folder / "out")
    check_events(folder / "out")


def check_events(out: Path) -> None:
    """Check that the written JSON can be parsed by a strict parser, which rejects NaN."""
    for path in out.rglob("case.json"):
        orjson.loads(path.read_bytes())
    for path in out.rglob("events.jsonl"):
        for line in path.read_bytes().splitlines():
            orjson.loads(line)


def test_mutated_telemetry_is_read_or_rejected(tmp_path: Path) -> None:
    run_fuzzer(examine_telemetry, tmp_path)


def test_mutated_hydragnn_logs_are_imported_or_rejected(tmp_path: Path) -> None:
    run_fuzzer(examine_logs, tmp_path)
