"""Checkpoints: weights, configuration and notes of a model in one safetensors file, loaded strictly or not at all."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from harness.protocol.upgrade import convert_notes
from harness.reference.errors import InputError
from harness.reference.models import sealed
from harness.reference.models.config import ModelConfig
from harness.reference.models.foundation import FoundationModel

KIND = "gfm-harness checkpoint"
FORMAT = 3
KEYS = ("format", "config", "notes")
FIRST_REPULSION = {"repulsion_core": 0.5, "repulsion_end": 0.8}  # of models whose configuration does not contain them
SHIPPED = Path(__file__).parent / "shipped"
SUFFIX = ".safetensors"
MAX_CONSTANTS = 1 << 24  # limit on the elements of tensors that are not weights, such as tables of constants
_ATEN = torch.ops.aten
FACTORIES = {  # operators that allocate memory
    _ATEN.empty.memory_format, _ATEN.zeros.default, _ATEN.ones.default, _ATEN.full.default, _ATEN.rand.default,
    _ATEN.randn.default,
}  # fmt: skip
CONVERT = "python -m harness.reference.models.convert_checkpoint"


def save(model: FoundationModel, path: Path, notes: Mapping[str, object]) -> None:
    """Write a checkpoint atomically.

    Args:
        model: The model.
        path: The file.
        notes: Plain data on how the model was trained.
    """
    about = {"format": FORMAT, "config": model.config.asdict(), "notes": dict(notes)}
    sealed.write(path, KIND, model.state_dict(), about)


def load_named(name: str) -> tuple[FoundationModel, dict[str, object]]:
    """Load a shipped checkpoint by its name, or any checkpoint by its path; see `load`."""
    return load(find_path(name))


def find_path(name: str) -> Path:
    """Return the path of a checkpoint: of a shipped one by its name, of any other by its path."""
    shipped = SHIPPED / f"{name}{SUFFIX}"
    return shipped if shipped.exists() else Path(name)


def load(path: Path) -> tuple[FoundationModel, dict[str, object]]:
    """Return the model, in double or single precision as saved, and its notes.

    The size of the file bounds the memory that is allocated, whatever sizes its configuration asks for.

    Raises:
        InputError: The file is missing, damaged or of another program, or its weights are not finite or do not fit
            its configuration.
    """
    try:
        header = sealed.read_header(path, KIND)
        config, notes = _parse_header(header.about)
        model = _build(config, header.shapes)
        state = sealed.read_tensors(path)
    except FileNotFoundError:
        raise InputError(f"{path}: no such checkpoint") from None
    except sealed.UnreadableFile as error:
        raise InputError(f"{path}: not a readable checkpoint ({error}){_format_conversion_hint(path)}") from None
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    for name, value in state.items():
        if not torch.isfinite(value).all():
            raise InputError(f"{path}: {name} holds numbers that are not finite")
    model.load_state_dict(state, strict=True)
    return model, notes


def _parse_header(about: Any) -> tuple[ModelConfig, dict[str, object]]:
    version = about.get("format") if isinstance(about, dict) else None
    if not isinstance(about, dict) or version != FORMAT:
        raise InputError(f"not a checkpoint of this version of the harness (format {FORMAT} expected, found {version})")
    if unknown := sorted(about.keys() - set(KEYS)):
        raise InputError(f"unknown key {unknown[0]!r}; expected one of {', '.join(KEYS)}")
    about = {"notes": {}} | about
    for name in ("config", "notes"):
        if not isinstance(about.get(name), dict):
            raise InputError(f"{name} is missing, or not a mapping")
    config = about["config"]
    if config.get("repulsion") is not None:
        config = FIRST_REPULSION | config
    return ModelConfig(**config), convert_notes(about["notes"])


class _AllocationLimit(TorchDispatchMode):
    """Refuse to allocate more tensor elements than the weights in a file and MAX_CONSTANTS together."""

    def __init__(self, numbers: int) -> None:
        super().__init__()
        self.remaining = numbers + MAX_CONSTANTS

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in FACTORIES:
            self.remaining -= math.prod(args[0])
            if self.remaining < 0:
                raise InputError(
                    "weights and configuration do not match: the configuration needs more numbers than the file holds"
                )
        return func(*args, **(kwargs or {}))


def _build(config: ModelConfig, shapes: sealed.Shapes) -> FoundationModel:
    """Build the model before its tensors are read; raise InputError if their shapes do not fit the configuration."""
    layers = config.num_conv_layers + len(config.head_sizes) + (config.num_before_skip or 0)
    if layers > len(shapes):
        raise InputError(f"weights and configuration do not fit: {layers} layers, but {len(shapes)} tensors")
    with _AllocationLimit(sum(math.prod(shape) for _, shape in shapes.values())):
        model = FoundationModel(config)
    dtypes = {dtype for dtype, _ in shapes.values() if dtype.is_floating_point}
    if dtypes not in ({torch.float32}, {torch.float64}):
        types = ", ".join(sorted(map(str, dtypes))) or "none"
        raise InputError(f"the weights are of type {types}, expected float32 or float64 for all of them")
    model.to(dtypes.pop())
    expected = {name: (value.dtype, tuple(value.shape)) for name, value in model.state_dict().items()}
    for name in sorted(expected.keys() | shapes.keys()):
        if expected.get(name) != shapes.get(name):
            shape, required = (_format_shape(table.get(name)) for table in (shapes, expected))
            raise InputError(f"weights and configuration do not fit: {name} is {shape}, expected {required}")
    return model


def _format_shape(shape: tuple[torch.dtype, tuple[int, ...]] | None) -> str:
    return "absent" if shape is None else f"{str(shape[0]).removeprefix('torch.')} {list(shape[1])}"


def _format_conversion_hint(path: Path) -> str:
    try:
        with path.open("rb") as file:
            is_zip = file.read(len(sealed.ZIP_SIGNATURE)) == sealed.ZIP_SIGNATURE
    except OSError:
        return ""
    return f"; if an earlier version of the harness wrote it, convert it: {CONVERT} {path}" if is_zip else ""
