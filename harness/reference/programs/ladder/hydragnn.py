"""The ladder of a checkout of HydraGNN: its stages, timed in turn on the batches of the package's own ladder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
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
from harness.protocol.records import Progress
from harness.reference.data.batch import Batch
from harness.reference.errors import InputError
from harness.reference.external.architecture import TEMPLATE, build_config, find_sizes
from harness.reference.external.checkout import PROGRAMS, Checkout, find_checkout
from harness.reference.inference.precision import find_precision
from harness.reference.inference.prediction import SKIP_THRESHOLD, Prediction
from harness.reference.models.config import ModelConfig
from harness.reference.models.foundation import FoundationModel
from harness.reference.models.hydragnn import parse_config
from harness.reference.potentials.process import PotentialError, PotentialProcess
from harness.reference.profiling import memory
from harness.reference.programs.ladder.physics import log_physics
from harness.reference.programs.ladder.prepared_stage import PreparedStage
from harness.reference.programs.ladder.program import describe_batches, describe_gate, time_round
from harness.reference.programs.ladder.stages import Stage, select_stages
from harness.reference.programs.ladder.workload import CLOSED_LOGIT, make_groups, prepare_batch

STAGES = (
    "baseline", "encoder_reuse", "branch_skip", "fused_gradient", "batched_heads", "torch_compile", "tuned_allocator",
)  # fmt: skip
GATE_SIZES = (128, 64)  # hidden layers of a gate that is set by hand, as in the reference model


@dataclass
class Session:
    """The process of HydraGNN, and the batch that it has."""

    process: PotentialProcess
    batch: Batch | None = None
    preparation_times: dict[str, float] = field(default_factory=dict)
    weights: torch.Tensor = field(default_factory=lambda: torch.zeros(0))

    def send(self, batch: Batch) -> None:
        """Give the process the atoms and edges of a batch, unless it has them."""
        if self.batch is not batch:
            self.preparation_times = self.process.call("set_batch", structures=split_batch(batch))
            self.batch = batch

    def predict(self, stage: str, batch: Batch) -> tuple[Prediction, float]:
        """Return the prediction of a stage and its seconds by HydraGNN's timer, and keep the weights of branches."""
        self.send(batch)
        answer = self.process.call("predict_stage", stage=stage)
        dtype = getattr(torch, answer["dtype"].removeprefix("torch."))
        energy, forces = (torch.tensor(answer[name], dtype=dtype) for name in ("energies", "forces"))
        self.weights = torch.tensor(answer["weights"], dtype=torch.float64)
        return Prediction(energy.to(batch.head.device), forces.to(batch.head.device)), answer["device_s"]

    def measure_weights(self, batch: Batch) -> torch.Tensor:
        """Return the weights of the branches, [g, branches]."""
        self.predict("batched_heads", batch)
        return self.weights


@dataclass(kw_only=True)
class ExternalStage(PreparedStage):
    """A stage that HydraGNN runs."""

    session: Session

    def __call__(self, model: FoundationModel, batch: Batch) -> Prediction:
        """Run gate and stage."""
        return self.session.predict(self.stage.name, batch)[0]

    def time(self, model: FoundationModel, batch: Batch) -> tuple[Prediction, dict[str, float]]:
        """Run the stage, and return its prediction and the times that HydraGNN determines."""
        prediction, device_s = self.session.predict(self.stage.name, batch)
        return prediction, {"device_s": device_s, **self.session.preparation_times}


def split_batch(batch: Batch) -> list[dict[str, Any]]:
    """Return the atoms and the edges of each structure as plain data."""
    structures = []
    first = 0
    for graph in range(len(batch.head)):
        edges = batch.edge_graph == graph
        atoms = slice(first, first + int(batch.n_atoms[graph]))
        structures.append(
            {
                "numbers": batch.numbers[atoms].tolist(),
                "positions": batch.positions[atoms].tolist(),
                "receiver": (batch.receiver[edges] - first).tolist(),
                "sender": (batch.sender[edges] - first).tolist(),
                "shift": batch.shift[edges].tolist(),
                "charge": float(batch.charge[graph]),
                "multiplicity": max(1.0, float(batch.multiplicity[graph])),
            }
        )
        first = atoms.stop
    return structures


def run(config: LadderParameters, log: CaseLog, folder: Path) -> None:
    """Warm up the stages that HydraGNN has, and time them in turn."""
    checkout = find_checkout(folder, (PROGRAMS / "inference_fused.py", TEMPLATE))
    content, sizes, branches = read_model(config, checkout)
    model = FoundationModel(sizes)  # of it only the limits of edges and elements are used
    model.mark_all_elements_known()
    model = find_precision(config.precision).apply(model).to(config.device)
    groups = make_groups(config, model, log)
    batches = [prepare_batch(group, model, config)[0] for group in groups]
    with checkout.naming_settings(), start(config, checkout, content, branches, folder) as process:
        session = Session(process)
        session.send(batches[0])
        process.call("complete")
        about = process.call("describe")
        if about["device"] != config.device:
            raise InputError(f"device: HydraGNN runs on {about['device']} here, and the case asks for {config.device}")
        log.record_facts(describe(config, sizes, checkout, process.about, about))
        stages = prepare_stages(config, session, batches, log)
        log.record_facts(
            LadderFacts(
                workload=describe_batches(batches, model, config),
                gate=describe_gate(list(map(session.measure_weights, batches))),
            )
        )
        for number in range(config.rounds):
            time_round(number, stages=stages, groups=groups, model=model, config=config, log=log)
        if config.transformations:
            log_physics(stages, model, config, log)


def read_model(config: LadderParameters, checkout: Checkout) -> tuple[dict[str, Any], ModelConfig, int]:
    """Return the content of HydraGNN's config.json, the sizes of the model, and the number of its branches."""
    if config.checkpoint is not None:
        path = Path(config.checkpoint).with_name("config.json")
        sizes, branches = parse_config(path, vector_bias=False)
        return {"Verbosity": {"level": 0}, **json.loads(path.read_text(encoding="utf-8"))}, sizes, branches
    sizes = find_sizes(config.model)
    content = json.loads((checkout.folder / TEMPLATE).read_text(encoding="utf-8"))
    return build_config(content, sizes), sizes, sizes.heads


def start(
    config: LadderParameters, checkout: Checkout, content: dict[str, Any], branches: int, folder: Path
) -> PotentialProcess:
    """Start HydraGNN's inference in its environment; raise PotentialError."""
    gate: str | dict[str, Any] = {"sizes": GATE_SIZES, "logits": [0.0] * branches}
    if config.checkpoint is None:
        logits = [0.0] * config.active_heads + [CLOSED_LOGIT] * (branches - config.active_heads)
        gate = {"sizes": GATE_SIZES, "logits": logits}
    elif files := sorted(Path(config.checkpoint).parent.glob("mlp_weights/*.pt")):
        gate = str(files[-1].absolute())
    return checkout.start(
        "hydragnn_inference",
        "FusedInference",
        threads=torch.get_num_threads(),
        log=folder / "hydragnn.log",
        config=content,
        checkpoint=None if config.checkpoint is None else str(Path(config.checkpoint).absolute()),
        gate=gate,
        skip_threshold=SKIP_THRESHOLD,
        precision=config.precision,
        seed=config.seed,
        allocator=memory.__file__,
    )


def describe(
    config: LadderParameters,
    sizes: ModelConfig,
    checkout: Checkout,
    started: dict[str, Any],
    about: dict[str, Any],
) -> LadderFacts:
    """Return the facts of the model and of its environment."""
    assert sizes.hydragnn is not None
    options = sizes.hydragnn.model_copy(update={"vector_bias": about["vector_bias"]})
    return LadderFacts(
        implementation=checkout.describe(started["python"], about["packages"]),
        model=LadderModel(
            config=sizes.replace(hydragnn=options.model_dump(), heads=about["branches"]).asdict(),
            trained=config.checkpoint is not None,
            parameters=about["parameters"],
            checkpoint=config.checkpoint,
            forced_active_heads=None if config.checkpoint is not None else config.active_heads,
        ),
        runtime=LadderObserved(
            precision=config.precision,
            device=about["device"],
            device_name=about["device_name"],
            threads=about["threads"],
            torch=about["packages"].get("torch"),
            parameters=[f"torch.{started['dtype']}"],
        ),
    )


def prepare_stages(
    config: LadderParameters, session: Session, batches: Sequence[Batch], log: CaseLog
) -> list[ExternalStage]:
    """Warm up the stages, and log those that HydraGNN does not have."""
    stages: list[ExternalStage] = []
    for k, stage in enumerate(select_stages(config)):
        log.write(Progress(done=k, total=len(config.stages) * (config.rounds + 1), activity=f"warm-up: {stage.name}"))
        if stage.name in STAGES:
            stages.append(warm_up(stage, session, batches, log))
        else:
            log.write(Unavailable(stage=stage.name, reason="HydraGNN has no such stage"))
    if not stages:
        raise InputError(f"stages: HydraGNN has none of {', '.join(config.stages)}; it has {', '.join(STAGES)}")
    return stages


def warm_up(stage: Stage, session: Session, batches: Sequence[Batch], log: CaseLog) -> ExternalStage:
    """Run a stage once on each batch, and log its first call; raise PotentialError if a result is not finite."""
    first_s: list[float] = []
    for batch in batches:
        prediction, seconds = session.predict(stage.name, batch)
        first_s.append(seconds)
        if not all(bool(part.isfinite().all()) for part in prediction):
            raise PotentialError(f"the energies or forces of stage {stage.name} are not finite")
    flops = session.process.call("count_flops", stage=stage.name)["flops"]
    log.write(WarmUp(stage=stage.name, first_call_s=first_s[0], matrix_flops=flops))
    return ExternalStage(stage, predict=stage.predict_eager(), session=session)
