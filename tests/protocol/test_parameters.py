"""An invalid parameter gives an error of one line, in a suite and in a case that was edited by hand."""

from __future__ import annotations

import importlib
import inspect
import json
from pathlib import Path
from typing import Any

import pytest

from harness.protocol.errors import UsageError
from harness.protocol.registry import PROGRAMS, parse_parameters
from harness.reference import __main__ as reference

REQUIRED: dict[str, dict[str, Any]] = {
    "ladder": {"workload": "random", "precision": "fp64"},
    "training_steps": {"precision": "fp64"},
    "data_parallel": {"batch_size": 1, "precision": "fp64"},
    "data": {"action": "read", "dataset": "all"},
    "hpo": {"space": {"hidden_dim": [4, 8]}},
    "transfer": {"task": "qm9"},
    "screening": {"workload": {}},
    "labels": {"calculator": "gfn2-xtb"},
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_misspelt_parameter_in_a_case_names_file_and_key(
    tmp_path: Path, program: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name = next(iter(PROGRAMS[program].parameters.model_fields))
    parameters = REQUIRED.get(program, {}) | {f"{name}x": 1}
    (tmp_path / "case.json").write_text(json.dumps({"id": "1", "program": program, "parameters": parameters}))
    assert reference.main([str(tmp_path)]) == 2
    message = f"case.json: unknown parameter '{name}x' (did you mean '{name}'?)"
    assert capsys.readouterr().err == f"error: {message}\n"
    assert json.loads((tmp_path / "events.jsonl").read_text().splitlines()[-1])["message"] == message


@pytest.mark.parametrize(
    ("program", "changes", "message"),
    [
        ("ladder", {"batch_size": 0}, "batch_size is 0, expected at least 1"),
        ("ladder", {"model": {"hiden_dim": 8}}, "unknown parameter 'model.hiden_dim' (did you mean 'hidden_dim'?)"),
        ("ladder", {"model": {"hidden_dim": 10**9}}, "model.hidden_dim is 1000000000, expected at most 65536"),
        ("ladder", {"model": {"backbone": "egnn", "num_radial": 6}},
         "model: num_radial is not a hyperparameter of the backbone 'egnn'; it has no specific ones"),
        ("ladder", {"atoms": [9, 2], "rounds": "many"},
         "rounds is 'many', expected a whole number; atoms: expected a range such as 2..100, got 9..2"),
        ("train", {"heads": "parallel"}, "heads: parallel heads need assigned sampling"),
        ("train", {"test_fraction": 0.5}, "test_fraction is 0.5, expected a number below 0.5"),
        ("precision", {"precisions": ["fp32", "fp64"]}, "precisions: expected fp64 first"),
        ("data_parallel", {"store_folder": "x", "atoms": [1, 2]}, "atoms: only shipped sets can be limited"),
        ("data_parallel", {"read_mode": "shared"}, "read_mode: shared has no effect without store_folder"),
        ("data_parallel", {"store_folder": "x", "replica_ranks": 4}, "replica_ranks has no effect if"),
        ("train", {"store_folder": "x", "read_mode": "shared", "store_backend": "rma"}, "store_backend has no effect"),
        ("data_parallel", {"implementation": "hydragnn", "store_folder": "x", "sampling_temperature": 2.0},
         "sampling_temperature has no effect on the training of hydragnn"),
        ("hpo", {"space": {"hydragnn": ["relu"]}}, "space: unknown hyperparameter 'hydragnn'"),
        ("hpo", {"space": {"hiden_dim": [4]}}, "space: unknown hyperparameter 'hiden_dim' (did you mean 'hidden_dim'"),
        ("hpo", {"trial": {"epochs": 0}}, "trial.epochs is 0, expected at least 1"),
        ("screening", {"retention": {"min": 2.0, "max": 1.0}}, "retention: min is 2, expected at most max, 1"),
    ],
)  # fmt: skip
def test_a_wrong_parameter_is_named(program: str, changes: dict[str, Any], message: str) -> None:
    parse_parameters(program, REQUIRED.get(program, {}))
    with pytest.raises(UsageError) as caught:
        parse_parameters(program, REQUIRED.get(program, {}) | changes)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "program",
    ["training_steps", "ladder", "dynamics", "precision", "data", "hpo", "transfer", "models", "labels", "screening"],
)
def test_a_negative_seed_is_refused(program: str) -> None:
    with pytest.raises(UsageError, match="seed is -1, expected at least 0"):
        parse_parameters(program, REQUIRED.get(program, {}) | {"seed": -1})


def test_null_means_the_default_unless_null_is_allowed() -> None:
    changes = REQUIRED["ladder"] | {"batch_size": None, "max_neighbours": None}
    parameters: Any = parse_parameters("ladder", changes)
    assert (parameters.batch_size, parameters.max_neighbours) == (16, None)


@pytest.mark.parametrize("program", PROGRAMS)
def test_run_function_takes_parameters_that_are_all_documented(program: str) -> None:
    run = importlib.import_module(PROGRAMS[program].module).run
    (first, *_) = inspect.signature(run, eval_str=True).parameters.values()
    assert first.annotation is PROGRAMS[program].parameters
    assert not [name for name, field in PROGRAMS[program].parameters.model_fields.items() if not field.description]
