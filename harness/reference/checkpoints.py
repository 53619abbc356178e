"""Models on disk: weights and configuration in one file, loaded strictly or not at all."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch

from harness.reference.errors import InputError
from harness.reference.models.config import ModelConfig
from harness.reference.models.foundation import FoundationModel

FORMAT = 2
SHIPPED = Path(__file__).parent / "checkpoints"


def save(model: FoundationModel, path: Path, notes: Mapping[str, object]) -> None:
    """Write atomically; notes (plain data) say how the model came to be."""
    state = {k: v.detach().cpu() for k, v in model.state_dict().items()}
    content = {"format": FORMAT, "config": model.config.asdict(), "state": state, "notes": dict(notes)}
    part = path.with_name(path.name + ".part")
    torch.save(content, part)
    os.replace(part, path)


def named(word: str) -> tuple[FoundationModel, dict[str, object]]:
    """As `load`, of a shipped model's name or a path."""
    shipped = SHIPPED / f"{word}.pt"
    return load(shipped if shipped.exists() else Path(word))


def load(path: Path) -> tuple[FoundationModel, dict[str, object]]:
    """The model, in double or single precision as saved, and its notes.

    Raises InputError for a missing, truncated or foreign file and for weights that do not fit the configuration.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"{path}: no such checkpoint") from None
    except Exception as error:  # the unpickler meets damaged bytes with whatever its opcodes lead to
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path}: not a readable checkpoint ({reason[:120]})") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(f"{path}: not a checkpoint of this harness (format {FORMAT} expected)")
    try:
        model = FoundationModel(ModelConfig(**content["config"]))
        model.load_state_dict(content["state"], strict=True)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{path}: weights and configuration do not fit: {' '.join(str(error).split())[:200]}"
        ) from None
    return model, content["notes"]
