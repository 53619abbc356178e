"""Write runs of HydraGNN as run folders, in the format of the harness's own runs."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson

from harness.host.files import write_text
from harness.importers.hydragnn.files import list_files, read_small
from harness.importers.hydragnn.runs import LogFiles, Run, collect_notes, find_runs, read_files
from harness.protocol.errors import UsageError
from harness.protocol.events import EVENTS_FILE
from harness.protocol.text import pluralize, sanitize_line

PROGRAM, CAMPAIGN = "hydragnn", "hydragnn-original"
MAX_FILES_NAMED, NAME_LENGTH = 5, 150
MAX_CONFIG_BYTES, MAX_TEXT_LENGTH, MAX_LIST_LENGTH = 16 << 20, 500, 64
ARCHITECTURE = ("mpnn_type", "hidden_dim", "num_conv_layers", "radius", "max_neighbours", "num_headlayers",
                "dim_headlayers")  # fmt: skip
TRAINING = ("batch_size", "num_epoch", "precision")
# Options whose values are parameters; a flag such as --ddstore is `true`.
OPTIONS = (*ARCHITECTURE, *TRAINING, "learning_rate", "multi_model_list", "num_samples", "oversampling_num_samples",
           "ddstore", "ddstore_width", "task_parallel", "everyone", "modelname")  # fmt: skip


def import_logs(path: Path, out: Path) -> list[Path]:
    """Write a run folder in out/runs for each run whose logs are in a file or folder, and return the run folders.

    Raises:
        UsageError: the path does not exist, or no file is a log of HydraGNN.
    """
    if not path.exists():
        raise UsageError(f"{path}: no such file or folder")
    logs = read_files(list_files(path))
    runs = find_runs(logs)
    if not runs:
        raise UsageError(
            f"{path}: no log of HydraGNN here; expected lines such as `0: Epoch: 00, Train Loss: 0.1, Val Loss: 0.1,"
            f" Test Loss: 0.1`, or files gp_full.p0{_describe_skipped(logs, '; ')}"
        )
    if logs.skipped:
        print(f"{path}{_describe_skipped(logs, ': ')}")
    names = name_runs(runs, path)
    return [_write_run(out / "runs" / CAMPAIGN / name, name, run) for name, run in zip(names, runs, strict=True)]


def name_runs(runs: Sequence[Run], path: Path) -> list[str]:
    """Return a unique name for each run: its folder below the path; with several runs there, also its name or file."""
    counts = Counter(run.folder for run in runs)
    root = path if path.is_dir() else path.parent
    names: list[str] = []
    for run in runs:
        parts = [root.resolve().name, *run.folder.relative_to(root).parts] if path.is_dir() else [path.name]
        if counts[run.folder] > 1:
            parts.append(run.name or (run.segments[0].source.name if run.segments else "tracer"))
        name = base = re.sub(r"[^\w.=+-]+", "-", "-".join(parts)).strip("-.")[-NAME_LENGTH:] or "run"
        number = 1
        while name in names:
            number += 1
            name = f"{base}-{number}"
        names.append(name)
    return names


def make_events(run: Run) -> Iterator[dict[str, Any]]:
    """Yield the content of a run's files as events."""
    for epoch, rows in sorted(run.epochs.items()):
        row = rows[-1]
        location = {"source": sanitize_line(row.source.name), "line": row.line}
        losses = {name: row.losses.get(name) for name in ("loss", "validation_loss", "test_loss")}
        yield {"event": "epoch", "epoch": epoch, **losses, **location}
        for split, errors in row.errors.items():
            yield {"event": "task_errors", "epoch": epoch, "split": split, "errors": list(errors), **location}
    timers = {key: value for segment in run.segments for key, value in segment.timers.items()}
    for (rank, name), seconds in timers.items():
        yield {"event": "timer", "rank": rank, "name": sanitize_line(name), "duration_s": seconds}
    yield from ({"event": "sample", "structures_per_s": rate} for rate in _list_rates(run))
    for rank, regions in sorted(run.regions.items()):
        for name in sorted(regions.calls.keys() | regions.joules.keys()):
            region = {"rank": rank, "name": sanitize_line(name), "calls": regions.calls.get(name, 0)}
            if name in regions.seconds:
                yield {"event": "region", **region, "duration_s": regions.seconds[name]}
            if name in regions.joules:
                yield {"event": "energy", "tool": regions.tool, **region, "energy_j": regions.joules[name]}


def _list_rates(run: Run) -> list[float]:
    """Return every rate as many times as it occurs in the file with most of it, since other files contain copies."""
    files: dict[Path, list[float]] = {}
    for segment in run.segments:
        files.setdefault(segment.source, []).extend(segment.rates)
    repeats = {rate: max(rates.count(rate) for rates in files.values()) for rates in files.values() for rate in rates}
    return [rate for rate, number in repeats.items() for _ in range(number)]


def _describe_skipped(logs: LogFiles, separator: str) -> str:
    if not logs.skipped:
        return ""
    examples = [f"{path.name} ({reason})" for path, reason in logs.skipped[:MAX_FILES_NAMED]]
    text = ", ".join(map(sanitize_line, examples))
    more = f", and {len(logs.skipped) - MAX_FILES_NAMED} more" if len(logs.skipped) > MAX_FILES_NAMED else ""
    return f"{separator}{pluralize(len(logs.skipped), 'file')} skipped: {text}{more}"


def _write_run(folder: Path, name: str, run: Run) -> Path:
    """Write the run folder; replace the folder of an earlier import."""
    folder.mkdir(parents=True, exist_ok=True)
    parameters = read_parameters(run)
    sizes: dict[str, Any] = {key: parameters[key] for key in ("ranks", "nodes") if key in parameters}
    case: dict[str, Any] = {"id": name, "name": name, "suite": CAMPAIGN, "system": "original", "program": PROGRAM,
            "parameters": parameters, "axis_values": {}, "source": sanitize_line(str(run.folder)), **sizes}  # fmt: skip
    notes = [sanitize_line(note) for note in collect_notes(run)]
    events: list[dict[str, Any]] = [{"event": "start"}, *make_events(run)]
    events += [{"event": "fact", "name": "notes", "value": notes}, {"event": "done"}]
    write_text(folder / "case.json", json.dumps(case, indent=2) + "\n")
    lines = [json.dumps({**event, "time_s": 0.0}, allow_nan=False) for event in events]
    write_text(folder / EVENTS_FILE, "".join(f"{line}\n" for line in lines))
    write_text(folder / "exit_code", "0\n")
    return folder


def read_parameters(run: Run) -> dict[str, Any]:
    """Return the parameters of a run under HydraGNN's names, and in addition `datasets`, `ranks` and `nodes`.

    Options of a command line override the configuration file. If that file is unreadable, a note is added to the run.
    """
    result = _read_config(run)
    for segment in run.segments:
        result.update({name: _parse_value(segment.options[name]) for name in OPTIONS if name in segment.options})
    datasets = result.pop("multi_model_list", None)
    if isinstance(datasets, str):
        result["datasets"] = [word for word in datasets.split(",") if word][:MAX_LIST_LENGTH]
    result.update(_read_sizes(run))
    return result


def _read_config(run: Run) -> dict[str, Any]:
    if run.config is None:
        return {}
    try:
        content = orjson.loads(read_small(run.config, MAX_CONFIG_BYTES))
    except orjson.JSONDecodeError:
        content = None
    network = content.get("NeuralNetwork") if isinstance(content, dict) else None
    if not isinstance(network, dict):
        run.notes.append(f"{run.config.name}: expected JSON with `NeuralNetwork`; its parameters are missing")
        return {}
    architecture, training, data = (
        part if isinstance(part, dict) else {}
        for part in (network.get("Architecture"), network.get("Training"), content.get("Dataset"))
    )
    optimizer = training.get("Optimizer")
    values: dict[str, Any] = {"mpnn_type": architecture.get("model_type")}
    values |= {name: architecture[name] for name in ARCHITECTURE if name in architecture}
    values |= {name: training[name] for name in TRAINING if name in training}
    if isinstance(optimizer, dict):
        values |= {"optimizer": optimizer.get("type"), "learning_rate": optimizer.get("learning_rate")}
    if isinstance(data.get("name"), str):
        values["datasets"] = [_limit_length(data["name"])]
    return {name: _limit_length(value) for name, value in values.items() if _is_plain(value)}


def _read_sizes(run: Run) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for segment in run.segments:
        sizes |= segment.sizes
    per_node, nodes = sizes.pop("ranks_per_node", None), sizes.get("nodes")
    if "ranks" not in sizes and per_node and nodes:
        sizes["ranks"] = per_node * nodes
    if "nodes" not in sizes and per_node and sizes.get("ranks"):
        sizes["nodes"] = math.ceil(sizes["ranks"] / per_node)
    if "ranks" not in sizes and run.regions and _is_complete(run):
        sizes["ranks"] = len(run.regions)
    return {name: number for name, number in sizes.items() if number > 0}


def _is_complete(run: Run) -> bool:
    """Return whether the tracer's files are complete: their ranks count from 0, and every rank wrote one."""
    ranks = sorted(run.regions)
    return ranks == list(range(len(ranks))) and (len(ranks) > 1 or any(s.options.get("everyone") for s in run.segments)
                                                 or not any(s.options for s in run.segments))  # fmt: skip


def _parse_value(text: str) -> Any:
    for kind in (int, float):
        try:
            value = kind(text[:30])
        except ValueError:
            continue
        return value if math.isfinite(value) else text
    return True if text == "true" else _limit_length(text)


def _is_plain(value: Any) -> bool:
    if isinstance(value, list):
        return len(value) <= MAX_LIST_LENGTH and all(isinstance(v, int | float | str) for v in value)
    return (isinstance(value, int | str) and value != "") or (isinstance(value, float) and math.isfinite(value))


def _limit_length(value: Any) -> Any:
    if isinstance(value, list):
        return [_limit_length(part) for part in value if _is_plain(part)]
    return sanitize_line(value)[:MAX_TEXT_LENGTH] if isinstance(value, str) else value
