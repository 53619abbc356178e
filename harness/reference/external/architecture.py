"""The sizes of a model as HydraGNN's configuration has them."""

from __future__ import annotations

from typing import Any

from harness.protocol.programs.model import HydraGNNOptions, ModelParameters
from harness.reference.external.checkout import PROGRAMS
from harness.reference.models.config import ModelConfig

# The configuration of its paper's training, of which a case changes the sizes.
TEMPLATE = PROGRAMS / "gfm_mlip.json"


def find_sizes(parameters: ModelParameters, **changes: Any) -> ModelConfig:
    """Return the sizes of the model of a case, with HydraGNN's network and its sum over atoms."""
    options = parameters.hydragnn or HydraGNNOptions()
    return ModelConfig.from_parameters(parameters, readout="sum", hydragnn=options.model_dump(), **changes)


def build_config(content: dict[str, Any], sizes: ModelConfig) -> dict[str, Any]:
    """Return the configuration of an untrained model of these sizes, in double precision."""
    assert sizes.hydragnn is not None
    network = content["NeuralNetwork"]
    head = {
        "num_sharedlayers": sizes.num_sharedlayers,
        "dim_sharedlayers": sizes.dim_sharedlayers,
        "num_headlayers": sizes.num_headlayers,
        "dim_headlayers": [sizes.dim_headlayers] * sizes.num_headlayers,
    }
    architecture = {
        "mpnn_type": "PAINN",
        "hidden_dim": sizes.hidden_dim,
        "num_conv_layers": sizes.num_conv_layers,
        "num_radial": sizes.num_radial,
        "radius": sizes.cutoff,
        "activation_function": sizes.hydragnn.activation,
        "use_graph_attr_conditioning": sizes.hydragnn.conditioning,
        "output_heads": {"graph": [{"type": f"branch-{k}", "architecture": head} for k in range(sizes.heads)]},
        "output_dim": [1],
        "output_type": ["graph"],
    }
    unused = dict.fromkeys(("num_nodes", "correlation", "distance_transform", "edge_dim", "pna_deg"))
    network["Architecture"] = unused | network["Architecture"] | architecture | {"edge_dim": None}
    network["Training"]["precision"] = "fp64"
    return content
