"""What a training run says of itself: model, workload, precision as observed, and what its state on disk belongs to."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from harness.reference.data.batch import Batch
from harness.reference.datasets.collection import Dataset
from harness.reference.datasets.heads import HEADS
from harness.reference.datasets.splitting.splits import SPLITS
from harness.reference.distributed.group import Team
from harness.reference.inference.precision import observed
from harness.reference.models.foundation import FoundationModel
from harness.reference.models.message_backend import Chosen
from harness.reference.training.compile import Compiled
from harness.reference.training.loader import Feed

# Options that change neither model nor sequence of steps: a run may go on under others.
PASSING = {
    "ahead", "checkpoint_s", "timeout_s", "validation_limit", "gate_steps", "read", "width", "store_backend", "minutes",
    "continues",
}  # fmt: skip
# What was the case before there was a choice is not named: states from then go on too.
UNNAMED = {"messages": "plain"}
TOLD = ("batch_size", "epochs", "temperature", "seed", "sampling", "split_seed", "units", "heads", "balance")


def identity(model: FoundationModel, config: Mapping[str, Any], team: Team) -> dict[str, Any]:
    """What a state on disk must agree with to go on from it."""
    settled = {
        k: list(v) if isinstance(v, tuple) else v
        for k, v in config.items()
        if k not in PASSING and not (k in UNNAMED and v == UNNAMED[k])
    }
    return settled | {"model": model.config.asdict(), "ranks": team.place.size}


def describe(
    model: FoundationModel,
    feed: Feed,
    splits: Mapping[str, Sequence[Dataset]],
    config: Mapping[str, Any],
    team: Team,
) -> dict[str, Any]:
    """Facts of the model, of what it is trained on, and of the ranks."""
    parts = {"encoder": model.encoder, "heads": model.heads, "gate": model.gate}
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    counts = [{d.head: len(d.samples) for d in splits[split]} for split in SPLITS]
    drawn = feed.sampler.draws.tolist()
    sets = [
        {
            "set": d.name,
            "head": HEADS[d.head],
            "role": d.role,
            "level": d.level,
            **{name: count.get(d.head, 0) for name, count in zip(("train", "validation", "test"), counts, strict=True)},
            "drawn": n,
        }
        for d, n in zip(feed.corpus.datasets, drawn, strict=True)
    ]
    return {
        "model": {"config": model.config.asdict(), "parameters": sum(sizes.values()), "parts": sizes},
        "workload": {
            "sets": sets,
            "elements": np.flatnonzero(model.elements.cpu().numpy()).tolist(),
            "global_batch_size": config["batch_size"] * team.place.size,
            "steps_per_epoch": feed.sampler.steps,
            **{name: config[name] for name in TOLD},
        },
        "ranks": team.gathered({"rank": team.place.rank, "host": platform.node(), "device": str(team.device)}),
    }


def as_run(
    model: FoundationModel, example: Batch, compiled: Compiled, of_messages: Chosen, requested: str, team: Team
) -> dict[str, Any]:
    """Precision as asked for and as observed in one pass, and what runs it."""
    return {
        "requested": requested,
        **observed(model, example),
        "compiled": compiled.really,
        "why_eager": compiled.why_eager,
        "messages": of_messages.messages,
        "why_plain": of_messages.why_plain,
        "world_size": team.place.size,
        "device": str(team.device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
