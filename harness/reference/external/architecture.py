"""Translation of a case's model parameters into the configuration files of HydraGNN."""

from __future__ import annotations

from typing import Any

from harness.protocol.programs.model import HydraGNNOptions, ModelParameters
from harness.reference.external.checkout import PROGRAM_FOLDER
from harness.reference.models.config import ModelConfig

# The configuration with which the paper's models were trained; a case overrides its sizes.
TEMPLATE = PROGRAM_FOLDER / "gfm_mlip.json"


def build_model_config(parameters: ModelParameters, **changes: Any) -> ModelConfig:
    """Return the configuration of HydraGNN's variant of a case's model, whose heads sum over atoms.

    Args:
        parameters: The parameters of the model in the case.
        changes: Fields of the configuration to override.
    """
    options = parameters.hydragnn or HydraGNNOptions()
    return ModelConfig.from_parameters(parameters, readout="sum", hydragnn=options.model_dump(), **changes)


def fill_template(template: dict[str, Any], model_config: ModelConfig) -> dict[str, Any]:
    """Return HydraGNN's configuration of an untrained PaiNN model in double precision.

    Args:
        template: The content of TEMPLATE, which is changed in place.
        model_config: The sizes and options of the model.
    """
    assert model_config.hydragnn is not None
    network = template["NeuralNetwork"]
    head = {
        "num_sharedlayers": model_config.num_sharedlayers,
        "dim_sharedlayers": model_config.dim_sharedlayers,
        "num_headlayers": model_config.num_headlayers,
        "dim_headlayers": [model_config.dim_headlayers] * model_config.num_headlayers,
    }
    branches = [{"type": f"branch-{k}", "architecture": head} for k in range(model_config.heads)]
    architecture = {
        "mpnn_type": "PAINN",
        "hidden_dim": model_config.hidden_dim,
        "num_conv_layers": model_config.num_conv_layers,
        "num_radial": model_config.num_radial,
        "radius": model_config.cutoff,
        "activation_function": model_config.hydragnn.activation,
        "use_graph_attr_conditioning": model_config.hydragnn.conditioning,
        "output_heads": {"graph": branches},
        "output_dim": [1],
        "output_type": ["graph"],
    }
    # HydraGNN reads these keys for every kind of network
    unused = dict.fromkeys(("num_nodes", "correlation", "distance_transform", "edge_dim", "pna_deg"))
    network["Architecture"] = unused | network["Architecture"] | architecture | {"edge_dim": None}
    network["Training"]["precision"] = "fp64"
    return template
