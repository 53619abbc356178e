"""Tensors and plain data in one safetensors file, with a checksum over every byte of it."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from harness.reference.errors import InputError

MOST_HEADER_BYTES = 100_000_000  # the format's own bound
CHUNK_BYTES = 1 << 20
ZIP = b"PK\x03\x04"  # what torch.save writes
_NO_DIGEST = "0" * 64
_MARK = b'"sha256":"'
DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64,
    "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64,
}  # fmt: skip


Shapes = dict[str, tuple[torch.dtype, tuple[int, ...]]]


class Unreadable(InputError):
    """A file that is no sealed file of the wanted kind; the message is the reason alone, without the path."""


@dataclass(frozen=True)
class Header:
    """What a file says of itself. about: plain data. shapes: type and shape of each tensor, by name."""

    about: Any
    shapes: Shapes


def write(path: Path, kind: str, tensors: Mapping[str, Tensor], about: Any) -> None:
    """Write atomically and wait for the disk.

    Args:
        path: The file; a kill leaves what was there before.
        kind: What the file is, which `read_header` asks for.
        tensors: They may share memory and lie on any device.
        about: Data that JSON can hold.
    """
    part = path.with_name(f"{path.name}.part")
    part.touch()
    mode = part.stat().st_mode  # that of any new file here; the library makes files for their owner alone
    alone = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    save_file(alone, part, {"kind": kind, "about": json.dumps(about), "sha256": _NO_DIGEST})
    part.chmod(mode)
    with part.open("r+b") as file:
        digest, place = _digest(file, _NO_DIGEST)
        file.seek(place)
        file.write(digest.encode())
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def read_header(path: Path, kind: str) -> Header:
    """Check the whole file against its checksum, and return what it says of its tensors without reading them.

    Raises:
        FileNotFoundError: The file does not exist.
        Unreadable: The file is damaged, of another kind, or no safetensors file.
    """
    try:
        with path.open("rb") as file:
            header = _header(file)
            metadata = header.pop("__metadata__", None)
            if not isinstance(metadata, dict) or not {"kind", "about", "sha256"} <= metadata.keys():
                raise Unreadable("a safetensors file of another program, without kind, about and sha256")
            if metadata["kind"] != kind:
                raise Unreadable(f"it is a {str(metadata['kind'])[:40]!r}, expected a {kind!r}")
            if _digest(file, str(metadata["sha256"]))[0] != metadata["sha256"]:
                raise Unreadable("damaged, its checksum differs")
        shapes = {name: (DTYPES[entry["dtype"]], tuple(entry["shape"])) for name, entry in header.items()}
        return Header(json.loads(metadata["about"]), shapes)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Unreadable(error.strerror or type(error).__name__) from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise error if isinstance(error, Unreadable) else Unreadable("its header is damaged") from None


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file that `read_header` has checked; raises Unreadable."""
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise Unreadable(str(error).splitlines()[0][:120]) from None


def _header(file: BinaryIO) -> dict[str, Any]:
    size = os.fstat(file.fileno()).st_size
    head = file.read(8)
    if head.startswith(ZIP):
        raise Unreadable("a file of torch.save, not safetensors")
    length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
    if not 2 <= length <= min(size - 8, MOST_HEADER_BYTES):
        raise Unreadable("not a safetensors file, or cut short")
    header = json.loads(file.read(length))
    if not isinstance(header, dict):
        raise Unreadable("not a safetensors file")
    return header


def _digest(file: BinaryIO, recorded: str) -> tuple[str, int]:
    """Return the SHA-256 of a file, its own record of it read as zeros, and where that record is."""
    file.seek(0)
    start = file.read(8)
    start += file.read(struct.unpack("<Q", start)[0])
    record = _MARK + recorded.encode()
    if len(recorded) != len(_NO_DIGEST) or start.count(record) != 1:
        raise Unreadable("damaged, its checksum cannot be found")
    place = start.index(record) + len(_MARK)
    digest = hashlib.sha256(start.replace(record, _MARK + _NO_DIGEST.encode()))
    while chunk := file.read(CHUNK_BYTES):
        digest.update(chunk)
    return digest.hexdigest(), place


def flatten(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Return plain data in the form of the value, and put its tensors into `tensors`, so that JSON can hold the rest.

    Dictionaries become lists of pairs, as their keys may be numbers; tuples become lists.
    """
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, Mapping):
        return {"pairs": [[key, flatten(item, tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return [flatten(item, tensors) for item in value]
    return value


def unflatten(plain: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Return what `flatten` was given."""
    if isinstance(plain, list):
        return [unflatten(item, tensors) for item in plain]
    if isinstance(plain, dict):
        if "tensor" in plain:
            return tensors[plain["tensor"]]
        return {key: unflatten(item, tensors) for key, item in plain["pairs"]}
    return plain
