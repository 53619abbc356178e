"""Load checkpoints of HydraGNN (https://github.com/ORNL/HydraGNN) strictly, and convert them to those of the harness.

    python -m harness.reference.models.hydragnn MODEL.pk config.json MODEL.safetensors [GATE.pt]

PaiNN and PNAEq are supported. Every tensor of a file is used exactly once, and every weight of the model comes from a
file. Head k is HydraGNN's branch-k; further heads are zero, and count as untrained. Without a gate's file all heads
have equal weights. Energies are those of HydraGNN's training data, from which a linear fit of compositions has been
subtracted. Where the limit on neighbours cuts through a shell of equal distances, HydraGNN takes some of the shell
and the harness takes none, so that energies differ.

HydraGNN's task-parallel training ignores the conditioning on charge and spin that a configuration asks for, and saves
no graph_concat_projector: such a checkpoint is refused until its config.json has `use_graph_attr_conditioning: false`.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.protocol.errors import shorten
from harness.reference.datasets.catalog import HEADS
from harness.reference.errors import InputError, get_first_line
from harness.reference.models import checkpoints
from harness.reference.models.backbones.hydragnn_pnaeq import STATISTICS
from harness.reference.models.config import ModelConfig
from harness.reference.models.foundation import FoundationModel

COMMAND = "python -m harness.reference.models.hydragnn"
VECTOR_BIASES = ("update_U.bias", "update_V.bias", "update_X.bias")
BACKBONES = {"PAINN": "painn", "PNAEq": "pnaeq"}
WRAPPERS = ("module.", "model.")  # of data-parallel models, and of models with a loss of forces
CLOSED_LOGIT = -1e4  # of a head without a branch, whose weight is zero in every type
# In HydraGNN the parts of messages are in the order v, r, s, and those of updates in the order vv, sv, ss.
MESSAGE_PARTS, UPDATE_PARTS = (2, 1, 0), (2, 0, 1)


class _Tensors:
    """The tensors of a file, each of which is taken once."""

    def __init__(self, path: Path, key: str) -> None:
        content = _read(path)
        tensors = content.get(key) if isinstance(content, dict) else None
        if not isinstance(tensors, dict) or not tensors or not all(isinstance(x, Tensor) for x in tensors.values()):
            raise InputError(f"{path}: it has no {key}, as files of HydraGNN have")
        tensors = {str(name): value.detach() for name, value in tensors.items()}
        while prefix := next((p for p in WRAPPERS if all(name.startswith(p) for name in tensors)), None):
            tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
        dtypes = {value.dtype for value in tensors.values()}
        if len(dtypes) > 1 or not dtypes <= {torch.float32, torch.float64}:
            types = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
            raise InputError(f"{path}: the weights are of type {types}, expected float32 or float64 for all of them")
        self.path, self.tensors, self.dtype = path, tensors, dtypes.pop()

    def take(self, name: str, *shape: int) -> Tensor:
        """Remove a tensor and return it; raise InputError if it is absent, of another shape or not finite."""
        if name not in self.tensors:
            raise InputError(f"{self.path}: {name} is missing")
        value = self.tensors.pop(name)
        if tuple(value.shape) != shape:
            raise InputError(f"{self.path}: {name} has the shape {list(value.shape)}, expected {list(shape)}")
        if not torch.isfinite(value).all():
            raise InputError(f"{self.path}: {name} holds numbers that are not finite")
        return value

    def linear(self, name: str, inputs: int, outputs: int) -> dict[str, Tensor]:
        """Return weight and bias of a linear layer."""
        return {
            "weight": self.take(f"{name}.weight", outputs, inputs),
            "bias": self.take(f"{name}.bias", outputs),
        }

    def finish(self) -> None:
        """Raise InputError if a tensor is left over."""
        if self.tensors:
            names = sorted(self.tensors)
            more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            raise InputError(f"{self.path}: nothing of the model that the configuration describes is {names[0]}{more}")


def load_hydragnn(checkpoint: Path, config: Path, gate: Path | None = None) -> FoundationModel:
    """Return the model of a checkpoint of PaiNN or PNAEq, in double or single precision as saved.

    Args:
        checkpoint: The `.pk` file.
        config: Its `config.json`.
        gate: The weights of the branches (`mlp_branch_weights.pt`); None: equal weights.

    Raises:
        InputError: A file is missing or damaged, the model has an option that is not supported, or a tensor is absent,
            left over or of another shape, which the message names.
    """
    tensors = _Tensors(checkpoint, "model_state_dict")
    vector_bias = any(name.endswith(VECTOR_BIASES) for name in tensors.tensors)
    sizes, branches = parse_config(config, vector_bias=vector_bias)
    state = _read_encoder(tensors, sizes) | _read_heads(tensors, sizes, branches)
    tensors.finish()
    model = FoundationModel(sizes).to(tensors.dtype)
    state |= _read_gate(gate, model, branches)
    model.trained[:branches] = True
    model.known_elements[:branches, 1:] = True
    buffers = {name: value for name, value in model.named_buffers() if name in model.state_dict()}
    model.load_state_dict(buffers | state, strict=True)
    return model


def _read(path: Path) -> Any:
    """Return the content of a file of torch, which may hold plain data and tensors only."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except Exception as error:  # damaged bytes make the unpickler raise any type of error
        raise InputError(f"{path}: not a readable file of tensors ({get_first_line(error)})") from None


def parse_config(path: Path, *, vector_bias: bool) -> tuple[ModelConfig, int]:
    """Return the sizes of the model that a `config.json` describes, and the number of its branches."""
    try:
        network = json.loads(path.read_text(encoding="utf-8"))["NeuralNetwork"]
        arch: dict[str, Any] = dict(network["Architecture"])
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a configuration of HydraGNN ({get_first_line(error)})") from None
    kind = arch.get("mpnn_type")
    if not isinstance(kind, str) or kind not in BACKBONES:
        raise InputError(f"{path}: mpnn_type is {shorten(kind)}; only {' and '.join(BACKBONES)} are supported")
    variables = network.get("Variables_of_interest")
    variables = variables if isinstance(variables, dict) else {}
    heads = arch.get("output_heads")
    supported: dict[str, tuple[Any, tuple[Any, ...]]] = {
        "global_attn_engine": (arch.get("global_attn_engine"), (None, "")),
        "input_dim": (arch.get("input_dim", 1), (1,)),
        "output_type": (arch.get("output_type", variables.get("type", ["graph"])), (["graph"],)),
        "output_dim": (arch.get("output_dim", variables.get("output_dim", [1])), ([1],)),
        "output_heads": (list(heads) if isinstance(heads, dict) else heads, (["graph"],)),
        "graph_pooling": (arch.get("graph_pooling", "mean"), ("add", "sum")),
        "activation_function": (arch.get("activation_function", "relu"), ("relu", "silu")),
    }
    if kind == "PNAEq":  # HydraGNN's PaiNN ignores features of edges
        supported["edge_dim"] = (arch.get("edge_dim"), (None, 0))
    conditioning = arch.get("use_graph_attr_conditioning", False)
    if conditioning:
        mode = arch.get("graph_attr_conditioning_mode", "concat_node")
        supported["graph_attr_conditioning_mode"] = (mode, ("concat_node",))
    for name, (value, choices) in supported.items():
        if value not in choices:
            known = " and ".join(json.dumps(choice) for choice in choices)
            raise InputError(f"{path}: {name} is {json.dumps(value)}; only {known} is supported")
    try:
        branches, sizes = _find_head_sizes(arch["output_heads"]["graph"])
        activation = arch.get("activation_function", "relu")
        options = {"activation": activation, "conditioning": conditioning, "vector_bias": vector_bias}
        config = ModelConfig(
            backbone=BACKBONES[kind], hidden_dim=arch["hidden_dim"], num_conv_layers=arch["num_conv_layers"],
            cutoff=float(arch["radius"]), max_neighbours=arch["max_neighbours"], num_radial=arch["num_radial"],
            readout="sum", hydragnn=options, **sizes,
        )  # fmt: skip
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(f"{path}: Architecture is incomplete ({get_first_line(error)})") from None
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return config, branches


def _find_head_sizes(graph: Any) -> tuple[int, dict[str, int]]:
    """Return the number of branches and the sizes that all of them have; raise InputError if their sizes differ."""
    branches = graph if isinstance(graph, list) else [{"type": "branch-0", "architecture": graph}]
    names = [branch["type"] for branch in branches]
    if names != [f"branch-{k}" for k in range(len(names))] or not 1 <= len(names) <= len(HEADS):
        raise InputError(f"the branches are {shorten(', '.join(map(str, names)))}, expected branch-0 to branch-15")
    first = branches[0]["architecture"]
    names = ["num_sharedlayers", "dim_sharedlayers", "num_headlayers", "dim_headlayers"]
    for branch in branches[1:]:
        for name in names:
            if branch["architecture"][name] != first[name]:
                raise InputError(f"{name} of {branch['type']} differs from that of branch-0; all must be equal")
    widths = first["dim_headlayers"]
    if len(set(widths)) != 1 or len(widths) != first["num_headlayers"] or first["num_sharedlayers"] < 1:
        raise InputError("dim_headlayers must be num_headlayers times one width, after at least one shared layer")
    return len(branches), {name: first[name] for name in names[:3]} | {"dim_headlayers": widths[0]}


def _reorder(value: Tensor, parts: Sequence[int]) -> Tensor:
    """Return the parts of the rows of a tensor, all of one size, in another order."""
    chunks = value.chunk(len(parts))
    return torch.cat([chunks[k] for k in parts])


def _read_encoder(tensors: _Tensors, config: ModelConfig) -> dict[str, Tensor]:
    """Return the weights of the encoder by their names in the model."""
    assert config.hydragnn is not None
    assert config.num_radial is not None
    width, count = config.hidden_dim, config.num_conv_layers
    state: dict[str, Tensor] = {}

    def put(name: str, values: Mapping[str, Tensor], change: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        state.update({f"encoder.{name}.{part}": change(value) for part, value in values.items()})

    for k in range(count):
        n = 1 if k == 0 else width
        is_last = k == count - 1
        message, update, mix = (f"graph_convs.{k}.module_{part}" for part in range(3))
        if config.backbone == "pnaeq":
            for name, values in _read_pnaeq_message(tensors, message, n, config.num_radial).items():
                put(f"messages.{k}.{name}", values)
        else:
            put(f"messages.{k}.phi_hidden", tensors.linear(f"{message}.scalar_message_mlp.0", n, n))
            phi = tensors.linear(f"{message}.scalar_message_mlp.2", n, 3 * n)
            put(f"messages.{k}.phi", phi, lambda x: _reorder(x, MESSAGE_PARTS))
            radial = tensors.linear(f"{message}.filter_layer", config.num_radial, 3 * n)
            put(f"messages.{k}.filter", radial, lambda x: _reorder(x, MESSAGE_PARTS))
        names = [f"{update}.update_{part}" for part in ("VX" if config.backbone == "pnaeq" else "VU")]
        vectors = {"weight": torch.cat([tensors.take(f"{name}.weight", n, n) for name in names])}
        if config.hydragnn.vector_bias:
            vectors["bias"] = torch.cat([tensors.take(f"{name}.bias", n) for name in names])
        put(f"updates.{k}.mix", vectors)
        hidden = tensors.linear(f"{update}.update_mlp.0", 2 * n, n)
        hidden["weight"] = hidden["weight"].roll(n, 1)  # (norm, s) -> (s, norm)
        put(f"updates.{k}.a_hidden", hidden)
        rows = tensors.linear(f"{update}.update_mlp.2", n, (2 if is_last else 3) * n)
        if is_last:  # the last update has no part vv, which nothing would read
            rows = {name: torch.cat([torch.zeros_like(x[:n]), x]) for name, x in rows.items()}
        put(f"updates.{k}.a", rows, lambda x: _reorder(x, UPDATE_PARTS))
        put(f"scalars.{k}.0", tensors.linear(f"{mix}.0", n, width))
        put(f"scalars.{k}.2", tensors.linear(f"{mix}.2", width, width))
        if not is_last:
            vectors = {"weight": tensors.take(f"graph_convs.{k}.module_3.weight", width, n)}
            if config.hydragnn.vector_bias:
                vectors["bias"] = tensors.take(f"graph_convs.{k}.module_3.bias", width)
            put(f"vectors.{k}", vectors)
    if config.hydragnn.conditioning:
        put("condition.linear", tensors.linear("graph_concat_projector", width + 2, width))
    return state


def _read_pnaeq_message(tensors: _Tensors, message: str, n: int, num_radial: int) -> dict[str, dict[str, Tensor]]:
    """Return the weights of a message of PNAEq by the names of its layers in the model."""
    return {
        "distance": tensors.linear(f"{message}.rbf_emb.0", num_radial, n),
        "pair": tensors.linear(f"{message}.pre_nns.0.0", 3 * n, n),
        "phi.0": tensors.linear(f"{message}.scalar_message_mlp.0", n, n),
        "phi.2": tensors.linear(f"{message}.scalar_message_mlp.2", n, n),
        "phi.4": tensors.linear(f"{message}.scalar_message_mlp.4", n, 3 * n),
        "filter": {"weight": tensors.take(f"{message}.rbf_lin.weight", 3 * n, num_radial)},
        "aggregation.mix": tensors.linear(f"{message}.post_nns.0.0", (STATISTICS + 1) * n, n),
        "aggregation": {
            "mean_degree": tensors.take(f"{message}.aggr_module.avg_deg_lin", 1),
            "mean_log_degree": tensors.take(f"{message}.aggr_module.avg_deg_log", 1),
        },
    }


def _pad(value: Tensor, rows: int) -> Tensor:
    """Return a tensor with rows of zeros added to it."""
    return torch.cat([value, value.new_zeros(rows - len(value), *value.shape[1:])])


def _read_heads(tensors: _Tensors, config: ModelConfig, branches: int) -> dict[str, Tensor]:
    """Return the weights of the heads by their names in the model."""
    state: dict[str, Tensor] = {}
    inputs = config.hidden_dim
    for k, outputs in enumerate((*config.head_sizes, 1)):
        after = k - config.num_sharedlayers  # layers after those that are shared
        names = [
            f"graph_shared.branch-{head}.{2 * k}" if after < 0 else f"heads_NN.0.branch-{head}.{2 * after}"
            for head in range(branches)
        ]
        layers = [tensors.linear(name, inputs, outputs) for name in names]
        weight, bias = (torch.stack([layer[part] for layer in layers]) for part in ("weight", "bias"))
        state[f"heads.layers.{k}.weight"] = _pad(weight.transpose(1, 2), config.heads)
        state[f"heads.layers.{k}.bias"] = _pad(bias.unsqueeze(1), config.heads)
        inputs = outputs
    return state


def _read_gate(path: Path | None, model: FoundationModel, branches: int) -> dict[str, Tensor]:
    """Return the weights of the gate by their names in the model; without a file, all branches have equal weights."""
    state = {f"gate.{name}": torch.zeros_like(value) for name, value in model.gate.state_dict().items()}
    if path is not None:
        tensors = _Tensors(path, "mlp_state_dict")
        for source, name in (("net.0", "hidden.0"), ("net.2", "hidden.2"), ("net.4", "last")):
            rows, inputs = state[f"gate.{name}.weight"].shape
            layer = tensors.linear(source, inputs, branches if name == "last" else rows)
            state |= {f"gate.{name}.{part}": _pad(value, rows) for part, value in layer.items()}
        tensors.finish()
    state["gate.last.bias"][branches:] = CLOSED_LOGIT
    return state


def convert(checkpoint: Path, config: Path, target: Path, gate: Path | None = None) -> None:
    """Write the model of `load_hydragnn` as a checkpoint of the harness, with the checksums of its files."""
    model = load_hydragnn(checkpoint, config, gate)
    files = {"checkpoint": checkpoint, "config": config} | ({} if gate is None else {"gate": gate})
    sums = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}
    sources = {name: {"file": path.name, "sha256": sums[name]} for name, path in files.items()}
    checkpoints.save(model, target, {"hydragnn": sources})


def main(arguments: list[str]) -> int:
    """Convert a checkpoint, and return the exit code."""
    if len(arguments) not in (3, 4):
        print(f"usage: {COMMAND} MODEL.pk config.json MODEL.safetensors [GATE.pt]", file=sys.stderr)
        return 2
    checkpoint, config, target, *gate = map(Path, arguments)
    try:
        convert(checkpoint, config, target, *gate)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(target)
    branches = int(checkpoints.load(target)[0].trained.sum())
    if branches > 1 and not gate:
        print(f"no gate was given: its {branches} branches have equal weights; name a head, or convert with a gate")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
