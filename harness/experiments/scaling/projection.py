"""Projection of step times to more ranks from measured steps.

The time of a rank's step is modelled as a + b atoms + c edges of its batch, with the scatter of the measured steps;
batches of any size are drawn from the graphs of the runs. The step time of p ranks is the time of the slowest rank plus
that of an all-reduce of the gradient, of which the backward pass may hide a part.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.experiments.implementations import get_implementation_name
from harness.host.launch_line import parse_cpu_list
from harness.protocol.programs.data_parallel import DEVICE_REGIONS
from harness.results.runs import RunRecord
from harness.results.tables import Columns, Table

Array = NDArray[np.float64]
PROJECTION = Columns(
    "projection",
    run="campaign system mode ranks batch_size kind measured_s",
    projected="compute_s all_reduce_s projected_s projected_with_overlap_s structures_per_s error",
    sources="from_ranks network",
)
# The axes of a suite that set the sizes of its runs; runs that differ in others are not compared with each other.
SIZE_AXES = {"mode", "nodes", "ranks_per_node", "ranks", "batch_size"}
# The number of random batches whose steps are simulated.
N_SIMULATED_STEPS = 4000
# The number of times that a projection doubles the ranks of the largest run.
EXTRAPOLATION_DOUBLINGS = 6
# The largest number of steps to which a model is fitted.
MAX_STEPS = 5000
# The size in bytes of an element of the gradient, by precision; bf16 applies only to matrix products.
GRADIENT_BYTES = {"fp64": 8, "fp32": 4, "bf16": 4}


@dataclass(frozen=True)
class StepModel:
    """A model of the seconds of one rank's step.

    Attributes:
        coefficients: non-negative coefficients of (1, atoms, edges).
        scatter: ratios of the measured to the modelled seconds of the steps (n,).
        sizes: atoms and edges of the graphs (g, 2).
    """

    coefficients: Array
    scatter: Array
    sizes: Array

    def compute_expected_max_step(self, ranks: int, batch: int) -> float:
        """Return the expected seconds of the slowest rank if each rank has a random batch.

        This is the expectation of the largest of p samples from simulated steps x_1 <= ... <= x_n:
        sum_i x_i ((i / n)^p - ((i - 1) / n)^p).
        """
        n = N_SIMULATED_STEPS
        rng = np.random.default_rng(0)
        sizes = self.sizes[rng.integers(len(self.sizes), size=(n, batch))].sum(axis=1)
        seconds = np.sort(self.compute_mean_step(sizes) * rng.choice(self.scatter, n))
        return float(seconds @ np.diff((np.arange(n + 1) / n) ** ranks))

    def compute_mean_step(self, sizes: Array) -> Array:
        """Return the seconds of steps without scatter (n,) for the atoms and edges (n, 2) of their batches."""
        return self.coefficients[0] + sizes @ self.coefficients[1:]


def fit_step_model(steps: Array, sizes: Array) -> StepModel:
    """Return the model of measured steps.

    Of the least-squares fits of all subsets of terms, the model is the one with the smallest residual among those
    without negative coefficients; atoms or edges that do not vary are left out.

    Args:
        steps: Seconds, atoms and edges of each step (n, 3).
        sizes: Atoms and edges of graphs (g, 2).
    """
    seconds, terms = steps[:, 0], np.column_stack([np.ones(len(steps)), steps[:, 1:]])
    best, smallest = np.array([seconds.mean(), 0.0, 0.0]), math.inf
    varied = [k for k in (1, 2) if np.ptp(terms[:, k]) > 0]
    subsets = [tuple(s) for n in range(len(varied) + 1) for s in combinations(varied, n)]
    for subset in [(0, *s) for s in subsets] + [s for s in subsets if s]:
        solution, *_ = np.linalg.lstsq(terms[:, subset], seconds, rcond=None)
        residual = float(((terms[:, subset] @ solution - seconds) ** 2).sum())
        if (solution >= 0).all() and residual < smallest * (1 - 1e-9):
            best, smallest = np.zeros(3), residual
            best[list(subset)] = solution
    return StepModel(best, seconds / (best[0] + steps[:, 1:] @ best[1:]), sizes)


@dataclass(frozen=True)
class Network:
    """The latency and bandwidth of messages.

    Attributes:
        latency_s: latency of a message.
        bandwidth_bytes_per_s: bytes per second that one rank can send; for a network that the suite assumes, those
            that one node can send.
        source: where the values come from.
    """

    latency_s: float
    bandwidth_bytes_per_s: float
    source: str

    def compute_all_reduce_s(self, ranks: int, size: float) -> float:
        """Return the seconds of an all-reduce: 2 ceil(log2 p) latency + 2 (p - 1) / p size / bandwidth.

        This is the cost of a reduce-scatter and an all-gather by recursive halving and doubling (Thakur, Rabenseifner,
        Gropp, Int. J. High Perform. Comput. Appl. 19, 49 (2005)).

        Args:
            ranks: The number of ranks p.
            size: The size of the gradient in bytes.
        """
        if ranks < 2:
            return 0.0
        latency_s = 2 * math.ceil(math.log2(ranks)) * self.latency_s
        return latency_s + 2 * (ranks - 1) / ranks * size / self.bandwidth_bytes_per_s


@dataclass(frozen=True)
class Run:
    """The data of a finished run that projections use.

    Attributes:
        mode: the value of the suite's axis `mode`.
        variant: see `describe_variant`.
        rank0_steps: steps of rank 0 without exchange (n, 3): seconds, atoms, edges.
        step_s: median over steps of the seconds of the slowest rank.
        sizes: atoms and edges of the graphs (g, 2).
    """

    record: RunRecord
    mode: str
    variant: str
    ranks: int
    batch: int
    rank0_steps: Array
    step_s: float
    sizes: Array


def build_projection_table(records: Sequence[RunRecord]) -> Table:
    """Return a row for each run that smaller runs predict, and for numbers of ranks above that of the largest run.

    The kind of the former is "cross-validated", and of the latter "extrapolated". The error is projected / measured
    seconds - 1. Runs whose ranks share cores, or whose nodes are emulated, are left out, since their times are not
    representative.
    """
    runs = [run for r in records if (run := _read_run(r)) is not None]
    rows: list[dict[str, Any]] = []
    for key in dict.fromkeys((r.record.campaign, r.variant) for r in runs):
        projection = Projection(*key, [r for r in runs if (r.record.campaign, r.variant) == key])
        for mode in dict.fromkeys(r.mode for r in projection.runs):
            rows += projection.project_mode(mode)
    return PROJECTION.build(rows)


def get_mode(record: RunRecord) -> str:
    """Return whether a run belongs to `weak` or `strong` scaling; `runs` if the suite has no axis `mode`."""
    return str(record.case.get("axis_values", {}).get("mode", "runs"))


def describe_variant(record: RunRecord) -> str:
    """Return in what a run differs from those that it is not compared with: the values of axes, the implementation."""
    axes = record.case.get("axis_values", {})
    values = [f"{name} {value}" for name, value in axes.items() if name not in SIZE_AXES]
    return ", ".join(filter(None, [*values, get_implementation_name(record)]))


def join_label(mode: str, variant: str) -> str:
    """Return the label of the runs of a mode and variant, which tables and figures have as their mode."""
    return f"{mode}, {variant}" if variant else mode


def _read_run(record: RunRecord) -> Run | None:
    """Return the data of a run; None if it is not a finished run whose ranks had cores and nodes of their own."""
    facts = record.facts
    steps = [e for e in record.events("local_step") if not e["is_warmup"] and not e["gradients_synchronized"]]
    if record.program != "data_parallel" or record.state != "done" or not steps:
        return None
    ranks = facts["ranks"]
    if shares_cores(ranks):
        return None
    return Run(
        record=record,
        mode=get_mode(record),
        variant=describe_variant(record),
        ranks=len(ranks),
        batch=facts["workload"]["batch_size"],
        rank0_steps=np.array([[e["busy_s"], e["atoms"], e["edges"]] for e in steps], dtype=float),
        step_s=float(np.median([s["busy_s"] for s in record.samples if not s["is_warmup"]])),
        sizes=np.array(facts["graph_sizes"], dtype=float),
    )


def shares_cores(ranks: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether several nodes are emulated on one host, or a host has more ranks than CPUs on which they may run.

    Args:
        ranks: The places of the ranks; in logs of earlier versions, without the lists of CPUs.
    """
    hosts: dict[str, list[Mapping[str, Any]]] = {}
    for rank in ranks:
        hosts.setdefault(rank["host"], []).append(rank)
    if len(hosts) < len({rank["node"] or rank["host"] for rank in ranks}):
        return True
    return any(len(places) > count_cpus(places) for places in hosts.values())


def count_cpus(places: Sequence[Mapping[str, Any]]) -> int:
    """Return the number of CPUs on which at least one of these ranks of a host may run."""
    lists = [place.get("cpus") for place in places]
    if None in lists:
        return min(int(place["cores"]) for place in places)
    return len({cpu for text in lists for cpu in parse_cpu_list(str(text))})


@dataclass
class Projection:
    """The projections of one campaign's runs of a variant; a model of steps is fitted only once."""

    campaign: str
    variant: str
    runs: Sequence[Run]

    def __post_init__(self) -> None:
        self.network = find_network(self.runs)
        self.bytes = count_gradient_bytes(self.runs[0].record)
        self.backward_fraction = compute_backward_fraction(self.runs)
        self._models: dict[float, StepModel] = {}

    def fit_below(self, ranks: float) -> StepModel:
        """Return the model of the steps of all runs with fewer ranks, from at most MAX_STEPS random steps."""
        if ranks not in self._models:
            smaller = [r for r in self.runs if r.ranks < ranks]
            steps, sizes = (np.concatenate([getattr(r, k) for r in smaller]) for k in ("rank0_steps", "sizes"))
            indices = np.random.default_rng(0).permutation(len(steps))[:MAX_STEPS]
            self._models[ranks] = fit_step_model(steps[indices], sizes)
        return self._models[ranks]

    def _project(
        self, mode: str, ranks: int, batch: int, bound: float, measured_s: float | None = None
    ) -> dict[str, Any]:
        """Return a projection, based on the campaign's network and the steps of runs with fewer ranks than `bound`."""
        compute = self.fit_below(bound).compute_expected_max_step(ranks, batch)
        exchange = self.network.compute_all_reduce_s(ranks, self.bytes) if self.network else math.nan
        total = compute + (exchange if self.network else 0.0)
        return {
            "campaign": self.campaign, "system": self.runs[0].record.case.get("system"),
            "mode": join_label(mode, self.variant), "ranks": ranks,
            "batch_size": batch, "kind": "extrapolated" if measured_s is None else "cross-validated",
            "measured_s": measured_s,
            "compute_s": compute, "all_reduce_s": exchange, "projected_s": total,
            "projected_with_overlap_s":
                total - min(exchange, self.backward_fraction * compute) if self.network else total,
            "structures_per_s": ranks * batch / total,
            "error": math.nan if measured_s is None else total / measured_s - 1,
            "from_ranks": max(r.ranks for r in self.runs if r.ranks < bound),
            "network": self.network.source if self.network else "none (computation only)",
        }  # fmt: skip

    def project_mode(self, mode: str) -> list[dict[str, Any]]:
        """Return a projection for each run that smaller runs predict, and for more ranks than the largest run has."""
        runs = sorted((r for r in self.runs if r.mode == mode), key=lambda r: r.ranks)
        smallest, largest = min(r.ranks for r in self.runs), runs[-1]
        rows = [self._project(mode, r.ranks, r.batch, r.ranks, r.step_s) for r in runs if r.ranks > smallest]
        for k in range(1, EXTRAPOLATION_DOUBLINGS + 1):
            ranks = largest.ranks * 2**k
            batch = largest.batch if mode != "strong" else runs[0].batch * runs[0].ranks // ranks
            if batch < 1:
                break
            rows.append(self._project(mode, ranks, batch, math.inf))
        return rows


def find_network(runs: Sequence[Run]) -> Network | None:
    """Return the network that fits the all-reduces of the run with the most ranks, or else the suite's assumption."""
    for run in sorted(runs, key=lambda r: -r.ranks):
        seconds: dict[float, list[float]] = {}
        for exchange in run.record.events("all_reduce"):
            seconds.setdefault(exchange["bytes"], []).append(exchange["duration_s"])
        if len(seconds) == 2:
            (small, small_s), (large, large_s) = sorted((k, float(np.median(v))) for k, v in seconds.items())
            if large_s <= small_s:  # noise hides the bandwidth
                continue
            p = run.ranks
            latency_s = small_s / (2 * math.ceil(math.log2(p)))
            bandwidth = 2 * (p - 1) / p * (large - small) / (large_s - small_s)
            return Network(latency_s, bandwidth, f"all-reduces of {p} ranks")
    assumed = runs[0].record.case.get("parameters", {}).get("network")
    if assumed:
        return Network(1e-6 * assumed["latency_us"], 1e9 * assumed["bandwidth_gb_per_s"], "assumed by the suite")
    return None


def count_gradient_bytes(record: RunRecord) -> float:
    """Return the size of the gradient that is exchanged per step, in bytes."""
    precision = record.facts["runtime"]["precision"]
    return float(record.facts["model"]["trained_parameters"] * GRADIENT_BYTES[precision])


def compute_backward_fraction(runs: Sequence[Run]) -> float:
    """Return the fraction of a step that the backward pass takes, during which gradients can be exchanged."""
    regions: dict[str, float] = {}
    for run in runs:
        for e in run.record.events("region"):
            regions[e["name"]] = regions.get(e["name"], 0.0) + e["duration_mean_s"]
    device_s = sum(regions.get(k, 0.0) for k in DEVICE_REGIONS)
    return regions.get("backward", 0.0) / device_s if device_s else 0.0
