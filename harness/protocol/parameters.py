"""Types and validation that the parameters of all programs share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from harness.protocol.errors import did_you_mean, shorten
from harness.protocol.types import PositiveInt, StrictModel, check_unique
from harness.protocol.upgrade import find_new_name

Model = TypeVar("Model", bound=BaseModel)
PrecisionName = Literal["fp64", "fp32", "bf16"]
BackendName = Literal["gloo", "nccl", "xccl"]
DeviceName = Literal["cpu", "cuda", "xpu"]
MessageBackendName = Literal["unfused", "fused"]
StoreBackend = Literal["auto", "rma", "ddstore", "ddstore-libfabric"]
ReadMode = Literal["on_demand", "preload", "shared", "distributed"]
Sampling = Literal["mixed", "assigned"]
ImplementationName = Literal["reference", "hydragnn"]
SPLIT_SEED = 17  # with this seed, even a shipped set of 15 groups of structures has structures in every split
Fraction = Annotated[float, Field(gt=0, lt=1)]
TestFraction = Annotated[float, Field(gt=0, lt=0.5)]
Names = Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(check_unique)]


@dataclass(frozen=True)
class PrecisionTypes:
    """The types of a precision, by their names in torch.

    Attributes:
        dtype: the type of parameters and results.
        autocast: the type of matrix products, if it differs.
        parameter_bytes: the size of a parameter in bytes.
    """

    dtype: str
    autocast: str | None
    parameter_bytes: int


PRECISIONS: dict[PrecisionName, PrecisionTypes] = {
    "fp64": PrecisionTypes("float64", None, 8),
    "fp32": PrecisionTypes("float32", None, 4),
    "bf16": PrecisionTypes("float32", "bfloat16", 4),
}
# The type of the results in each precision, by its name in logs.
RESULT_DTYPES = {str(name): f"torch.{types.dtype}" for name, types in PRECISIONS.items()}


def check_range(atoms: tuple[int, int]) -> tuple[int, int]:
    """Return the range unchanged; raise ValueError if its ends are in the wrong order."""
    if atoms[0] > atoms[1]:
        raise ValueError(f"expected a range such as 2..100, got {atoms[0]}..{atoms[1]}")
    return atoms


AtomRange = Annotated[tuple[PositiveInt, PositiveInt], AfterValidator(check_range)]


class ParameterGroup(StrictModel):
    """Parameters that belong together, with the bounds, the default and the documentation of each."""

    model_config = ConfigDict(use_attribute_docstrings=True)


class Parameters(ParameterGroup):
    """The parameters of a program; a null parameter has its default, unless null is one of its values."""

    @model_validator(mode="before")
    @classmethod
    def drop_nulls(cls, values: Any) -> Any:
        """Remove the parameters that are null and may not be null, so that they get their defaults."""
        if not isinstance(values, dict) or None not in values.values():
            return values
        replaced = find_replaced_nulls(cls)
        return {name: value for name, value in values.items() if value is not None or name not in replaced}


@cache
def find_replaced_nulls(model: type[BaseModel]) -> frozenset[str]:
    """Return the names of the fields that have a default and may not be null, so that null means the default."""
    fields = {name: field for name, field in model.model_fields.items() if not field.is_required()}
    return frozenset(name for name, field in fields.items() if type(None) not in get_args(field.annotation))


# What was expected, by type of pydantic's error.
EXPECTED = {
    **dict.fromkeys(("int_type", "int_parsing", "int_parsing_size", "int_from_float"), "expected a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "expected a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "expected true or false"),
    **dict.fromkeys(("list_type", "tuple_type"), "expected a list"),
    **dict.fromkeys(("dict_type", "model_type"), "expected a mapping"),
    "string_type": "expected text",
    "greater_than": "expected a number above {gt:g}", "greater_than_equal": "expected at least {ge:g}",
    "less_than": "expected a number below {lt:g}", "less_than_equal": "expected at most {le:g}",
    "too_short": "expected at least {min_length} value", "too_long": "expected at most {max_length} values",
}  # fmt: skip


def parse_model(model: type[Model], values: Mapping[str, Any]) -> Model:
    """Build a model from plain data; raise ValueError with all problems on one line."""
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        raise ValueError(describe_errors(error, model)) from None


def describe_errors(error: ValidationError, model: type[BaseModel]) -> str:
    """Describe all problems of a model on one line: the key and the value of each, and the expected type or name."""
    return "; ".join(dict.fromkeys(_describe(problem, model) for problem in error.errors(include_url=False)))


def _describe(problem: Any, model: type[BaseModel]) -> str:
    key_path = [part for part in problem["loc"] if not (isinstance(part, str) and ("[" in part or "-" in part))]
    name, context = ".".join(map(str, key_path)), problem.get("ctx", {})
    match problem["type"]:
        case "missing":
            return f"{name} is missing"
        case "extra_forbidden":
            siblings = list_sibling_names(model, key_path)
            if (new := find_new_name(str(key_path[-1]), siblings)) is not None:
                return f"parameter {name!r} is now called {new!r}"
            return f"unknown parameter {name!r}{did_you_mean(str(key_path[-1]), siblings)}"
        case "literal_error":
            known = [word.strip(" '") for word in context["expected"].replace(" or ", ", ").split(",")]
            return f"{name} is {shorten(problem['input'])}{did_you_mean(str(problem['input']), known)}"
        case "value_error":
            return f"{name}: {context['error']}" if name else str(context["error"])
    expected = EXPECTED.get(problem["type"], problem["msg"]).format(**context)
    return f"{name} is {shorten(problem['input'])}, {expected}"


def list_sibling_names(model: type[BaseModel], key_path: Sequence[int | str]) -> list[str]:
    """Return the field names of the innermost model on a key path that ends in an unknown name."""
    for part in key_path[:-1]:
        field = model.model_fields.get(part) if isinstance(part, str) else None
        if field is not None:
            model = next((m for m in _iter_members(field.annotation) if hasattr(m, "model_fields")), model)
    return list(model.model_fields)


def _iter_members(annotation: Any) -> Iterator[Any]:
    """Yield a type and all the types that it is composed of."""
    yield annotation
    for argument in get_args(annotation):
        yield from _iter_members(argument)


def check_store_options(
    store_folder: str, read_mode: ReadMode, replica_ranks: int | None, store_backend: StoreBackend
) -> None:
    """Raise ValueError for options of reading stores that have no effect."""
    if not store_folder and read_mode != "preload":
        raise ValueError(f"read_mode: {read_mode} has no effect without store_folder; shipped sets are preloaded")
    if read_mode != "distributed":
        if replica_ranks is not None:
            raise ValueError(f"replica_ranks has no effect if read_mode is {read_mode}, only if it is distributed")
        if store_backend != "auto":
            raise ValueError(f"store_backend has no effect if read_mode is {read_mode}, only if it is distributed")
