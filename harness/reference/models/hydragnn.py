"""Load checkpoints of HydraGNN (https://github.com/ORNL/HydraGNN), and convert them to checkpoints of the harness.

    python -m harness.reference.models.hydragnn MODEL.pk config.json MODEL.safetensors [GATE.pt]

PaiNN and PNAEq are supported. Every tensor of a file must be used exactly once, and every weight of the model must come
from a file. Head k is HydraGNN's branch-k; the weights of the remaining heads are zero, and these heads are marked as
untrained. Without a file for the gate, all branches have equal weights. The models predict energies without reference
energies, since HydraGNN subtracts a linear fit of the composition from its training data. If the maximum number of
neighbours cuts through a shell of equal distances, HydraGNN keeps some neighbours of the shell and the harness keeps
none, so that their energies differ.

HydraGNN's task-parallel training ignores the conditioning on charge and spin of its configuration, and saves no
graph_concat_projector. Such a checkpoint is refused unless its config.json has `use_graph_attr_conditioning: false`.
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
# Prefixes of names in checkpoints of data-parallel models, and of models that are trained on forces.
WRAPPERS = ("module.", "model.")
CLOSED_LOGIT = -1e4  # logit of an untrained head; its weight is zero in every floating-point type
# The positions in HydraGNN of the parts of messages (v, r, s) and of updates (vv, sv, ss), in the order of the harness.
MESSAGE_PARTS, UPDATE_PARTS = (2, 1, 0), (2, 0, 1)


class _TensorFile:
    """The tensors of a file that have not been taken yet; each is taken once.

    Args:
        path: The file.
        key: The key of the tensors in the file.

    Raises:
        InputError: The file cannot be read, has no such tensors, or mixes floating-point types.
    """

    def __init__(self, path: Path, key: str) -> None:
        content = _load_content(path)
        tensors = content.get(key) if isinstance(content, dict) else None
        if not isinstance(tensors, dict) or not tensors or not all(isinstance(x, Tensor) for x in tensors.values()):
            raise InputError(f"{path}: not a checkpoint of HydraGNN (it has no {key})")
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

    def take_linear(self, name: str, inputs: int, outputs: int) -> dict[str, Tensor]:
        """Remove the weight and the bias of a linear layer, and return them."""
        return {
            "weight": self.take(f"{name}.weight", outputs, inputs),
            "bias": self.take(f"{name}.bias", outputs),
        }

    def require_all_taken(self) -> None:
        """Raise InputError if a tensor has not been taken."""
        if self.tensors:
            names = sorted(self.tensors)
            more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            raise InputError(f"{self.path}: the model that config.json describes has no {names[0]}{more}")


def load_hydragnn(checkpoint: Path, config: Path, gate: Path | None = None) -> FoundationModel:
    """Return the model of a checkpoint of PaiNN or PNAEq, in the precision of the file.

    Args:
        checkpoint: The file of the weights, `*.pk`.
        config: The file `config.json` of the checkpoint.
        gate: The file of the gate's weights, `mlp_branch_weights.pt`; None: the branches have equal weights.

    Raises:
        InputError: A file is missing or damaged, an option of the model is not supported, or a tensor is absent, left
            over or of another shape; the message names the option or the tensor.
    """
    tensors = _TensorFile(checkpoint, "model_state_dict")
    vector_bias = any(name.endswith(VECTOR_BIASES) for name in tensors.tensors)
    sizes, branches = parse_config(config, vector_bias=vector_bias)
    state = _convert_encoder(tensors, sizes) | _convert_heads(tensors, sizes, branches)
    tensors.require_all_taken()
    model = FoundationModel(sizes).to(tensors.dtype)
    state |= _convert_gate(gate, model, branches)
    model.trained[:branches] = True
    model.known_elements[:branches, 1:] = True
    buffers = {name: value for name, value in model.named_buffers() if name in model.state_dict()}
    model.load_state_dict(buffers | state, strict=True)
    return model


def _load_content(path: Path) -> Any:
    """Return the content of a file of torch.save; other objects than plain data and tensors are refused."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except Exception as error:  # damaged bytes make the unpickler raise any type of error
        raise InputError(f"{path}: not a readable file of tensors ({get_first_line(error)})") from None


def parse_config(path: Path, *, vector_bias: bool) -> tuple[ModelConfig, int]:
    """Return the configuration of the model that a `config.json` describes, and the number of its branches.

    Args:
        path: The file.
        vector_bias: Whether the checkpoint has vector biases, which `config.json` does not say.

    Raises:
        InputError: The file is missing or damaged, or an option of the model is not supported.
    """
    try:
        network = json.loads(path.read_text(encoding="utf-8"))["NeuralNetwork"]
        architecture: dict[str, Any] = dict(network["Architecture"])
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a configuration of HydraGNN ({get_first_line(error)})") from None
    kind = architecture.get("mpnn_type")
    if not isinstance(kind, str) or kind not in BACKBONES:
        raise InputError(f"{path}: mpnn_type is {shorten(kind)}; only {' and '.join(BACKBONES)} are supported")
    variables = network.get("Variables_of_interest")
    variables = variables if isinstance(variables, dict) else {}
    heads = architecture.get("output_heads")
    supported: dict[str, tuple[Any, tuple[Any, ...]]] = {
        "global_attn_engine": (architecture.get("global_attn_engine"), (None, "")),
        "input_dim": (architecture.get("input_dim", 1), (1,)),
        "output_type": (architecture.get("output_type", variables.get("type", ["graph"])), (["graph"],)),
        "output_dim": (architecture.get("output_dim", variables.get("output_dim", [1])), ([1],)),
        "output_heads": (list(heads) if isinstance(heads, dict) else heads, (["graph"],)),
        "graph_pooling": (architecture.get("graph_pooling", "mean"), ("add", "sum")),
        "activation_function": (architecture.get("activation_function", "relu"), ("relu", "silu")),
    }
    if kind == "PNAEq":  # HydraGNN's PaiNN ignores edge features
        supported["edge_dim"] = (architecture.get("edge_dim"), (None, 0))
    conditioning = architecture.get("use_graph_attr_conditioning", False)
    if conditioning:
        mode = architecture.get("graph_attr_conditioning_mode", "concat_node")
        supported["graph_attr_conditioning_mode"] = (mode, ("concat_node",))
    for name, (value, choices) in supported.items():
        if value not in choices:
            known = " and ".join(json.dumps(choice) for choice in choices)
            raise InputError(f"{path}: {name} is {json.dumps(value)}; only {known} is supported")
    try:
        branches, sizes = _find_head_sizes(architecture["output_heads"]["graph"])
        activation = architecture.get("activation_function", "relu")
        options = {"activation": activation, "conditioning": conditioning, "vector_bias": vector_bias}
        config = ModelConfig(
            backbone=BACKBONES[kind], cutoff=float(architecture["radius"]), readout="sum", hydragnn=options,
            **{name: architecture[name] for name in ("hidden_dim", "num_conv_layers", "max_neighbours", "num_radial")},
            **sizes,
        )  # fmt: skip
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(f"{path}: Architecture is incomplete ({get_first_line(error)})") from None
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return config, branches


def _find_head_sizes(graph: Any) -> tuple[int, dict[str, int]]:
    """Return the number of branches and their common sizes; raise InputError if the branches have different sizes."""
    branches = graph if isinstance(graph, list) else [{"type": "branch-0", "architecture": graph}]
    names = [branch["type"] for branch in branches]
    if names != [f"branch-{k}" for k in range(len(names))] or not 1 <= len(names) <= len(HEADS):
        raise InputError(f"the branches are {shorten(', '.join(map(str, names)))}, expected branch-0 to branch-15")
    first = branches[0]["architecture"]
    names = ["num_sharedlayers", "dim_sharedlayers", "num_headlayers", "dim_headlayers"]
    for branch in branches[1:]:
        for name in names:
            if branch["architecture"][name] != first[name]:
                raise InputError(f"{name} of {branch['type']} differs from {name} of branch-0; they must be equal")
    widths = first["dim_headlayers"]
    if len(set(widths)) != 1 or len(widths) != first["num_headlayers"] or first["num_sharedlayers"] < 1:
        raise InputError("expected num_headlayers equal values in dim_headlayers, and at least one shared layer")
    return len(branches), {name: first[name] for name in names[:3]} | {"dim_headlayers": widths[0]}


def _reorder(value: Tensor, parts: Sequence[int]) -> Tensor:
    """Divide the rows of a tensor into parts of equal size, and return them in another order."""
    chunks = value.chunk(len(parts))
    return torch.cat([chunks[k] for k in parts])


def _convert_encoder(tensors: _TensorFile, config: ModelConfig) -> dict[str, Tensor]:
    """Return the weights of the encoder, by their names in the harness's model."""
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
            for name, values in _convert_pnaeq_message(tensors, message, n, config.num_radial).items():
                put(f"messages.{k}.{name}", values)
        else:
            put(f"messages.{k}.phi_hidden", tensors.take_linear(f"{message}.scalar_message_mlp.0", n, n))
            phi = tensors.take_linear(f"{message}.scalar_message_mlp.2", n, 3 * n)
            put(f"messages.{k}.phi", phi, lambda x: _reorder(x, MESSAGE_PARTS))
            radial = tensors.take_linear(f"{message}.filter_layer", config.num_radial, 3 * n)
            put(f"messages.{k}.filter", radial, lambda x: _reorder(x, MESSAGE_PARTS))
        names = [f"{update}.update_{part}" for part in ("VX" if config.backbone == "pnaeq" else "VU")]
        vectors = {"weight": torch.cat([tensors.take(f"{name}.weight", n, n) for name in names])}
        if config.hydragnn.vector_bias:
            vectors["bias"] = torch.cat([tensors.take(f"{name}.bias", n) for name in names])
        put(f"updates.{k}.mix", vectors)
        hidden = tensors.take_linear(f"{update}.update_mlp.0", 2 * n, n)
        hidden["weight"] = hidden["weight"].roll(n, 1)  # (norm, s) -> (s, norm)
        put(f"updates.{k}.a_hidden", hidden)
        rows = tensors.take_linear(f"{update}.update_mlp.2", n, (2 if is_last else 3) * n)
        if is_last:  # the last update has no part vv, since no layer reads its vectors
            rows = {name: torch.cat([torch.zeros_like(x[:n]), x]) for name, x in rows.items()}
        put(f"updates.{k}.a", rows, lambda x: _reorder(x, UPDATE_PARTS))
        put(f"scalars.{k}.0", tensors.take_linear(f"{mix}.0", n, width))
        put(f"scalars.{k}.2", tensors.take_linear(f"{mix}.2", width, width))
        if not is_last:
            vectors = {"weight": tensors.take(f"graph_convs.{k}.module_3.weight", width, n)}
            if config.hydragnn.vector_bias:
                vectors["bias"] = tensors.take(f"graph_convs.{k}.module_3.bias", width)
            put(f"vectors.{k}", vectors)
    if config.hydragnn.conditioning:
        put("condition.linear", tensors.take_linear("graph_concat_projector", width + 2, width))
    return state


def _convert_pnaeq_message(tensors: _TensorFile, message: str, n: int, num_radial: int) -> dict[str, dict[str, Tensor]]:
    """Return the weights of the layers of a PNAEq message, by their names in the harness's model."""
    return {
        "distance": tensors.take_linear(f"{message}.rbf_emb.0", num_radial, n),
        "pair": tensors.take_linear(f"{message}.pre_nns.0.0", 3 * n, n),
        "phi.0": tensors.take_linear(f"{message}.scalar_message_mlp.0", n, n),
        "phi.2": tensors.take_linear(f"{message}.scalar_message_mlp.2", n, n),
        "phi.4": tensors.take_linear(f"{message}.scalar_message_mlp.4", n, 3 * n),
        "filter": {"weight": tensors.take(f"{message}.rbf_lin.weight", 3 * n, num_radial)},
        "aggregation.mix": tensors.take_linear(f"{message}.post_nns.0.0", (STATISTICS + 1) * n, n),
        "aggregation": {
            "mean_degree": tensors.take(f"{message}.aggr_module.avg_deg_lin", 1),
            "mean_log_degree": tensors.take(f"{message}.aggr_module.avg_deg_log", 1),
        },
    }


def _pad(value: Tensor, rows: int) -> Tensor:
    """Return a tensor with zeros appended, so that it has the given number of rows."""
    return torch.cat([value, value.new_zeros(rows - len(value), *value.shape[1:])])


def _convert_heads(tensors: _TensorFile, config: ModelConfig, branches: int) -> dict[str, Tensor]:
    """Return the weights of the heads, by their names in the harness's model."""
    state: dict[str, Tensor] = {}
    inputs = config.hidden_dim
    for k, outputs in enumerate((*config.head_sizes, 1)):
        after_shared = k - config.num_sharedlayers  # index of the layer after the shared ones
        names = [
            f"graph_shared.branch-{head}.{2 * k}"
            if after_shared < 0
            else f"heads_NN.0.branch-{head}.{2 * after_shared}"
            for head in range(branches)
        ]
        layers = [tensors.take_linear(name, inputs, outputs) for name in names]
        weight, bias = (torch.stack([layer[part] for layer in layers]) for part in ("weight", "bias"))
        state[f"heads.layers.{k}.weight"] = _pad(weight.transpose(1, 2), config.heads)
        state[f"heads.layers.{k}.bias"] = _pad(bias.unsqueeze(1), config.heads)
        inputs = outputs
    return state


def _convert_gate(path: Path | None, model: FoundationModel, branches: int) -> dict[str, Tensor]:
    """Return the weights of the gate, by their names in the harness's model.

    Without a file (`path` is None), all branches have equal weights.
    """
    state = {f"gate.{name}": torch.zeros_like(value) for name, value in model.gate.state_dict().items()}
    if path is not None:
        tensors = _TensorFile(path, "mlp_state_dict")
        for source, name in (("net.0", "hidden.0"), ("net.2", "hidden.2"), ("net.4", "last")):
            rows, inputs = state[f"gate.{name}.weight"].shape
            layer = tensors.take_linear(source, inputs, branches if name == "last" else rows)
            state |= {f"gate.{name}.{part}": _pad(value, rows) for part, value in layer.items()}
        tensors.require_all_taken()
    state["gate.last.bias"][branches:] = CLOSED_LOGIT
    return state


def convert(checkpoint: Path, config: Path, target: Path, gate: Path | None = None) -> None:
    """Convert a checkpoint of HydraGNN (see `load_hydragnn`) to one of the harness, with the checksums of its files."""
    model = load_hydragnn(checkpoint, config, gate)
    files = {"checkpoint": checkpoint, "config": config} | ({} if gate is None else {"gate": gate})
    sums = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}
    sources = {name: {"file": path.name, "sha256": sums[name]} for name, path in files.items()}
    checkpoints.save(model, target, {"hydragnn": sources})


def main(arguments: list[str]) -> int:
    """Run the command with its arguments, and return the exit code."""
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
        print(f"without a gate, its {branches} branches have equal weights; name a head, or convert with a gate")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
