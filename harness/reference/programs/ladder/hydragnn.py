"""The program `ladder` with HydraGNN's code: time its stages on the same batches as those of the reference model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

from harness.protocol.events import CaseLog
from harness.protocol.programs.ladder import (
    LadderFacts,
    LadderModel,
    LadderObserved,
    LadderParameters,
    Unavailable,
    WarmUp,
)
from harness.reference.data.batch import Batch
from harness.reference.errors import InputError
from harness.reference.external.architecture import TEMPLATE, build_model_config, fill_template
from harness.reference.external.checkout import PROGRAM_FOLDER, Checkout, find_checkout
from harness.reference.inference.precision import find_precision
from harness.reference.inference.prediction import SKIP_THRESHOLD, Prediction
from harness.reference.models.config import ModelConfig
from harness.reference.models.foundation import FoundationModel
from harness.reference.models.hydragnn import parse_config
from harness.reference.potentials.process import PotentialError, PotentialProcess
from harness.reference.profiling import memory
from harness.reference.programs.ladder.prepared_stage import PreparedStage
from harness.reference.programs.ladder.program import (
    describe_batches,
    describe_gate,
    iterate_warm_ups,
    measure_stages,
)
from harness.reference.programs.ladder.stages import Stage
from harness.reference.programs.ladder.workload import CLOSED_LOGIT, make_groups, prepare_batch

# The stages that HydraGNN offers.
HYDRAGNN_STAGES = (
    "baseline", "encoder_reuse", "branch_skip", "fused_gradient", "batched_heads", "torch_compile", "tuned_allocator",
)  # fmt: skip
# The files of a checkpoint's gate: as published, and as HydraGNN's inference reads it.
GATE_FILES = ("mlp_branch_weights.pt", "mlp_weights/*.pt")
GATE_SIZES = (128, 64)  # widths of the hidden layers of a fixed gate, as in the reference model


@dataclass
class InferenceSession:
    """The inference process of HydraGNN, and the results of its last requests.

    Attributes:
        process: The process.
        batch: The batch that the process holds.
        preparation_times: The seconds of the collation and of the transfer of this batch, as in `LadderSample`.
        weights: The weights of the branches in the last prediction, [g, branches].
    """

    process: PotentialProcess
    batch: Batch | None = None
    preparation_times: dict[str, float] = field(default_factory=dict)
    weights: torch.Tensor = field(default_factory=lambda: torch.zeros(0))

    def send(self, batch: Batch) -> None:
        """Send the atoms and edges of a batch to the process, unless it holds them already."""
        if self.batch is not batch:
            self.preparation_times = self.process.call("set_batch", structures=split_batch(batch))
            self.batch = batch

    def predict(self, stage: str, batch: Batch) -> tuple[Prediction, float]:
        """Return the prediction of a stage and its seconds by HydraGNN's timer, and update `weights`."""
        self.send(batch)
        answer = self.process.call("predict_stage", stage=stage)
        dtype = getattr(torch, answer["dtype"].removeprefix("torch."))
        energy, forces = (torch.tensor(answer[name], dtype=dtype) for name in ("energies", "forces"))
        self.weights = torch.tensor(answer["weights"], dtype=torch.float64)
        return Prediction(energy.to(batch.head.device), forces.to(batch.head.device)), answer["device_s"]

    def compute_branch_weights(self, batch: Batch) -> torch.Tensor:
        """Return the weights of the branches for the structures of a batch, [g, branches]; a stage computes them."""
        self.predict("batched_heads", batch)
        return self.weights


@dataclass(kw_only=True)
class ExternalStage(PreparedStage):
    """A stage that runs in the process of HydraGNN; the model of the harness is not used."""

    session: InferenceSession

    def __call__(self, model: FoundationModel, batch: Batch) -> Prediction:
        """Run the gate and the stage."""
        return self.session.predict(self.stage.name, batch)[0]

    def time(self, model: FoundationModel, batch: Batch) -> tuple[Prediction, dict[str, float]]:
        """Run the gate and the stage, and return the prediction and HydraGNN's times as fields of `LadderSample`."""
        prediction, device_s = self.session.predict(self.stage.name, batch)
        return prediction, {"device_s": device_s, **self.session.preparation_times}


def split_batch(batch: Batch) -> list[dict[str, Any]]:
    """Return the atoms and the edges of each structure of a batch as plain data, which the process of HydraGNN reads.

    Positions [n, 3] and shifts [e, 3] are in angstrom, charges in elementary charges. Atoms are counted from 0 in each
    structure, and a multiplicity of 0, which is unknown, becomes 1. The edges of a batch are sorted by structure.
    """
    atoms = batch.n_atoms.long().tolist()
    edges = torch.bincount(batch.edge_graph, minlength=len(atoms)).tolist()
    rows = zip(
        *(values.cpu().split(atoms) for values in (batch.numbers, batch.positions)),
        *(values.cpu().split(edges) for values in (batch.receiver, batch.sender, batch.shift)),
        batch.charge.tolist(),
        batch.multiplicity.tolist(),
        accumulate(atoms, initial=0),
        strict=False,  # the last sum is the number of all atoms
    )
    return [
        {
            "numbers": numbers.tolist(),
            "positions": positions.tolist(),
            "receiver": (receiver - first).tolist(),
            "sender": (sender - first).tolist(),
            "shift": shift.tolist(),
            "charge": charge,
            "multiplicity": max(1.0, multiplicity),
        }
        for numbers, positions, receiver, sender, shift, charge, multiplicity, first in rows
    ]


def run(config: LadderParameters, log: CaseLog, folder: Path) -> None:
    """Warm up HydraGNN's stages, time them in turn, and check their physics."""
    checkout = find_checkout(folder, (PROGRAM_FOLDER / "inference_fused.py", TEMPLATE))
    hydragnn_config, model_config, branches = read_model(config, checkout)
    model = FoundationModel(model_config)  # used only for its cutoff, its neighbour limit and its known elements
    model.mark_all_elements_known()
    model = find_precision(config.precision).apply(model).to(config.device)
    groups = make_groups(config, model, log)
    batches = [prepare_batch(group, model, config)[0] for group in groups]
    with (
        checkout.add_settings_to_errors(),
        start_inference(config, checkout, hydragnn_config, branches, folder) as process,
    ):
        session = InferenceSession(process)
        session.send(batches[0])
        process.call("create_lazy_layers")
        facts = process.call("describe")
        if facts["device"] != config.device:
            raise InputError(f"device: HydraGNN runs on {facts['device']} here, but the case asks for {config.device}")
        log.record_facts(describe(config, model_config, checkout, process.description, facts))
        stages = prepare_stages(config, session, batches, log)
        log.record_facts(
            LadderFacts(
                workload=describe_batches(batches, model, config),
                gate=describe_gate(list(map(session.compute_branch_weights, batches))),
            )
        )
        measure_stages(stages, groups=groups, model=model, config=config, log=log)


def read_model(config: LadderParameters, checkout: Checkout) -> tuple[dict[str, Any], ModelConfig, int]:
    """Return the content of HydraGNN's config.json, the configuration of the model, and the number of its branches."""
    if config.checkpoint is not None:
        path = Path(config.checkpoint).with_name("config.json")
        model_config, branches = parse_config(path, vector_bias=False)
        return {"Verbosity": {"level": 0}, **json.loads(path.read_text(encoding="utf-8"))}, model_config, branches
    model_config = build_model_config(config.model)
    content = json.loads((checkout.folder / TEMPLATE).read_text(encoding="utf-8"))
    return fill_template(content, model_config), model_config, model_config.heads


def find_gate_file(checkpoint: Path) -> Path:
    """Return the absolute path of the gate's weights next to a checkpoint.

    Raises:
        InputError: There is none, or there are several.
    """
    folder = checkpoint.absolute().parent
    files = sorted(path for pattern in GATE_FILES for path in folder.glob(pattern))
    if len(files) != 1:
        expected, names = " or ".join(GATE_FILES), ", ".join(str(path.relative_to(folder)) for path in files) or "none"
        raise InputError(f"{folder}: expected one file of the gate's weights, {expected}; it has {names}")
    return files[0]


def start_inference(
    config: LadderParameters, checkout: Checkout, hydragnn_config: dict[str, Any], branches: int, folder: Path
) -> PotentialProcess:
    """Start HydraGNN's inference in its environment.

    Args:
        config: The parameters of the case.
        checkout: The checkout of HydraGNN.
        hydragnn_config: The content of HydraGNN's config.json.
        branches: The number of branches.
        folder: The folder of the case, in which the process writes its output.

    Raises:
        PotentialError: The model cannot be loaded.
        InputError: The checkpoint has no gate, or several.
    """
    gate: str | dict[str, Any]
    if config.checkpoint is None:
        logits = [0.0] * config.active_heads + [CLOSED_LOGIT] * (branches - config.active_heads)
        gate = {"sizes": GATE_SIZES, "logits": logits}
    else:
        gate = str(find_gate_file(Path(config.checkpoint)))
    return checkout.start_adapter(
        "hydragnn_inference",
        "FusedInference",
        threads=torch.get_num_threads(),
        log=folder / "hydragnn.log",
        config=hydragnn_config,
        checkpoint=None if config.checkpoint is None else str(Path(config.checkpoint).absolute()),
        gate=gate,
        skip_threshold=SKIP_THRESHOLD,
        precision=config.precision,
        seed=config.seed,
        allocator=memory.__file__,
    )


def describe(
    config: LadderParameters,
    model_config: ModelConfig,
    checkout: Checkout,
    worker_facts: dict[str, Any],
    adapter_facts: dict[str, Any],
) -> LadderFacts:
    """Return the facts about the code, the model and its environment.

    Args:
        config: The parameters of the case.
        model_config: The configuration of the model.
        checkout: The checkout of HydraGNN.
        worker_facts: The worker's facts about the potential (`PotentialProcess.description`).
        adapter_facts: The adapter's facts about the model (`FusedInference.describe`).
    """
    assert model_config.hydragnn is not None
    options = model_config.hydragnn.model_copy(update={"vector_bias": adapter_facts["vector_bias"]})
    return LadderFacts(
        implementation=checkout.describe_source(worker_facts["python"], adapter_facts["packages"]),
        model=LadderModel(
            config=model_config.replace(hydragnn=options.model_dump(), heads=adapter_facts["branches"]).asdict(),
            trained=config.checkpoint is not None,
            parameters=adapter_facts["parameters"],
            checkpoint=config.checkpoint,
            gate_file=None if config.checkpoint is None else str(find_gate_file(Path(config.checkpoint))),
            forced_active_heads=None if config.checkpoint is not None else config.active_heads,
        ),
        runtime=LadderObserved(
            precision=config.precision,
            device=adapter_facts["device"],
            device_name=adapter_facts["device_name"],
            threads=adapter_facts["threads"],
            torch=adapter_facts["packages"].get("torch"),
            parameters=[f"torch.{worker_facts['dtype']}"],
        ),
    )


def prepare_stages(
    config: LadderParameters, session: InferenceSession, batches: Sequence[Batch], log: CaseLog
) -> list[ExternalStage]:
    """Warm up the stages of a case, and log those that HydraGNN does not have.

    Raises:
        InputError: HydraGNN has none of the stages.
    """
    stages: list[ExternalStage] = []
    for stage in iterate_warm_ups(config, log):
        if stage.name in HYDRAGNN_STAGES:
            stages.append(warm_up(stage, session, batches, log))
        else:
            log.write(Unavailable(stage=stage.name, reason="HydraGNN has no such stage"))
    if not stages:
        raise InputError(
            f"stages: HydraGNN has none of {', '.join(config.stages)}; it has {', '.join(HYDRAGNN_STAGES)}"
        )
    return stages


def warm_up(stage: Stage, session: InferenceSession, batches: Sequence[Batch], log: CaseLog) -> ExternalStage:
    """Run a stage once on each batch, and log its first call; raise PotentialError if a prediction is not finite.

    The time of the first call is by HydraGNN's timer, without the collation and the transfer of the batch.
    """
    seconds: list[float] = []
    for batch in batches:
        prediction, device_s = session.predict(stage.name, batch)
        seconds.append(device_s)
        if not all(bool(part.isfinite().all()) for part in prediction):
            raise PotentialError(f"the energies or forces of stage {stage.name} are not finite")
    flops = session.process.call("count_flops", stage=stage.name)["flops"]
    log.write(WarmUp(stage=stage.name, first_call_s=seconds[0], matrix_flops=flops))
    return ExternalStage(stage, predict=stage.predict_eager(), session=session)
