"""Pickles of PyTorch Geometric graphs decoded without trust: numbers come out, nothing is imported or run."""

from __future__ import annotations

import io
import math
import pickle
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from harness.reference.datasets.formats.gather import Unfit, one_line

STORAGES = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}
MAGIC_NUMBER = 0x1950A86A20F9469CFC6C  # of torch.save before its zip files, which tensors in pickles still use


class Inert:
    """Stands in for a class of the file: keeps its state and does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.state: dict[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        self.state = state if isinstance(state, dict) else {}

    def __setitem__(self, key: Any, value: Any) -> None:
        self.state[key] = value


class _Storage(NamedTuple):
    dtype: str


def loads(data: bytes | memoryview) -> Any:
    """What a pickle holds; raises Unfit for anything that is not plain data, arrays, tensors or graphs."""
    try:
        return _Unpickler(io.BytesIO(data)).load()
    except Unfit:
        raise
    except Exception as error:  # a hostile or broken pickle fails in any way it likes
        raise Unfit("corrupt", f"cannot be unpickled ({one_line(error)})") from None


def _storage_of(data: bytes) -> NDArray[Any]:
    """The storage of a tensor, which is a file of torch.save within the pickle: five pickles, then raw numbers."""
    file = io.BytesIO(data)
    first = _Unpickler(file).load()
    if first != MAGIC_NUMBER:
        raise Unfit("corrupt", "a tensor is not stored the way torch stores it in pickles")
    for _ in range(2):  # version, machine
        _Unpickler(file).load()
    storage = _Unpickler(file).load()
    _Unpickler(file).load()  # the key of the only storage
    if not isinstance(storage, _Kept):
        raise Unfit("corrupt", "a tensor's storage is missing")
    (count,) = np.frombuffer(file.read(8), dtype="<i8").tolist()
    if count != storage.numbers:
        raise Unfit("corrupt", f"a tensor's storage of {storage.numbers} numbers says {count}")
    found = np.frombuffer(file.read(), dtype=storage.dtype)
    if len(found) < count:
        raise Unfit("truncated", f"a tensor's storage has {len(found)} of {count} numbers")
    return found[:count]


class _Kept(NamedTuple):
    dtype: str
    numbers: int


def _tensor(storage: Any, offset: int, size: Any, stride: Any, *_: Any) -> NDArray[Any]:
    """A tensor of a storage, with its bounds checked; a copy."""
    if not isinstance(storage, np.ndarray):
        raise Unfit("corrupt", "a tensor without a storage")
    size, stride = tuple(map(int, size)), tuple(map(int, stride))
    count = math.prod(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if min((offset, *size, *stride), default=0) < 0 or (count and last >= len(storage)) or count > len(storage):
        raise Unfit("corrupt", f"a tensor of shape {size} does not fit its storage of {len(storage)}")
    if not count:
        return np.empty(size, dtype=storage.dtype)
    steps = tuple(step * storage.itemsize for step in stride)
    return np.lib.stride_tricks.as_strided(storage[offset:], size, steps, writeable=False).copy()


class _Type:
    """A numpy type of plain numbers."""

    def __init__(self, code: str, *_: Any) -> None:
        self.dtype = np.dtype(str(code))
        if self.dtype.hasobject or self.dtype.kind not in "biufSU":
            raise Unfit("corrupt", f"numbers of type {code!r}")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] == ">":
            self.dtype = self.dtype.newbyteorder(">")


class _Array:
    """A numpy array, from the state that numpy gives it in a pickle."""

    def __init__(self, *_: Any) -> None:
        self.values: NDArray[Any] = np.empty(0)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, column_major, raw = state
        self.values = _frombuffer(raw, kind, shape, "F" if column_major else "C").values


def _frombuffer(raw: Any, kind: _Type, shape: Any, order: Any) -> _Array:
    found = _Array()
    found.values = np.frombuffer(raw, dtype=kind.dtype).reshape(shape, order=order)
    return found


def _scalar(kind: _Type, data: bytes) -> Any:
    return np.frombuffer(data, dtype=kind.dtype, count=1)[0]


def _latin1(text: str, encoding: str = "latin1") -> bytes:
    return text.encode("latin1")


PLAIN = (set, frozenset, dict, list, tuple, int, float, bool, str)
ALLOWED: dict[tuple[str, str], Any] = {
    **{(module, kind.__name__): kind for kind in PLAIN for module in ("builtins", "__builtin__")},
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _latin1,
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): _Type,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _Array for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _frombuffer for core in ("core", "_core")},
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch.storage", "_load_from_bytes"): _storage_of,
    **{("torch", name): _Storage(dtype) for name, dtype in STORAGES.items()},
}
GRAPHS = {
    "torch_geometric.data.data": {"Data", "DataEdgeAttr", "DataTensorAttr"},
    "torch_geometric.data.storage": {"GlobalStorage", "BaseStorage", "NodeStorage", "EdgeStorage"},
    "torch_geometric.data": {"Data"},
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name in GRAPHS.get(module, ()):
            return Inert
        found: Callable[..., Any] | None = ALLOWED.get((module, name))
        return found if found is not None else _refuse(module, name)

    def persistent_load(self, saved: Any) -> _Kept:
        if not (isinstance(saved, tuple) and len(saved) >= 5 and saved[0] == "storage"):
            raise Unfit("corrupt", "a pickle that points outside itself")
        kind, count = saved[1], saved[4]
        if not isinstance(kind, _Storage) or not isinstance(count, int):
            raise Unfit("corrupt", "a tensor of no plain numbers")
        return _Kept(kind.dtype, count)


def _refuse(module: str, name: str) -> NoReturn:
    raise Unfit("unsafe pickle", f"it asks for {module}.{name}, which is not part of a graph; nothing of it was run")


def graph(data: bytes | memoryview) -> dict[str, Any]:
    """The named arrays of a PyTorch Geometric graph, written before its version 2 or since; raises Unfit."""
    found = loads(data)
    if not isinstance(found, Inert):
        raise Unfit("malformed", f"holds a {type(found).__name__}, expected a graph (torch_geometric Data)")
    store = found.state.get("_store")
    named = store.state.get("_mapping", {}) if isinstance(store, Inert) else found.state
    return {
        name: value.values if isinstance(value, _Array) else value for name, value in named.items() if value is not None
    }
