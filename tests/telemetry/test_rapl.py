"""The energy of CPUs is the sum of packages and memory, without the platform or the cores, which would count twice."""

from __future__ import annotations

from pathlib import Path

from harness.reference.profiling.node_sampler import Rapl

ZONES = {"intel-rapl:0": "package-0", "intel-rapl:0:0": "core", "intel-rapl:0:1": "dram", "intel-rapl:1": "psys"}


def test_platform_and_cores_are_not_counted_and_wrapped_counters_go_on(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ZONES]
    for folder, name in zip(folders, ZONES.values(), strict=True):
        folder.mkdir()
        (folder / "name").write_text(f"{name}\n")
        (folder / "max_energy_range_uj").write_text("10000000\n")
        (folder / "energy_uj").write_text("9000000\n")
    rapl = Rapl(folders)
    expected = {("harness_cpu_energy_joules", "0"): 9.0, ("harness_memory_energy_joules", "0:1"): 9.0}
    assert {(name, labels["package"]): joules for name, labels, joules in rapl()} == expected
    for folder in folders:
        (folder / "energy_uj").write_text("2000000\n")
    assert {joules for _, _, joules in rapl()} == {12.0}
