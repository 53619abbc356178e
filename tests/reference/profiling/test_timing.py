"""Peak memory of a call matches a hand count; measured rates and profiles are plausible."""

from __future__ import annotations

import pytest
import torch

from harness.reference.profiling import timing

CPU = torch.device("cpu")


def test_peak_memory_is_the_largest_memory_held_at_once() -> None:
    def call() -> None:
        a = torch.zeros(1 << 20, dtype=torch.float64)
        del a
        b = torch.zeros(1 << 19, dtype=torch.float64)
        c = torch.zeros(1 << 18, dtype=torch.float64)
        del b, c

    assert timing.measure_peak_bytes(call, CPU) == pytest.approx(8 << 20, rel=0.01)


def test_measured_rates_and_profiles_are_plausible() -> None:
    for sizes in ((64, 32, 48), (4, 8, 16, 24)):
        assert 0.01 < timing.measure_product_gflop_per_s(CPU, torch.float32, sizes) < 1e6
    assert 0.1 < timing.measure_copy_gb_per_s(CPU) < 1e5
    a = torch.randn(300, 300)
    profile = timing.profile_call(lambda: a @ a, CPU)
    assert profile["rows"][0]["operation"] in ("aten::mm", "aten::matmul")
    assert profile["groups"][0]["group"] == "matrix products"
    for rows in profile.values():
        assert sum(float(str(r["fraction"])) for r in rows) <= 1.001
