"""What the parameters of all programs have in common, and how a wrong one is described."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from harness.protocol.errors import did_you_mean, shortened
from harness.protocol.types import Count, StrictModel, check_unique

Model = TypeVar("Model", bound=BaseModel)
PrecisionName = Literal["fp64", "fp32", "bf16"]
BackendName = Literal["gloo", "nccl", "xccl"]
DeviceName = Literal["cpu", "cuda", "xpu"]
MessagesName = Literal["plain", "fused"]
StoreBackend = Literal["auto", "rma", "ddstore", "ddstore-libfabric"]
ReadMode = Literal["on_demand", "preload", "shared", "distributed"]
Sampling = Literal["mixed", "assigned"]
SPLIT_SEED = 17  # the seed with which even a shipped set of 15 groups has some structures in every split
Share = Annotated[float, Field(gt=0, lt=1)]
HeldOutShare = Annotated[float, Field(gt=0, lt=0.5)]
Names = Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(check_unique)]


@dataclass(frozen=True)
class PrecisionTypes:
    """The names of the types of a precision, as torch has them: of parameters and results, and of matrix products."""

    dtype: str
    autocast: str | None
    parameter_bytes: int


PRECISIONS: dict[PrecisionName, PrecisionTypes] = {
    "fp64": PrecisionTypes("float64", None, 8),
    "fp32": PrecisionTypes("float32", None, 4),
    "bf16": PrecisionTypes("float32", "bfloat16", 4),
}


def check_range(atoms: tuple[int, int]) -> tuple[int, int]:
    """Return the range unchanged; raise ValueError where its ends are in the wrong order."""
    if atoms[0] > atoms[1]:
        raise ValueError(f"expected a range such as 2..100, got {atoms[0]}..{atoms[1]}")
    return atoms


AtomRange = Annotated[tuple[Count, Count], AfterValidator(check_range)]


class ParameterGroup(StrictModel):
    """Parameters that belong together: bounds, defaults and documentation of each, declared once."""

    model_config = ConfigDict(use_attribute_docstrings=True)


class Parameters(ParameterGroup):
    """The parameters of a program; a null is the same as no value, but where a parameter may be null."""

    @model_validator(mode="before")
    @classmethod
    def drop_nulls(cls, given: Any) -> Any:
        """Leave out what is null and may not be."""
        if not isinstance(given, dict) or None not in given.values():
            return given
        nullable = _nullable(cls)
        return {name: value for name, value in given.items() if value is not None or name in nullable}


@cache
def _nullable(model: type[BaseModel]) -> frozenset[str]:
    fields = model.model_fields.items()
    return frozenset(name for name, field in fields if type(None) in get_args(field.annotation))


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


def parse_model(model: type[Model], given: Mapping[str, Any]) -> Model:
    """Return the model of plain data; raise ValueError with every problem on one line."""
    try:
        return model.model_validate(dict(given))
    except ValidationError as error:
        raise ValueError(describe_errors(error, model)) from None


def describe_errors(error: ValidationError, model: type[BaseModel]) -> str:
    """Return every problem of a model on one line: the key, what it holds, what was expected, a near name."""
    return "; ".join(dict.fromkeys(_describe(problem, model) for problem in error.errors(include_url=False)))


def _describe(problem: Any, model: type[BaseModel]) -> str:
    place = [part for part in problem["loc"] if not (isinstance(part, str) and ("[" in part or "-" in part))]
    name, context = ".".join(map(str, place)), problem.get("ctx", {})
    match problem["type"]:
        case "missing":
            return f"{name} is missing"
        case "extra_forbidden":
            return f"unknown parameter {name!r}{did_you_mean(str(place[-1]), _names_beside(place, model))}"
        case "literal_error":
            known = [word.strip(" '") for word in context["expected"].replace(" or ", ", ").split(",")]
            return f"{name} is {shortened(problem['input'])}{did_you_mean(str(problem['input']), known)}"
        case "value_error":
            return f"{name}: {context['error']}" if name else str(context["error"])
    expected = EXPECTED.get(problem["type"], problem["msg"]).format(**context)
    return f"{name} is {shortened(problem['input'])}, {expected}"


def _names_beside(place: list[Any], model: type[BaseModel]) -> list[str]:
    """Return the names of the fields of the model that an unknown name stands in."""
    for part in place[:-1]:
        field = model.model_fields.get(part) if isinstance(part, str) else None
        if field is not None:
            model = next((m for m in _members(field.annotation) if hasattr(m, "model_fields")), model)
    return list(model.model_fields)


def _members(annotation: Any) -> Iterator[Any]:
    yield annotation
    for argument in get_args(annotation):
        yield from _members(argument)
