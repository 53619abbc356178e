"""Pickles of PyTorch Geometric graphs decoded without trust: numbers come out, nothing is imported or run."""

from __future__ import annotations

import io
import math
import pickle
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from harness.reference.datasets.containers.pickle_scan import end_of_pickle
from harness.reference.datasets.parsing.base import MOST_BYTES
from harness.reference.datasets.parsing.structure_builder import Unfit, one_line

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


class Budget:
    """What a pickle and those within it may still copy, in bytes: the same bytes can be asked for many times."""

    def __init__(self) -> None:
        self.left = 4 * MOST_BYTES

    def spend(self, size: int) -> None:
        """Take so many bytes; raises Unfit where they are not left."""
        self.left -= size
        if self.left < 0:
            raise Unfit("too large", f"unfolds to more than {4 * MOST_BYTES >> 20} MB")


def loads(data: bytes | memoryview) -> Any:
    """What a pickle holds; raises Unfit for anything that is not plain data, arrays, tensors or graphs."""
    raw = bytes(data)
    try:
        return _Unpickler(raw[: end_of_pickle(raw)], Budget()).load()
    except Unfit:
        raise
    except Exception as error:  # a hostile or broken pickle fails in any way it likes
        raise Unfit("corrupt", f"cannot be unpickled ({one_line(error)})") from None


def _storage_of(budget: Budget, data: bytes) -> NDArray[Any]:
    """The storage of a tensor, which is a file of torch.save within the pickle: five pickles, then raw numbers."""
    budget.spend(len(data))
    position, values = 0, []
    for _ in range(5):  # magic number, version, machine, storage, the key of the only storage
        stop = end_of_pickle(data, position)
        values.append(_Unpickler(data[position:stop], budget).load())
        position = stop
        if values[0] != MAGIC_NUMBER:
            raise Unfit("corrupt", "a tensor is not stored the way torch stores it in pickles")
    storage = values[3]
    if not isinstance(storage, _Kept):
        raise Unfit("corrupt", "a tensor's storage is missing")
    (count,) = np.frombuffer(data[position : position + 8], dtype="<i8").tolist()
    if count != storage.numbers:
        raise Unfit("corrupt", f"a tensor's storage of {storage.numbers} numbers says {count}")
    found = np.frombuffer(data[position + 8 :], dtype=storage.dtype)
    if len(found) < count:
        raise Unfit("truncated", f"a tensor's storage has {len(found)} of {count} numbers")
    return found[:count]


class _Kept(NamedTuple):
    dtype: str
    numbers: int


def _tensor(budget: Budget, storage: Any, offset: int, size: Any, stride: Any, *_: Any) -> NDArray[Any]:
    """A tensor of a storage, with its bounds checked; a copy."""
    if not isinstance(storage, np.ndarray):
        raise Unfit("corrupt", "a tensor without a storage")
    size, stride = tuple(map(int, size)), tuple(map(int, stride))
    count = math.prod(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if min((offset, *size, *stride), default=0) < 0 or (count and last >= len(storage)) or count > len(storage):
        raise Unfit("corrupt", f"a tensor of shape {size} does not fit its storage of {len(storage)}")
    budget.spend(count * storage.itemsize)
    if not count:
        return np.empty(0, dtype=storage.dtype).reshape(size)
    steps = tuple(step * storage.itemsize for step in stride)
    return np.lib.stride_tricks.as_strided(storage[offset:], size, steps, writeable=False).copy()


class _Type:
    """A numpy type of plain numbers."""

    def __init__(self, code: Any, *_: Any) -> None:
        if not isinstance(code, str):
            raise Unfit("corrupt", "a type of numbers without a name")
        self.dtype = np.dtype(code)
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


def _latin1(budget: Budget, text: str, encoding: str = "latin1") -> bytes:
    budget.spend(len(text))
    return text.encode("latin1")


def _collection(kind: Callable[..., Any]) -> Callable[..., Any]:
    def build(budget: Budget, items: Any = (), *_: Any) -> Any:
        budget.spend(POINTERS * len(items))
        return kind(items)

    return build


POINTERS = 64  # bytes of an item in a collection
COLLECTIONS = (set, frozenset, dict, list, tuple)
COSTLY: dict[tuple[str, str], Callable[..., Any]] = {
    **{(module, k.__name__): _collection(k) for k in COLLECTIONS for module in ("builtins", "__builtin__")},
    ("collections", "OrderedDict"): _collection(OrderedDict),
    ("_codecs", "encode"): _latin1,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch.storage", "_load_from_bytes"): _storage_of,
}
ALLOWED: dict[tuple[str, str], Any] = {
    **{(module, name): Inert for name in ("int", "float", "bool", "str") for module in ("builtins", "__builtin__")},
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): _Type,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _Array for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _frombuffer for core in ("core", "_core")},
    **{("torch", name): _Storage(dtype) for name, dtype in STORAGES.items()},
}
GRAPHS = {
    "torch_geometric.data.data": {"Data", "DataEdgeAttr", "DataTensorAttr"},
    "torch_geometric.data.storage": {"GlobalStorage", "BaseStorage", "NodeStorage", "EdgeStorage"},
    "torch_geometric.data": {"Data"},
}


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes, budget: Budget) -> None:
        super().__init__(io.BytesIO(data))
        self.budget = budget

    def find_class(self, module: str, name: str) -> Any:
        if name in GRAPHS.get(module, ()):
            return Inert
        if costly := COSTLY.get((module, name)):
            return partial(costly, self.budget)
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
    if not isinstance(named, dict):
        raise Unfit("malformed", "a graph without named values")
    return {
        str(name): value.values if isinstance(value, _Array) else value
        for name, value in named.items()
        if isinstance(name, str) and _is_bounded(value)
    }


def _is_bounded(value: Any) -> bool:
    """Whether a value is one that a structure has, and no list that holds others many times over."""
    if isinstance(value, (list, tuple)):
        return all(
            isinstance(v, PLAIN)
            or (isinstance(v, (list, tuple)) and len(v) <= 3 and all(isinstance(x, PLAIN) for x in v))
            for v in value
        )
    return isinstance(value, (_Array, np.ndarray, *PLAIN))


PLAIN = (bool, int, float, str, np.generic)
