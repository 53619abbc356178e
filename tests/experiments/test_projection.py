"""The parts of the scaling projection match known results, and the projection predicts held-out runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.experiments.scaling.metrics import build_scaling_table
from harness.experiments.scaling.projection import (
    Network,
    StepModel,
    build_projection_table,
    fit_step_model,
    shares_cores,
)
from harness.protocol.events import JsonLinesLog
from harness.report.render import write_report
from harness.results.runs import load_runs
from tests.conftest import read_pages

PER_STEP, PER_ATOM, PER_EDGE = 4e-3, 2e-5, 3e-6
LINK = Network(2e-6, 1e9, "simulated")
PARAMETERS = 500_000
SIZES = np.column_stack([np.arange(5, 105, 5), np.arange(5, 105, 5) * 15]).astype(float)


def simulate_step(rng: np.random.Generator, ranks: int, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the true seconds of a step on each rank, and the atoms and edges of each rank's batch [ranks, 2]."""
    sizes = SIZES[rng.integers(len(SIZES), size=(ranks, batch))].sum(axis=1)
    mean = PER_STEP + sizes @ np.array([PER_ATOM, PER_EDGE])
    return mean * rng.lognormal(0.0, 0.05, ranks), sizes


def write_scaling_run(out: Path, ranks: int, batch: int, mode: str = "weak", **changes: Any) -> None:
    """Write the case and the log of a run of the program data_parallel with simulated times."""
    rng = np.random.default_rng(ranks)
    variant = "-".join([mode, str(ranks), *map(str, changes.get("axes", {}).values())])
    folder = out / "runs" / "scaling-cluster" / variant
    folder.mkdir(parents=True)
    case = {"id": f"{mode}{ranks}", "name": f"{mode}-{ranks}", "suite": "scaling", "system": "cluster",
            "program": "data_parallel", "parameters": changes.get("parameters", {}),
            "axis_values": {"mode": mode, **changes.get("axes", {})}}  # fmt: skip
    (folder / "case.json").write_text(json.dumps(case))
    (folder / "exit_code").write_text("0\n")
    log = JsonLinesLog(folder / "events.jsonl")
    log.write("start")
    hosts = changes.get("hosts", ranks)
    ranks_fact = [{"rank": k, "host": f"h{k % hosts}", "node": f"n{k}", "cores": 1} for k in range(ranks)]
    log.write_fact("ranks", ranks_fact)
    sets = [{"dataset": "qm7x", "data_origin": "stand-in for QM7X"}]
    log.write_fact("workload", {"batch_size": batch, "global_batch_size": batch * ranks, "datasets": sets})
    log.write_fact("runtime", {"precision": "fp64", "device_name": None, "device": "cpu"})
    log.write_fact("model", {"trained_parameters": PARAMETERS})
    log.write_fact("graph_sizes", SIZES.tolist())
    exchange = LINK.compute_all_reduce_s(ranks, 8 * PARAMETERS)
    steps = []
    for step in range(60):
        times, sizes = simulate_step(rng, ranks, batch)
        times *= changes.get("slowdown", 1.0)
        steps.append(times.max() + exchange)
        first_rank = {"busy_s": times[0], "structures": batch, "atoms": sizes[0, 0], "edges": sizes[0, 1]}
        log.write("local_step", epoch=1, step=step, is_warmup=False, gradients_synchronized=False, **first_rank)
        maxima = {"atoms_max": sizes[:, 0].max(), "edges_max": sizes[:, 1].max()}
        log.write("sample", epoch=1, step=step, is_warmup=False, duration_s=steps[-1], busy_s=steps[-1],
                  atoms=sizes[:, 0].sum(), edges=sizes[:, 1].sum(), **maxima)  # fmt: skip
    if ranks > 1:
        for size in (8, 8 * PARAMETERS):
            for _ in range(5):
                log.write("all_reduce", bytes=size, duration_s=LINK.compute_all_reduce_s(ranks, size))
    for name, share in {"forward": 1.0, "force_gradient": 1.0, "backward": 2.0, "optimizer": 0.0}.items():
        log.write("region", step=1, name=name, duration_s=share, duration_mean_s=share)
    log.write_fact("throughput_structures_per_s", [ranks * batch / float(np.mean(steps))] * 3)
    log.write("done")


def test_projection_predicts_unseen_runs(tmp_path: Path) -> None:
    """Each run is predicted from smaller ones, in weak scaling and in strong, where the batch shrinks."""
    for ranks in (1, 2, 4, 8, 32, 128):
        write_scaling_run(tmp_path, ranks, batch=16)
        write_scaling_run(tmp_path, ranks, batch=max(1, 256 // ranks), mode="strong")
    table = build_projection_table(load_runs(tmp_path / "runs"))
    tested = table[table["kind"] == "cross-validated"]
    assert len(tested) == 10
    assert tested["error"].abs().max() < 0.08
    assert (tested["from_ranks"] < tested["ranks"]).all()
    extrapolated = table[(table["kind"] == "extrapolated") & (table["mode"] == "weak")]
    assert extrapolated["ranks"].tolist() == [256, 512, 1024, 2048, 4096, 8192]
    rng = np.random.default_rng(5)
    expected = np.mean([simulate_step(rng, 1024, 16)[0].max() for _ in range(300)]) + LINK.compute_all_reduce_s(
        1024, 8 * PARAMETERS
    )
    assert extrapolated.set_index("ranks").loc[1024, "projected_s"] == pytest.approx(expected, rel=0.08)
    assert (extrapolated["projected_with_overlap_s"] < extrapolated["projected_s"]).all()


def test_step_model_recovers_coefficients() -> None:
    rng = np.random.default_rng(0)
    times, sizes = simulate_step(rng, 4000, 8)
    sizes[:, 1] *= rng.uniform(0.5, 1.5, len(sizes))
    times = PER_STEP + sizes @ np.array([PER_ATOM, PER_EDGE])
    model = fit_step_model(np.column_stack([times, sizes]), SIZES)
    assert model.coefficients == pytest.approx([PER_STEP, PER_ATOM, PER_EDGE], rel=1e-6)
    decreasing = fit_step_model(np.column_stack([1.0 - 1e-4 * sizes[:, 0], sizes]), SIZES)
    assert (decreasing.coefficients >= 0).all()
    constant = fit_step_model(np.column_stack([times, np.ones_like(sizes)]), SIZES)
    assert constant.coefficients == pytest.approx([times.mean(), 0, 0])


def test_expected_max_step_of_uniform_times() -> None:
    """Uniform times from 0 to 2: the largest of p is 2 p / (p + 1) on average."""
    model = StepModel(np.array([1.0, 0.0, 0.0]), np.linspace(0.0, 2.0, 2001), SIZES)
    for ranks in (1, 3, 15, 99):
        assert model.compute_expected_max_step(ranks, 4) == pytest.approx(2 * ranks / (ranks + 1), rel=0.03)


def test_all_reduce_time_follows_from_latency_and_bandwidth() -> None:
    link = Network(1e-6, 1e9, "")
    assert link.compute_all_reduce_s(1, 1e9) == 0
    assert link.compute_all_reduce_s(2, 1e9) == pytest.approx(2e-6 + 1.0)
    assert link.compute_all_reduce_s(1024, 1e9) == pytest.approx(20e-6 + 2 * 1023 / 1024)


def test_network_is_measured_or_assumed(tmp_path: Path) -> None:
    write_scaling_run(tmp_path / "a", 1, 4)
    alone = build_projection_table(load_runs(tmp_path / "a" / "runs"))
    assert set(alone["network"]) == {"none (computation only)"}
    write_scaling_run(tmp_path / "b", 1, 4, parameters={"network": {"latency_us": 2, "bandwidth_gb_per_s": 1}})
    assumed = build_projection_table(load_runs(tmp_path / "b" / "runs")).iloc[0]
    assert assumed["network"] == "assumed by the suite"
    assert assumed["all_reduce_s"] == pytest.approx(LINK.compute_all_reduce_s(2, 8 * PARAMETERS))
    write_scaling_run(tmp_path / "c", 8, 4)
    measured = build_projection_table(load_runs(tmp_path / "c" / "runs")).iloc[0]
    assert measured["network"] == "all-reduces of 8 ranks"
    assert measured["all_reduce_s"] == pytest.approx(LINK.compute_all_reduce_s(16, 8 * PARAMETERS), rel=1e-3)


def test_runs_that_differ_in_an_axis_are_not_compared(tmp_path: Path) -> None:
    """The efficiency and the projection of runs in FP64 do not depend on the runs in FP32 of the same campaign."""
    for precision, slowdown in (("fp64", 3.0), ("fp32", 1.0)):
        for ranks in (1, 2, 4):
            axes = {"precision": precision, "nodes": ranks}
            write_scaling_run(tmp_path, ranks, batch=8, axes=axes, slowdown=slowdown)
    records = load_runs(tmp_path / "runs")
    for build, column in ((build_scaling_table, "efficiency"), (build_projection_table, "projected_s")):
        table = build(records)
        for precision in ("fp64", "fp32"):
            alone = build([r for r in records if r.case["axis_values"]["precision"] == precision])
            rows = table[table["mode"] == f"weak, precision {precision}"]
            assert len(rows)
            assert rows[column].tolist() == alone[column].tolist()


def test_ranks_share_cores_if_a_host_has_more_ranks_than_cpus_of_theirs() -> None:
    bound = [{"host": "a", "node": None, "cores": 7, "cpus": f"{8 * k}-{8 * k + 6}"} for k in range(8)]
    assert not shares_cores(bound)
    assert not shares_cores([rank | {"host": host} for host in "ab" for rank in bound])
    assert shares_cores([{"host": "a", "node": None, "cores": 2, "cpus": "0-1"}] * 3)
    assert not shares_cores([{"host": "a", "node": None, "cores": 2, "cpus": "0-1"}] * 2)
    assert shares_cores([{"host": "a", "node": None, "cores": 2}] * 3)
    assert shares_cores([{"host": "a", "node": node, "cores": 8, "cpus": "0-7"} for node in "xy"])


@pytest.mark.parametrize("hosts", [1, 4])
def test_emulated_nodes_are_not_projected(tmp_path: Path, hosts: int) -> None:
    write_scaling_run(tmp_path, 8, 4, hosts=hosts)
    assert build_projection_table(load_runs(tmp_path / "runs")).empty


def test_scaling_page_separates_projected_from_measured(tmp_path: Path) -> None:
    for ranks in (1, 2, 4):
        write_scaling_run(tmp_path, ranks, batch=8)
    table = build_scaling_table(load_runs(tmp_path / "runs"))
    assert table["edges_imbalance"].tolist() == sorted(table["edges_imbalance"])
    assert table["edges_imbalance"].iloc[0] == 1
    assert (table["efficiency_low"] <= table["efficiency"]).all()
    assert table["backward_s"].tolist() == [2.0] * 3
    write_report(tmp_path)
    page = read_pages(tmp_path)
    assert "from 2 measured runs. Numbers for more ranks are projections, not measurements." in page
    assert "Time of a step by region" in page
