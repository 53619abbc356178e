"""Decode pickled PyTorch Geometric graphs to plain data safely: nothing that a pickle names is imported or run."""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from harness.reference.datasets.parsing.base import MAX_STRUCTURE_BYTES
from harness.reference.datasets.parsing.structure_builder import InvalidStructure
from harness.reference.errors import get_first_line

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
MAGIC_NUMBER = 0x1950A86A20F9469CFC6C  # of torch.save's format before zip files, in which pickles store tensors
ITEM_BYTES = 64  # bytes of the budget that each item of a collection takes
COLLECTIONS = (set, frozenset, dict, list, tuple)
GRAPHS = {
    "torch_geometric.data.data": {"Data", "DataEdgeAttr", "DataTensorAttr"},
    "torch_geometric.data.storage": {"GlobalStorage", "BaseStorage", "NodeStorage", "EdgeStorage"},
    "torch_geometric.data": {"Data"},
}
PLAIN_TYPES = (bool, int, float, str, np.generic)
MAX_OPERATIONS = 200_000  # operations in a pickle; a graph has a few hundred
LINES = pickletools.UP_TO_NEWLINE
# number of bytes that encode the length of an argument
PREFIX = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}
ARGUMENTS = {ord(op.code): op.arg.n if op.arg else 0 for op in pickletools.opcodes}
TWO_LINES = frozenset(ord(op.code) for op in pickletools.opcodes if op.name in ("GLOBAL", "INST"))
PUT, LONG_BINPUT, STOP = ord("p"), ord("r"), ord(".")


class InertObject:
    """A substitute for a class that the pickle names: it stores its state and does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.state: dict[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        self.state = state if isinstance(state, dict) else {}

    def __setitem__(self, key: Any, value: Any) -> None:
        self.state[key] = value


class _StorageType(NamedTuple):
    dtype: str


class Budget:
    """The number of bytes that a pickle and its nested pickles may still allocate; they can copy bytes many times."""

    def __init__(self) -> None:
        self.left = 4 * MAX_STRUCTURE_BYTES

    def spend(self, size: int) -> None:
        """Subtract some bytes; raises InvalidStructure if fewer remain."""
        self.left -= size
        if self.left < 0:
            raise InvalidStructure("too large", f"expands to more than {4 * MAX_STRUCTURE_BYTES >> 20} MB")


def load_pickle(data: bytes | memoryview) -> Any:
    """Return the content of a pickle; raises InvalidStructure unless it is plain data, arrays, tensors or graphs."""
    raw = bytes(data)
    try:
        return _Unpickler(raw[: find_pickle_end(raw)], Budget()).load()
    except InvalidStructure:
        raise
    except Exception as error:  # a hostile or damaged pickle may raise any error
        raise InvalidStructure("corrupt", f"cannot be unpickled ({get_first_line(error)})") from None


def _load_storage(budget: Budget, data: bytes) -> NDArray[Any]:
    """Return the storage of a tensor from a file of torch.save inside the pickle: five pickles, then raw numbers."""
    budget.spend(len(data))
    position, values = 0, []
    for _ in range(5):  # magic number, version, machine, storage, the key of the only storage
        stop = find_pickle_end(data, position)
        values.append(_Unpickler(data[position:stop], budget).load())
        position = stop
        if values[0] != MAGIC_NUMBER:
            raise InvalidStructure("corrupt", "a tensor is not stored the way torch stores it in pickles")
    storage = values[3]
    if not isinstance(storage, _StorageReference):
        raise InvalidStructure("corrupt", "a tensor's storage is missing")
    (count,) = np.frombuffer(data[position : position + 8], dtype="<i8").tolist()
    if count != storage.length:
        raise InvalidStructure("corrupt", f"a tensor's storage of {storage.length} numbers says {count}")
    values_read = np.frombuffer(data[position + 8 :], dtype=storage.dtype)
    if len(values_read) < count:
        raise InvalidStructure("truncated", f"a tensor's storage has {len(values_read)} of {count} numbers")
    return values_read[:count]


class _StorageReference(NamedTuple):
    dtype: str
    length: int


def _rebuild_tensor(budget: Budget, storage: Any, offset: int, size: Any, stride: Any, *_: Any) -> NDArray[Any]:
    """Return a copy of a strided view of a storage, after checking its bounds."""
    if not isinstance(storage, np.ndarray):
        raise InvalidStructure("corrupt", "a tensor without a storage")
    size, stride = tuple(map(int, size)), tuple(map(int, stride))
    count = math.prod(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if min((offset, *size, *stride), default=0) < 0 or (count and last >= len(storage)) or count > len(storage):
        raise InvalidStructure("corrupt", f"a tensor of shape {size} does not fit its storage of {len(storage)}")
    budget.spend(count * storage.itemsize)
    if not count:
        return np.empty(0, dtype=storage.dtype).reshape(size)
    steps = tuple(step * storage.itemsize for step in stride)
    return np.lib.stride_tricks.as_strided(storage[offset:], size, steps, writeable=False).copy()


class _NumpyType:
    """A numpy type of plain numbers."""

    def __init__(self, code: Any, *_: Any) -> None:
        if not isinstance(code, str):
            raise InvalidStructure("corrupt", "a numpy dtype without a name")
        self.dtype = np.dtype(code)
        if self.dtype.hasobject or self.dtype.kind not in "biufSU":
            raise InvalidStructure("corrupt", f"numbers of type {code!r}")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] == ">":
            self.dtype = self.dtype.newbyteorder(">")


class _NumpyArray:
    """A numpy array that is built from its state in a pickle."""

    def __init__(self, *_: Any) -> None:
        self.values: NDArray[Any] = np.empty(0)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, numpy_type, column_major, raw = state
        self.values = _rebuild_array(raw, numpy_type, shape, "F" if column_major else "C").values


def _rebuild_array(raw: Any, numpy_type: _NumpyType, shape: Any, order: Any) -> _NumpyArray:
    array = _NumpyArray()
    array.values = np.frombuffer(raw, dtype=numpy_type.dtype).reshape(shape, order=order)
    return array


def _rebuild_scalar(numpy_type: _NumpyType, data: bytes) -> Any:
    return np.frombuffer(data, dtype=numpy_type.dtype, count=1)[0]


def _encode_latin1(budget: Budget, text: str, encoding: str = "latin1") -> bytes:
    budget.spend(len(text))
    return text.encode("latin1")


def _build_collection(kind: Callable[..., Any]) -> Callable[..., Any]:
    def build(budget: Budget, items: Any = (), *_: Any) -> Any:
        budget.spend(ITEM_BYTES * len(items))
        return kind(items)

    return build


# Callables that subtract the size of their result from the budget of a pickle.
METERED: dict[tuple[str, str], Callable[..., Any]] = {
    **{(module, k.__name__): _build_collection(k) for k in COLLECTIONS for module in ("builtins", "__builtin__")},
    ("collections", "OrderedDict"): _build_collection(OrderedDict),
    ("_codecs", "encode"): _encode_latin1,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch.storage", "_load_from_bytes"): _load_storage,
}
# Types that pickles name only as arguments of other callables are replaced by a placeholder.
ALLOWED: dict[tuple[str, str], Any] = {
    **{
        (module, name): InertObject
        for name in ("int", "float", "bool", "str")
        for module in ("builtins", "__builtin__")
    },
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): _NumpyType,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _NumpyArray for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _rebuild_scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _rebuild_array for core in ("core", "_core")},
    **{("torch", name): _StorageType(dtype) for name, dtype in STORAGES.items()},
}


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes, budget: Budget) -> None:
        super().__init__(io.BytesIO(data))
        self.budget = budget

    def find_class(self, module: str, name: str) -> Any:
        if name in GRAPHS.get(module, ()):
            return InertObject
        if metered := METERED.get((module, name)):
            return partial(metered, self.budget)
        allowed: Callable[..., Any] | None = ALLOWED.get((module, name))
        return allowed if allowed is not None else _refuse(module, name)

    def persistent_load(self, saved: Any) -> _StorageReference:
        if not (isinstance(saved, tuple) and len(saved) >= 5 and saved[0] == "storage"):
            raise InvalidStructure("corrupt", "a persistent id that is not a tensor storage")
        kind, count = saved[1], saved[4]
        if not isinstance(kind, _StorageType) or not isinstance(count, int):
            raise InvalidStructure("corrupt", "a tensor whose elements are not plain numbers")
        return _StorageReference(kind.dtype, count)


def _refuse(module: str, name: str) -> NoReturn:
    raise InvalidStructure(
        "unsafe pickle", f"it asks for {module}.{name}, which is not part of a graph; no code was run"
    )


def load_graph(data: bytes | memoryview) -> dict[str, Any]:
    """Return the values of a PyTorch Geometric graph of any version by name: arrays, numbers, text and short lists.

    Other values are dropped. Raises InvalidStructure if the pickle is not a graph.
    """
    graph = load_pickle(data)
    if not isinstance(graph, InertObject):
        raise InvalidStructure("malformed", f"holds a {type(graph).__name__}, expected a graph (torch_geometric Data)")
    store = graph.state.get("_store")
    named = store.state.get("_mapping", {}) if isinstance(store, InertObject) else graph.state
    if not isinstance(named, dict):
        raise InvalidStructure("malformed", "a graph without named values")
    return {
        str(name): value.values if isinstance(value, _NumpyArray) else value
        for name, value in named.items()
        if isinstance(name, str) and _is_bounded(value)
    }


def _is_bounded(value: Any) -> bool:
    """Return whether a value has a plausible size, unlike nested lists that repeat other values many times."""
    if isinstance(value, (list, tuple)):
        return all(
            isinstance(v, PLAIN_TYPES)
            or (isinstance(v, (list, tuple)) and len(v) <= 3 and all(isinstance(x, PLAIN_TYPES) for x in v))
            for v in value
        )
    return isinstance(value, (_NumpyArray, np.ndarray, *PLAIN_TYPES))


def find_pickle_end(data: bytes, start: int = 0) -> int:
    """Return the end of the pickle that begins at `start`.

    Raises InvalidStructure if the pickle is truncated or could exhaust memory: too many operations, an argument longer
    than the data, or a memo index beyond the number of operations.
    """
    if len(data) > MAX_STRUCTURE_BYTES:
        raise InvalidStructure("too large", f"a pickle of {len(data)} bytes, more than {MAX_STRUCTURE_BYTES}")
    position, size = start, len(data)
    for count in range(MAX_OPERATIONS):
        if position >= size:
            break
        code = data[position]
        position += 1
        if code == STOP:
            return position
        length = ARGUMENTS.get(code)
        if length is None:
            raise InvalidStructure("corrupt", f"cannot be unpickled (no operation {code:#x})")
        if length > 0:
            if code == LONG_BINPUT:
                _check_memo(int.from_bytes(data[position : position + 4], "little"), count)
            position += length
        elif length == LINES:
            position = _skip_lines(data, position, code, count)
        elif length < 0:
            prefix = PREFIX[length]
            position += prefix + int.from_bytes(data[position : position + prefix], "little")
    else:
        raise InvalidStructure("too large", f"a pickle of more than {MAX_OPERATIONS} operations")
    raise InvalidStructure("corrupt", "cannot be unpickled (truncated)")


def _skip_lines(data: bytes, position: int, code: int, count: int) -> int:
    stop = data.find(b"\n", position)
    if stop < 0:
        raise InvalidStructure("corrupt", "cannot be unpickled (truncated)")
    if code == PUT:
        text = data[position:stop]
        _check_memo(int(text) if text.isdigit() and len(text) < 10 else -1, count)
    return _skip_lines(data, stop + 1, 0, count) if code in TWO_LINES else stop + 1


def _check_memo(index: int, count: int) -> None:
    if not 0 <= index <= count:
        raise InvalidStructure("corrupt", f"cannot be unpickled (index {index} in a memo of {count})")
