"""The table of vector biases: how far a network violates rotational symmetry, over the size of its vector biases.

Vector biases are biases in the linear layers of a network that act on vector features.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from harness.protocol.events import Event
from harness.results.runs import RunRecord
from harness.results.tables import Columns, Table, interval_columns
from harness.stats.intervals import compute_geometric_mean_interval

VECTOR_BIASES = Columns(
    "vector_biases",
    case="campaign case kind scale",
    force="force_error force_error_low force_error_high force_error_max",
    energy="energy_error_angstrom energy_error_angstrom_low energy_error_angstrom_high energy_error_max_ev_per_atom",
    size="structures rotations seeds",
    model="checkpoint hidden_dim num_conv_layers max_neighbours biases bias_rms",
    run="folder",
)


def build_vector_biases_table(records: Sequence[RunRecord]) -> Table:
    """Return the table with a row per case, kind of structure and factor of the biases.

    force_error: the largest component of the difference from the rotated reference forces, divided by the largest
    component of the reference forces. This is averaged over rotations and structures; the geometric mean over seeds and
    its 95% interval follow.
    energy_error_angstrom: the difference of energies, divided and averaged in the same way.
    """
    runs = [r for r in records if r.program == "vector_biases"]
    return VECTOR_BIASES.build(row for r in runs for row in _list_vector_biases(r))


def _list_vector_biases(record: RunRecord) -> Iterator[dict[str, Any]]:
    """Yield a row for each kind of structure and factor in a run."""
    groups: dict[tuple[str, float], list[Event]] = {}
    for event in record.events("rotation_errors"):
        groups.setdefault((event["kind"], event["scale"]), []).append(event)
    config = record.facts.get("config", {})
    for (kind, scale), events in sorted(groups.items()):
        seeds = sorted({event["seed"] for event in events})
        force = [[compute_force_errors(e) for e in events if e["seed"] == seed] for seed in seeds]
        energy = [[compute_energy_errors(e) for e in events if e["seed"] == seed] for seed in seeds]
        mean_force = compute_geometric_mean_interval(float(np.mean(errors)) for errors in force)
        mean_energy = compute_geometric_mean_interval(float(np.mean(errors)) for errors in energy)
        yield {
            "campaign": record.campaign,
            "case": record.case.get("name"),
            "kind": kind,
            "scale": scale,
            **interval_columns("force_error", mean_force),
            "force_error_max": max(float(np.max(errors)) for errors in force),
            **interval_columns("energy_error_angstrom", mean_energy),
            "energy_error_max_ev_per_atom": max(max(e["energy_errors_ev"]) / e["atoms"] for e in events),
            "structures": ", ".join(dict.fromkeys(event["structure"] for event in events)),
            "rotations": len(events[0]["force_errors_ev_per_angstrom"]),
            "seeds": len(seeds),
            **{name: record.facts.get(name) for name in ("checkpoint", "biases", "bias_rms")},
            **{name: config.get(name) for name in ("hidden_dim", "num_conv_layers", "max_neighbours")},
            "folder": record.location,
        }


def compute_force_errors(event: Event) -> list[float]:
    """Return the error of the forces for each rotation, divided by the largest force."""
    return [error / event["force_scale_ev_per_angstrom"] for error in event["force_errors_ev_per_angstrom"]]


def compute_energy_errors(event: Event) -> list[float]:
    """Return the error of the energy for each rotation, divided by the largest force, in angstrom."""
    return [error / event["force_scale_ev_per_angstrom"] for error in event["energy_errors_ev"]]
