"""Sealed files: tensors and plain data in one safetensors file, with a checksum over every byte."""

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

MAX_HEADER_BYTES = 100_000_000  # limit of the format
CHUNK_BYTES = 1 << 20
ZIP_SIGNATURE = b"PK\x03\x04"  # the first bytes of a file of torch.save
_NO_DIGEST = "0" * 64
_DIGEST_KEY = b'"sha256":"'
DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64,
    "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64,
}  # fmt: skip


Shapes = dict[str, tuple[torch.dtype, tuple[int, ...]]]


class UnreadableFile(InputError):
    """A file is not a sealed file of the expected kind; the message is the reason alone, without the path."""


@dataclass(frozen=True)
class Header:
    """The header of a sealed file.

    Attributes:
        about: Plain data of the caller, such as a configuration.
        shapes: Type and shape of each tensor, by name.
    """

    about: Any
    shapes: Shapes


def write(path: Path, kind: str, tensors: Mapping[str, Tensor], about: Any) -> None:
    """Write a sealed file atomically, and wait until it is on disk.

    Args:
        path: The file; if the process is killed, the file keeps its earlier content.
        kind: The kind of file, which `read_header` checks.
        tensors: Tensors by name; they may share memory and lie on any device.
        about: Plain data that JSON can represent.
    """
    part = path.with_name(f"{path.name}.part")
    part.touch()
    mode = part.stat().st_mode  # the default of new files; safetensors makes files that only their owner can read
    copies = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    save_file(copies, part, {"kind": kind, "about": json.dumps(about), "sha256": _NO_DIGEST})
    part.chmod(mode)
    with part.open("r+b") as file:
        digest, offset = _compute_digest(file, _NO_DIGEST)
        file.seek(offset)
        file.write(digest.encode())
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def read_header(path: Path, kind: str) -> Header:
    """Check the whole file against its checksum, and return its header without reading the tensors.

    Args:
        path: The file.
        kind: The expected kind of file.

    Raises:
        FileNotFoundError: The file does not exist.
        UnreadableFile: The file is damaged, of another kind, or not a safetensors file.
    """
    try:
        with path.open("rb") as file:
            header = _read_json_header(file)
            metadata = header.pop("__metadata__", None)
            if not isinstance(metadata, dict) or not {"kind", "about", "sha256"} <= metadata.keys():
                raise UnreadableFile("a safetensors file of another program, without kind, about and sha256")
            if metadata["kind"] != kind:
                raise UnreadableFile(f"it is a {str(metadata['kind'])[:40]!r}, expected a {kind!r}")
            if _compute_digest(file, str(metadata["sha256"]))[0] != metadata["sha256"]:
                raise UnreadableFile("damaged, its checksum differs")
        shapes = {name: (DTYPES[entry["dtype"]], tuple(entry["shape"])) for name, entry in header.items()}
        return Header(json.loads(metadata["about"]), shapes)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UnreadableFile(error.strerror or type(error).__name__) from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise error if isinstance(error, UnreadableFile) else UnreadableFile("its header is damaged") from None


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file that `read_header` has checked; raise UnreadableFile if that fails."""
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise UnreadableFile(str(error).splitlines()[0][:120]) from None


def _read_json_header(file: BinaryIO) -> dict[str, Any]:
    size = os.fstat(file.fileno()).st_size
    head = file.read(8)
    if head.startswith(ZIP_SIGNATURE):
        raise UnreadableFile("a file of torch.save, not safetensors")
    length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
    if not 2 <= length <= min(size - 8, MAX_HEADER_BYTES):
        raise UnreadableFile("not a safetensors file, or cut short")
    header = json.loads(file.read(length))
    if not isinstance(header, dict):
        raise UnreadableFile("not a safetensors file")
    return header


def _compute_digest(file: BinaryIO, recorded: str) -> tuple[str, int]:
    """Return the SHA-256 of a file, computed with zeros in place of the recorded digest, and the digest's offset."""
    file.seek(0)
    start = file.read(8)
    start += file.read(struct.unpack("<Q", start)[0])
    record = _DIGEST_KEY + recorded.encode()
    if len(recorded) != len(_NO_DIGEST) or start.count(record) != 1:
        raise UnreadableFile("damaged, its checksum cannot be found")
    offset = start.index(record) + len(_DIGEST_KEY)
    digest = hashlib.sha256(start.replace(record, _DIGEST_KEY + _NO_DIGEST.encode()))
    while chunk := file.read(CHUNK_BYTES):
        digest.update(chunk)
    return digest.hexdigest(), offset


def flatten(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Return nested data with names in place of tensors, so that JSON can represent it; `unflatten` is the inverse.

    Dictionaries become lists of pairs, as their keys may be numbers; tuples become lists.

    Args:
        value: Nested dictionaries, lists, tuples, tensors and plain values.
        tensors: The dictionary to which the tensors are added by name.
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
    """Rebuild nested data from the result of `flatten` and the tensors that it has collected."""
    if isinstance(plain, list):
        return [unflatten(item, tensors) for item in plain]
    if isinstance(plain, dict):
        if "tensor" in plain:
            return tensors[plain["tensor"]]
        return {key: unflatten(item, tensors) for key, item in plain["pairs"]}
    return plain
