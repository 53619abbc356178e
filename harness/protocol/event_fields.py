"""The fields of each event and fact, by program, with what is physically possible.

The unit of a field decides its bounds. Fields that are not listed may hold anything; a name that ends with `?` may be
absent. Events of programs that are not part of the harness are checked for their common fields alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, NotRequired

from pydantic import ConfigDict, Field, with_config
from typing_extensions import TypedDict

LARGE = 1e100
Number = Annotated[float, Field(ge=-LARGE, le=LARGE)]
NotNegative = Annotated[float, Field(ge=0, le=LARGE)]
Positive = Annotated[float, Field(gt=0, le=LARGE)]
Seconds = Annotated[float, Field(ge=0, le=3.2e8)]  # ten years
Duration = Annotated[float, Field(gt=0, le=3.2e8)]
Time = Annotated[float, Field(ge=0, le=4.2e9)]  # Unix seconds, to the year 2100
Bytes = Annotated[float, Field(ge=0, le=1e16)]
Rate = Annotated[float, Field(ge=0, le=1e16)]
Count = Annotated[int, Field(ge=0, le=10**16)]
Several = Annotated[int, Field(ge=1, le=10**16)]
Share = Annotated[float, Field(ge=0, le=1.001)]
Atom = Annotated[int, Field(ge=0, le=118)]
Flag = bool
Text = str
Counts = dict[str, Count]
Error = NotNegative
Energy = Number
Fields = Mapping[str, Any]


def typed(fields: Fields) -> Any:
    """Return the type of a mapping that has at least these fields."""
    members = {k.rstrip("?"): NotRequired[v] if k.endswith("?") else v for k, v in fields.items()}
    mapping = TypedDict("mapping", members)  # type: ignore[misc]
    return with_config(ConfigDict(strict=True, extra="allow", allow_inf_nan=False))(mapping)


def listed(fields: Fields) -> Any:
    """Return the type of a list of such mappings."""
    return list[typed(fields)]  # type: ignore[misc]


def mapped(kind: Any) -> Any:
    """Return the type of a mapping from names to values of one kind."""
    return dict[str, kind]


COMMON: dict[str, Fields] = {
    "start": {"version?": Several, "program?": Text, "case?": Text | None},
    "progress": {"done": Count, "total": Count, "what?": Text},
    "fact": {"name": Text, "value": Any},
    "done": {},
    "error": {"message": Text, "kind?": Text | None},
}
STAGED: dict[str, Fields] = {
    "warm_up": {
        "stage": Text, "first_s": Seconds, "peak_bytes?": Bytes | None, "bytes?": NotNegative | None,
        "flops?": listed({"of": Text, "dtype": Text, "flops": NotNegative}) | None,
    },
    "unavailable": {"stage": Text, "reason": Text},
}  # fmt: skip
TIMED: Fields = {
    "stage": Text, "round": Count, "batch": Count, "structures": Several, "device_s": Duration, "ended_s?": Time,
    "load_1min?": NotNegative, "finite?": Flag,
}  # fmt: skip
MAES: Fields = {"energy_mae_ev_per_atom": Error | None, "force_mae_ev_per_a": Error | None}
HELD_OUT: Fields = {
    "head": Text, "set": Text, "role": Text, "level": Text, "structures": Count, "atoms?": Count,
    "unseen_elements?": Count, **MAES,
    **{f"{name}?": Error | None for name in (
        "energy_rmse_ev_per_atom", "force_rmse_ev_per_a", "composition_mae_ev_per_atom",
        "composition_rmse_ev_per_atom", "mean_mae_ev_per_atom", "zero_force_mae_ev_per_a", "zero_force_rmse_ev_per_a",
    )},
}  # fmt: skip
SIZED: Fields = {"atoms": NotNegative, "edges": NotNegative}
EVENTS: dict[str, dict[str, Fields]] = {
    "ladder": {
        **STAGED,
        "sample": {
            **TIMED, "neighbours_s": Seconds, "collate_s": Seconds, "transfer_s": Seconds,
            "energy_dtype?": Text, "force_dtype?": Text,
            **{f"{name}?": Error | None for name in (
                "energy_error_ev_per_atom", "force_error_ev_per_a", "energy_scale_ev_per_atom", "force_scale_ev_per_a",
            )},
        },
        "padding": {"stage": Text, "shapes": list[Any], "empty_atoms": Share, "empty_edges": Share},
        "profile": {
            "stage": Text, "groups?": listed({"group": Text, "ms": NotNegative, "share": NotNegative}),
            "rows": listed({"operation": Text, "calls": Count, "ms": NotNegative, "share": NotNegative}),
        },
    },
    "training_steps": {
        **STAGED,
        "sample": {
            **TIMED, "load_1min": NotNegative, "dtype?": Text, "loss_error?": Error | None,
            "gradient_error?": Error | None,
        },
    },
    "data": {
        "sample": {"mode?": Text, "seconds": Duration, "batch": Several, "bytes": Bytes, "ranks?": Several},
    },
    "data_parallel": {
        "epoch": {
            "epoch": Count, "discarded": Flag, "graphs": Count, "train_s": Duration, "train_s_mean": Duration,
            "wait_s?": Seconds, "wait_s_mean?": Seconds,
        },
        "sample": {
            "epoch": Count, "step": Count, "discarded": Flag, "seconds": Duration, "busy?": Duration,
            "seconds_mean?": Seconds, "wait_mean?": Seconds, "loss?": Number, **SIZED,
            "atoms_most?": NotNegative, "edges_most?": NotNegative,
        },
        "own_step": {
            "epoch": Count, "step": Count, "discarded": Flag, "exchanged": Flag, "busy": Duration, **SIZED,
        },
        "compute_only": {"step": Count, "seconds": Duration, "seconds_mean?": Seconds},
        "exchange": {"bytes": Bytes, "seconds": Duration},
        "region": {"step": Count, "name": Text, "seconds": Seconds, "seconds_mean": Seconds},
    },
    "train": {
        "epoch": {
            "epoch": Count, "step": Count, "loss?": Number | None,
            **{f"{prefix}{name}?": kind for prefix in ("", "validation_") for name, kind in MAES.items()},
            "validation_loss?": Number | None, "learning_rate?": Number | None, "seconds": Seconds,
            "wait_s?": Seconds | None, "graphs_per_s": Rate, "best?": Flag,
        },
        "head": {"epoch": Count, "head": Text, "set": Text, "split": Text, "structures?": Count, **MAES},
        "resumed": {"step": Count, "epoch": Count},
        "skipped": {"step": Count},
        "stopped": {"why": Text},
    },
    "precision": {
        "sample": {
            "task": Text, "precision": Text, "round": Count, "discarded": Flag, "structures": Several,
            "seconds": Duration, "loss?": Number | None,
        },
        "prediction": {
            "precision": Text, "head": Text, "structures": Several, **MAES, "force_scale_ev_per_a": Error | None,
            **{f"{name}_{end}": Error | None for name in ("energy_off", "force_off")
               for end in (("mean_ev_per_atom", "max_ev_per_atom") if name == "energy_off"
                           else ("mean_ev_per_a", "max_ev_per_a"))},
        },
        "trained": {"precision": Text, "rows": listed(HELD_OUT)},
        "module": {
            "precision": Text, "module": Text, "kind": Text, "input": Error | None, "output": Error | None,
        },
    },
    "hpo": {
        "trial": {
            "trial": Count, "configuration": dict[str, Text | Flag | Number], "backbone": Text, "state": Text,
            "reason?": Text | None, "objective": Number | None,
            **{f"{name}?": kind for name, kind in MAES.items()}, "graphs_per_s?": Rate | None,
            "epochs?": Count | None, "began_s": Time, "ended_s": Time, "nodes": list[Text], "node_hours": NotNegative,
            "folder": Text,
        },
    },
    "transfer": {
        "task": {
            "task": Text, "title?": Text, "target?": Text, "unit": Text, "available": Flag, "needs?": Text | None,
            **{f"{name}?": Text | None for name in ("role", "level", "kind", "splits")}, "per_atom?": Flag,
            "structures?": Count, "left_out?": Counts | None, "folds?": Count | None, "unseen_elements?": Count,
            "published?": listed({
                "model": Text, "value": Number, "unit": Text, "train": Count, "source": Text, "subset": Text,
                "quantity?": Text, "spread?": NotNegative | None,
            }) | None,
        },
        "baseline": {
            "subset": Text, "labels": Count, "seed": Count, "test": Count, "composition_mae?": Error | None,
            "mean_mae?": Error | None, "zero_force_mae?": Error | None,
        },
        "fit": {
            "subset": Text, "labels": Count, "seed": Count, "mode": Text, "test": Count, "seconds?": Seconds,
            "mae": Error | None, "rmse?": Error | None, "force_mae": Error | None,
        },
    },
    "screening": {
        "rank": {
            "rank": Count, "candidates": Count, "evaluated": Count, **SIZED, "make_s": Seconds, "device_s": Seconds,
            "wall_s": Seconds, "warm_up_s?": Seconds, "memory_bytes": Bytes, "memory_peak_bytes": Bytes,
            "memory_last_bytes": Bytes, "left_out": Counts, "why_eager?": Text | None,
        },
        "proof": {"parts": Count, "candidates": Count, "evaluated": Count, "checksum": Text, "expected": Text},
        "found": {"parts": Count, "files": Count, "useless?": list[Text]},
        "best": {
            "place": Several, "candidate": Count,
            **{f"{name}?": Text | None for name in ("formula", "prototype", "volume", "stream")},
            "energy_ev_per_atom": Energy, "beyond_ev_per_atom?": Energy | None, "spread_ev_per_atom?": Error | None,
            "force_max_ev_per_a": Error, "distance?": NotNegative | None,
        },
        "calibration": {
            "threshold": NotNegative, "share": Share, "false_alarms": Share, "calibrated_on": Count,
            "tested_on": Count, "strange": Count, "detected": dict[str, Share],
        },
        "uncertainty": {
            "kind": Text, "candidates": Count,
            **{f"{way}_ev_per_atom": Error | None for way in ("heads", "dropout", "ensemble")},
        },
        "outside": {"candidates": Count, "reasons": Counts},
        "unrelaxed": {"of": Count, "reasons": Counts},
        "overlap": {"kind": Text, "structures": Count, "mean": NotNegative, "beyond": Share},
        "elements": {"candidates": Counts, "never_seen": list[Atom], "trained?": Counts},
        "embedding": {"kind": Text, "x": list[Number], "y": list[Number]},
        "label": {
            "head": Text, "level": Text, "formula?": Text, "off_ev_per_atom": Error, "force_off_ev_per_a": Error,
            "distance?": NotNegative, "flagged": Flag,
        },
        "unlabelled": {"why": Text, "failed?": Counts},
        "relaxed": {
            "candidate": Count, **{f"{name}?": Text for name in ("formula", "prototype", "volume")},
            "converged": Flag, "steps": Count,
            "before_ev_per_atom": Energy, "after_ev_per_atom": Energy, "volume_before": Positive,
            "volume_after": Positive, "force_max_ev_per_a": Error, "file?": Text | None,
        },
    },
    "hydragnn": {
        "epoch": {"epoch": int, "loss": Number | None, "source": Text, "line": Count},
        "tasks": {"epoch": int, "split": Text, "errors": list[Number | None]},
        "timer": {"rank": Count, "name": Text, "seconds": Seconds | None},
        "sample": {"structures_per_s": Rate | None},
        "region": {"rank": Count, "name": Text, "calls": Count, "seconds": Seconds},
        "energy": {"tool": Text, "rank": Count, "name": Text, "calls": Count, "joule": NotNegative},
    },
    "omnistat": {},
}  # fmt: skip
SQUARE: Fields = {"dtype": Text, "gflop_per_s": Positive}
SPREAD: Fields = {
    "bins_per_octave": Several, "zero": Count, "negative": list[Any], "positive": list[Any],
    **{f"{name}?": Number | None for name in ("mean", "sd", "rms", "min", "max")}, "quantiles?": dict[str, Number],
}  # fmt: skip
READING: Fields = {
    "mode": Text, "ranks": Several, "nodes?": Several, "sets?": list[Text], "roles?": list[Text], "split?": Text,
    "samples?": Count, "open_s?": Seconds, "rss_bytes?": Number, "bytes_per_sample_mean?": NotNegative,
    "floor?": typed({"us_per_sample": NotNegative, "what": Text}) | None, "width?": Several | None,
}  # fmt: skip
RANGE = typed({"low": Number, "high": Number, "log": Flag})
FACTS: dict[str, Fields] = {
    "model": {
        "config?": dict[str, Any], "trained?": Flag, "parameters?": Count, "trained_parameters?": Count,
        "held_out?": listed(HELD_OUT), "untrained_heads?": list[Text], "compiled?": Flag, "threads?": Several,
        **{f"{name}?": Text | None for name in ("checkpoint", "precision", "device", "messages", "why_plain")},
    },
    "workload": {
        **{f"{name}?": Count for name in ("structures", "edges", "batches", "steps_per_epoch", "epochs", "total")},
        **{f"{name}?": Several for name in ("batch_size", "global_batch_size")}, "max_neighbours?": Count | None,
        "sets?": listed({"set": Text, "role": Text, "head?": Text, "level?": Text, "train?": Count | None}),
        **{f"{name}?": Text for name in ("name", "sampling", "read", "units", "balance")},
        "elements_not_trained?": list[Atom], "elements?": Count | list[Atom], "temperature?": NotNegative,
        "seed?": int, "split_seed?": int | None,
    },
    "observed": {
        "requested?": Text, "parameters?": list[Text], "device?": Text, "device_name?": Text | None,
        **{f"{name}?": Text | None for name in ("autocast", "why_eager", "why_plain", "messages", "torch", "backend")},
        **{f"{name}?": Text | list[Text] | None for name in (
            "matrix_layers", "pooled", "energies", "loss", "forces",
        )},
        "compiled?": Flag, "threads?": Several, "world_size?": Several,
        "precisions?": dict[str, dict[str, Text | list[Text] | None]],
    },
    "gate": {
        "threshold?": NotNegative, "live_heads?": list[list[Text]], "mean_weight?": dict[str, Share],
        "energy_error_ev_per_atom?": Error | None, "right_branch?": Share | None,
    },
    "ceilings": {
        "copy_gb_per_s?": Positive, "squares?": listed(SQUARE), "products?": listed({**SQUARE, "of": Text}),
    },
    "overhead": {"optimizer_s": Seconds, "search_s?": Seconds},
    "warm_start": {"told?": Count, "outside?": Count, "failed?": Count},
    "search": {
        "space?": mapped(RANGE | typed({"values": list[Any]})), "evaluations?": Count, "backbone?": Text | None,
        "trial?": dict[str, Any],
    },
    "dataset": {
        "slug": Text, "head": Text, "role": Text, "original_count?": Count | None, "part_of?": Text | None,
        **{f"{name}?": Text for name in ("level", "source", "licence", "attribution", "energies")},
        "store_bytes?": Bytes | None,
    },
    "conversion": {
        "read?": Count, "written": Count, "left_out?": Counts, "splits?": Counts, "seconds?": Seconds,
        "structures_per_s?": Rate | None, "workers?": Count,
        "cutoff?": NotNegative | None, "edges?": Flag | Count | None, "max_neighbours?": Count | None,
    },
    "references": {"mae_ev_per_atom?": Error | None, "rank?": Count, "undetermined?": list[Text]},
    "statistics": {
        "structures": Count, "atoms": Count, "groups_estimate": Count, "periodic": list[Count],
        "elements": mapped(typed({"structures": Count, "atoms": Count})), "charges": Counts,
        "neighbours_mean": NotNegative | None,
        **{k: typed(SPREAD) for k in ("sizes", "energy_ev_per_atom", "force_norm_ev_per_a", "stress_ev_per_a3")},
    },
}  # fmt: skip


def _require(fields: Fields, *names: str) -> dict[str, Any]:
    """Return the fields, with those of these names no longer optional."""
    return {k.rstrip("?") if k.rstrip("?") in names else k: v for k, v in fields.items()}


# Program -> facts of which it always has more fields, and the report asks for them.
FACTS_OF = {
    "ladder": {
        "model": _require(FACTS["model"], "parameters", "trained")
        | {"config": typed({"readout": Text, "cutoff": NotNegative})},
        "workload": _require(
            FACTS["workload"], "structures", "batches", "batch_size", "max_neighbours", "elements_not_trained"
        ),
        "gate": _require(FACTS["gate"], "threshold", "live_heads", "mean_weight"),
        "observed": _require(FACTS["observed"], "threads"),
    },
}
# Facts that are no mapping.
PLAIN_FACTS: dict[str, Any] = {
    "throughput_graphs_per_s": list[Annotated[float, Field(gt=0, le=1e16)]],
    "gradient_error": Error | None, "parameter_divergence": Error | None, "train_s": Seconds,
    "graph_sizes": list[Annotated[list[NotNegative], Field(min_length=2, max_length=2)]],
    "ranks": Annotated[list[typed({"rank?": Count, "host": Text, "node?": Text | None, "cores?": Several})],  # type: ignore[misc]
                       Field(min_length=1)],
    "free_bytes": Bytes | None, "held_out": listed(HELD_OUT), "out_of_reach": list[Text],
    "memory": listed({"task": Text, "precision": Text, "peak_bytes": Bytes | None}),
    "reading": listed(READING) | typed(READING),
}  # fmt: skip
# Of an event, a field that is never there without others.
TOGETHER = {"trial": ("objective", ("energy_mae_ev_per_atom", "force_mae_ev_per_a", "graphs_per_s"))}
# Of an event, a field that cannot exceed another.
ORDERED = {"trial": ("began_s", "ended_s"), "rank": ("evaluated", "candidates")}
