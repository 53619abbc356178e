"""Write a suite that pretrains the best models of a search, as the paper does on 2,048 nodes."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from harness.experiments.hpo.metrics import build_tables
from harness.host.files import write_below
from harness.protocol.errors import UsageError, did_you_mean
from harness.protocol.programs.model import ModelParameters
from harness.results.runs import load_runs

SUITE_NAME = "pretrain-promoted"
# The overlays of `pretrain` that change parameters of training: the best ones are repeated there, to take precedence.
OVERLAYS = ("slurm", "local")
HEADER = """\
# Written by `harness promote {campaign}`: the trial with the best objective of each backbone.
{lines}
# `harness run {path} --system NAME` trains them; -n BACKBONE selects one.
"""


def write_best_suite(out: Path, campaign: str) -> Path:
    """Write the suite next to the runs and return its path; raise UsageError if no trial has an objective."""
    records = load_runs(out / "runs")
    known = sorted({r.campaign for r in records if r.program == "hpo"})
    if campaign not in known:
        raise UsageError(f"{out / 'runs'}: no campaign of searches named {campaign!r}{did_you_mean(campaign, known)}")
    searches = [r for r in records if r.campaign == campaign]
    best = build_tables(searches)["hpo_best"].sort_values("objective", ascending=False, kind="stable")
    best = best.drop_duplicates("backbone")
    if best.empty:
        raise UsageError(f"{searches[0].folder.parent}: no trial has an objective yet")
    unvaried_models = {r.case.get("name"): r.case["parameters"].get("trial", {}).get("model", {}) for r in searches}
    configurations, lines = {}, []
    for row in best.to_dict("records"):
        configurations[row["backbone"]] = split_configuration(
            json.loads(row["configuration"]), row["backbone"], unvaried_models[row["case"]]
        )
        lines.append(f"#   {row['backbone']}: trial {row['trial']} of {row['case']}, objective {row['objective']:.4g}")
    path = out / f"{SUITE_NAME}.yaml"
    text = HEADER.format(campaign=campaign, lines="\n".join(lines), path=path) + _to_yaml(build_suite(configurations))
    write_below(out, path.name, text)
    return path


def split_configuration(configuration: Mapping[str, Any], backbone: str, unvaried: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration of a trial as parameters of training, with the hyperparameters of the model in `model`.

    Args:
        configuration: The hyperparameters of the trial.
        backbone: The backbone of the trial.
        unvaried: The hyperparameters of the model that the search did not vary.
    """
    model = {k: v for k, v in configuration.items() if k in ModelParameters.model_fields}
    others = {k: v for k, v in configuration.items() if k not in ModelParameters.model_fields}
    return {"model": {**unvaried, **model, "backbone": backbone}, **others}


def build_suite(configurations: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return a suite that extends `pretrain`, and trains the configuration of each backbone on every system.

    Args:
        configurations: The parameters of training, by backbone.
    """
    names = list(next(iter(configurations.values())))
    parameters = {name: "{{ best[backbone]['" + name + "'] }}" for name in names}
    return {
        "name": SUITE_NAME,
        "title": "Pretraining of the best models of a hyperparameter search",
        "extends": "pretrain",
        "variables": {"best": {k: dict(v) for k, v in configurations.items()}},
        "parameters": parameters,
        "matrix": {"backbone": list(configurations)},
        "overlays": {name: {"parameters": dict(parameters)} for name in OVERLAYS},
    }


def _to_yaml(plain: Mapping[str, Any]) -> str:
    text = io.StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.width = 110
    yaml.dump(plain, text)
    return text.getvalue()
