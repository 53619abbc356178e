"""An ASE calculator for checkpoints of the reference model.

atoms.calc = ReferenceCalculator("painn-64")                # the gate weights the heads
atoms.calc = ReferenceCalculator("model.safetensors", head="MPTrj")  # one head alone
atoms.calc = ReferenceCalculator("painn-64", risk=True)     # atoms.calc.results["risk_ev_per_atom"]
"""

from __future__ import annotations

import copy
import difflib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, PropertyNotImplementedError, all_changes
from ase.stress import full_3x3_to_voigt_6_stress
from torch import Tensor

from harness.reference.data.batch import build_batch
from harness.reference.data.neighbours import NeighbourList
from harness.reference.datasets.catalog import HEADS
from harness.reference.datasets.user_files import read_electronic_state, structure_from_ase
from harness.reference.errors import InputError
from harness.reference.inference.precision import find_precision
from harness.reference.inference.prediction import Prediction, batched_heads, predict_with_stress
from harness.reference.inference.risk import RiskModel, evaluate, load_risk
from harness.reference.models import checkpoints, hydragnn
from harness.reference.models.coverage import check_distances, check_elements
from harness.reference.models.foundation import FoundationModel
from harness.reference.models.message_backend import use_fused_messages
from harness.reference.ops.compiler import configure_compiler

# The arguments of ASE's Calculator.
ASE_ARGUMENTS = {"restart", "label", "atoms", "directory"}
DEVICES = ("cpu", "cuda", "xpu", "mps")


def resolve_head(name: str) -> int:
    """Return the index of a head by the name of its dataset, ignoring case; raise InputError for an unknown name."""
    by_lower_name = {head.lower(): k for k, head in enumerate(HEADS)}
    if name.lower() in by_lower_name:
        return by_lower_name[name.lower()]
    matches = difflib.get_close_matches(name.lower(), by_lower_name, n=1)
    hint = f"did you mean {HEADS[by_lower_name[matches[0]]]!r}?" if matches else f"there are: {', '.join(HEADS)}"
    raise InputError(f"no head {name!r} ({hint})")


class ReferenceCalculator(Calculator):
    """A calculator of energy (eV), forces (eV/angstrom) and stress (eV/angstrom^3, ASE's sign) with one model.

    Charge and multiplicity come from `atoms.info`: `charge` or `total_charge`; `multiplicity`, `spin_multiplicity` or,
    as in OMol25, `spin`, all of which mean 2S + 1. A change of charge or multiplicity triggers a new calculation. The
    zero of the energy differs from head to head.

    Args:
        model: The path of a checkpoint, the name of a shipped checkpoint, or a model.
        head: The name of a dataset; None for the gate's weighted sum over the heads that know all elements.
        precision: "fp64", "fp32" or "bf16" (BF16 products, FP32 parameters).
        device: The name of a torch device, such as "cuda:0".
        compiled: Whether torch.compile compiles energy and forces, which takes about a minute. Stress stays eager.
        risk: Whether `results["risk_ev_per_atom"]` is computed, half the width of the interval around the energy per
            atom (see harness.reference.inference.risk), or the risk itself, which a model that is no file needs.
        kwargs: Arguments of ASE's Calculator.

    Attributes:
        message_backend: The implementation of the messages in use: the fused operator where it is available.

    Raises:
        InputError: The model, head or device does not exist, the head was never trained, or no risk was fitted to the
            model. `calculate` raises it if
            charge or multiplicity are impossible, or the atoms are outside the training sets (OutsideTraining): the
            head (or, with the gate, every head) lacks an element, or two atoms are closer than any in training.

    Warns:
        UserWarning: Atoms have more neighbours than the model uses, so that the energy is discontinuous. The warning
            is issued once.
    """

    implemented_properties = ["energy", "free_energy", "forces", "stress"]  # noqa: RUF012

    def __init__(
        self,
        model: FoundationModel | Path | str,
        *,
        head: str | None = None,
        precision: str = "fp64",
        device: str = "cpu",
        compiled: bool = False,
        risk: RiskModel | bool = False,
        **kwargs: Any,
    ) -> None:
        if unknown := kwargs.keys() - ASE_ARGUMENTS:
            # ASE's class would store unknown arguments and ignore them
            raise TypeError(f"ReferenceCalculator has no argument {', '.join(sorted(unknown))}")
        super().__init__(**kwargs)
        model_precision = find_precision(precision)
        torch_device = find_device(device, model_precision.dtype)
        # the model is copied, as another calculator may use it in another precision
        loaded = copy.deepcopy(model) if isinstance(model, FoundationModel) else checkpoints.load_named(str(model))[0]
        self.model = model_precision.apply(loaded).to(torch_device).eval().requires_grad_(False)
        self.device, self.dtype = torch_device, model_precision.dtype
        self.message_backend = use_fused_messages(self.model, torch_device)
        self.head = None if head is None else resolve_head(head)
        if self.head is not None and not bool(self.model.trained[self.head : self.head + 1].any()):
            raise InputError(f"head {HEADS[self.head]!r} of this model was never trained")
        self.predict = compile_prediction() if compiled else batched_heads
        self.risk = self._prepare_risk(model, risk)
        self.electronic_state = (0, 0)
        self.has_warned = False

    def _prepare_risk(self, model: FoundationModel | Path | str, risk: RiskModel | bool) -> RiskModel | None:
        if isinstance(risk, RiskModel):
            return risk.to(self.device, self.dtype)
        if not risk:
            return None
        if isinstance(model, FoundationModel):
            raise InputError("risk=True needs the name or the path of a checkpoint; for a model, pass its RiskModel")
        return load_risk(str(model))[0].to(self.device, self.dtype)

    def weights(self, composition: Tensor) -> Tensor:
        """Return the weight of each head, [g, heads], for a composition [g, 119] (number of atoms of each element)."""
        if self.head is None:
            return self.model.gate_weights(composition)
        one_hot = torch.zeros(self.model.config.heads, dtype=composition.dtype, device=composition.device)
        one_hot[self.head] = 1.0
        return one_hot.expand(len(composition), -1)

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
        """Return the changes since the last calculation, including charge and multiplicity."""
        changes: list[str] = super().check_state(atoms, tol=tol)
        return changes if self.electronic_state == read_electronic_state(atoms.info) else [*changes, "info"]

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: list[str] | None = None,
        system_changes: list[str] = all_changes,
    ) -> None:
        """Build a new neighbour list, and calculate energy and forces, and stress if requested."""
        self.results = {}  # so that results of other atoms do not remain after an error
        super().calculate(atoms, properties, system_changes)
        assert self.atoms is not None
        structure = structure_from_ase(self.atoms, "atoms").check()
        check_elements(self.model, structure, self.head)
        spec = self.model.config.neighbour_spec
        graph = spec.build_list(structure)
        batch = build_batch([graph], with_triplets=self.model.config.needs_triplets).to(self.device, self.dtype)
        weights = self.weights(batch.composition)
        check_distances(self.model, graph, weights[0])
        if graph.n_dropped and not self.has_warned:
            self.has_warned = True
            message = format_discontinuity_warning(graph, spec.cutoff, spec.max_neighbours)
            warnings.warn(message, UserWarning, stacklevel=2)
        if properties is not None and "stress" in properties:
            if not all(structure.periodic):
                raise PropertyNotImplementedError("stress needs a cell that is periodic along all three vectors")
            prediction, stress_tensor = predict_with_stress(self.model, batch, weights)
            voigt = full_3x3_to_voigt_6_stress(stress_tensor[0].double().cpu().numpy())
            self.results["stress"] = np.asarray(voigt)
        else:
            prediction = self.predict(self.model, batch, weights)
        energy = float(prediction.energy[0])
        forces = prediction.forces.double().cpu().numpy()
        self.results |= {"energy": energy, "free_energy": energy, "forces": forces}
        if self.risk is not None:
            evaluation = evaluate(self.model, batch, weights)
            self.results["risk_ev_per_atom"] = float(self.risk.estimate(self.model, batch, evaluation, weights)[0])
        self.electronic_state = structure.charge, structure.multiplicity


def build_hydragnn_calculator(
    checkpoint: Path | str,
    config: Path | str,
    *,
    gate: Path | str | None = None,
    head: str | None = None,
    precision: str = "fp64",
    device: str = "cpu",
    compiled: bool = False,
) -> ReferenceCalculator:
    """Return the calculator of a checkpoint of HydraGNN.

    Args:
        checkpoint: The `.pk` file.
        config: The `config.json` of the checkpoint.
        gate: The network that weights its branches (heads), `mlp_branch_weights.pt`.
        head: The dataset of one branch; None for the gate's weighted sum over all branches.
        precision: "fp64", "fp32" or "bf16".
        device: The name of a torch device.
        compiled: Whether torch.compile compiles energy and forces.

    Raises:
        InputError: The files do not match, they have options that are not supported, or there are several branches but
            neither a gate nor a head.
    """
    model = hydragnn.load_hydragnn(Path(checkpoint), Path(config), None if gate is None else Path(gate))
    branches = int(model.trained.sum())
    if branches > 1 and gate is None and head is None:
        raise InputError(f"{checkpoint}: it has {branches} branches, so that it needs a gate or a head")
    return ReferenceCalculator(model, head=head, precision=precision, device=device, compiled=compiled)


def compile_prediction() -> Callable[..., Prediction]:
    """Return `batched_heads` as one compiled graph with dynamic shapes."""
    torch._dynamo.config.trace_autograd_ops = True
    configure_compiler()
    compiled: Callable[..., Prediction] = torch.compile(batched_heads, dynamic=True, fullgraph=True)
    return compiled


def format_discontinuity_warning(graph: NeighbourList, cutoff: float, max_neighbours: int | None) -> str:
    """Return the warning for a structure whose atoms have more neighbours than the model uses."""
    return (
        f"the model takes the {max_neighbours} nearest neighbours of an atom, and {graph.n_dropped} further ones within"
        f" {cutoff:g} angstrom are ignored in this structure of {len(graph.structure)} atoms: where the order of"
        " distances changes, the energy jumps, so that a relaxation may not converge and dynamics do not conserve"
        " energy"
    )


def find_device(name: str, dtype: torch.dtype) -> torch.device:
    """Return the device of a name; raise InputError if it is unknown, absent, or does not support the dtype."""
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        matches = difflib.get_close_matches(str(name).lower(), DEVICES, n=1)
        hint = f"did you mean {matches[0]!r}?" if matches else f"there are, for example, {', '.join(DEVICES)}"
        raise InputError(f"no device {name!r} ({hint})") from None
    try:
        torch.zeros(1, dtype=dtype, device=device).item()
    except Exception as error:  # each kind of device raises its own error if it is absent
        reason = str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
        raise InputError(f"device {str(device)!r} cannot be used here ({reason})") from None
    return device
