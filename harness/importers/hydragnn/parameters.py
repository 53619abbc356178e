"""With what a run was made: from its config.json, its command line and its launcher's."""

from __future__ import annotations

import math
from typing import Any

import orjson

from harness.importers.hydragnn.files import read_small
from harness.importers.hydragnn.runs import Run
from harness.protocol.text import sanitize_line

MOST_BYTES, LONGEST, MOST_LISTED = 16 << 20, 500, 64
ARCHITECTURE = ("mpnn_type", "hidden_dim", "num_conv_layers", "radius", "max_neighbours", "num_headlayers",
                "dim_headlayers")  # fmt: skip
TRAINING = ("batch_size", "num_epoch", "precision")
# Options whose values are parameters; a flag such as --ddstore is `true`.
OPTIONS = (*ARCHITECTURE, *TRAINING, "learning_rate", "multi_model_list", "num_samples", "oversampling_num_samples",
           "ddstore", "ddstore_width", "task_parallel", "everyone", "modelname")  # fmt: skip


def parameters_of(run: Run) -> dict[str, Any]:
    """Return the parameters by the original's names, with `datasets`, `ranks` and `nodes`; options go before the file.

    A configuration that cannot be read is noted.
    """
    result = _of_config(run)
    for segment in run.segments:
        result.update({name: _value(segment.words[name]) for name in OPTIONS if name in segment.words})
    listed = result.pop("multi_model_list", None)
    if isinstance(listed, str):
        result["datasets"] = [word for word in listed.split(",") if word][:MOST_LISTED]
    result.update(_size(run))
    return result


def _of_config(run: Run) -> dict[str, Any]:
    if run.config is None:
        return {}
    try:
        content = orjson.loads(read_small(run.config, MOST_BYTES))
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
    plain: dict[str, Any] = {"mpnn_type": architecture.get("model_type")}
    plain |= {name: architecture[name] for name in ARCHITECTURE if name in architecture}
    plain |= {name: training[name] for name in TRAINING if name in training}
    if isinstance(optimizer, dict):
        plain |= {"optimizer": optimizer.get("type"), "learning_rate": optimizer.get("learning_rate")}
    if isinstance(data.get("name"), str):
        plain["datasets"] = [_shown(data["name"])]
    return {name: _shown(value) for name, value in plain.items() if _is_plain(value)}


def _size(run: Run) -> dict[str, int]:
    counts: dict[str, int] = {}
    for segment in run.segments:
        counts |= segment.counts
    a_node, nodes = counts.pop("ranks_per_node", None), counts.get("nodes")
    if "ranks" not in counts and a_node and nodes:
        counts["ranks"] = a_node * nodes
    if "nodes" not in counts and a_node and counts.get("ranks"):
        counts["nodes"] = math.ceil(counts["ranks"] / a_node)
    if "ranks" not in counts and run.regions and _is_complete(run):
        counts["ranks"] = len(run.regions)
    return {name: number for name, number in counts.items() if number > 0}


def _is_complete(run: Run) -> bool:
    """Whether the tracer's files are all there can be: from rank 0 on, and every rank wrote one."""
    ranks = sorted(run.regions)
    return ranks == list(range(len(ranks))) and (len(ranks) > 1 or any(s.words.get("everyone") for s in run.segments)
                                                 or not any(s.words for s in run.segments))  # fmt: skip


def _value(text: str) -> Any:
    for kind in (int, float):
        try:
            value = kind(text[:30])
        except ValueError:
            continue
        return value if math.isfinite(value) else text
    return True if text == "true" else _shown(text)


def _is_plain(value: Any) -> bool:
    if isinstance(value, list):
        return len(value) <= MOST_LISTED and all(isinstance(v, int | float | str) for v in value)
    return (isinstance(value, int | str) and value != "") or (isinstance(value, float) and math.isfinite(value))


def _shown(value: Any) -> Any:
    if isinstance(value, list):
        return [_shown(part) for part in value if _is_plain(part)]
    return sanitize_line(value)[:LONGEST] if isinstance(value, str) else value
