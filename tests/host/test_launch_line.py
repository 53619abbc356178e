"""Lists of CPUs in launch commands."""

from __future__ import annotations

import pytest

from harness.host.launch_line import format_cpu_list, parse_cpu_list


@pytest.mark.parametrize(
    ("cpus", "text"), [([], ""), ([3], "3"), ([0, 1, 2], "0-2"), ([64, 0, 2, 1, 66, 65, 9], "0-2,9,64-66")]
)
def test_lists_of_cpus_are_read_as_they_are_written(cpus: list[int], text: str) -> None:
    assert format_cpu_list(cpus) == text
    assert parse_cpu_list(text) == sorted(cpus)
