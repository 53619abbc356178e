"""Ranks detect their number from the variables of each launcher; missing devices and backends are refused."""

from __future__ import annotations

import pytest
import torch

from harness.reference.distributed import launch
from harness.reference.distributed.group import select_device
from harness.reference.distributed.launch import RankInfo
from harness.reference.errors import InputError

HYDRA = {"PMI_RANK": "3", "PMI_SIZE": "8", "MPI_LOCALRANKID": "1"}
SLURM = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "5", "SLURM_NTASKS": "16", "SLURM_LOCALID": "2"}
PALS = {"PALS_RANKID": "13", "PALS_LOCAL_RANKID": "1"}


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, RankInfo(0, 1, 0)),
        (HYDRA, RankInfo(3, 8, 1)),
        (SLURM, RankInfo(5, 16, 2)),
        (SLURM | {"PMI_RANK": "5", "PMI_SIZE": "16"}, RankInfo(5, 16, 2)),
        (SLURM | {"SLURM_NTASKS": "32", "SLURM_STEP_NUM_TASKS": "16"}, RankInfo(5, 16, 2)),
        ({"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "16"}, RankInfo(0, 1, 0)),
        (SLURM | {"SLURM_STEP_ID": str(0xFFFFFFFB)}, RankInfo(0, 1, 0)),
        (SLURM | {"SLURM_STEP_ID": str(0xFFFFFFFC)}, RankInfo(0, 1, 0)),
        (SLURM | HYDRA, RankInfo(3, 8, 1)),
        (PALS | {"PMI_RANK": "13", "PMI_SIZE": "24"}, RankInfo(13, 24, 1)),
        (PALS | {"WORLD_SIZE": "24"}, RankInfo(13, 24, 1)),
        (
            {"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "0"},
            RankInfo(2, 4, 0),
        ),
    ],
)
def test_rank_is_detected_from_the_variables_of_each_launcher(variables: dict[str, str], expected: RankInfo) -> None:
    assert launch.detect_rank(variables) == expected


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        (PALS, "PMI_SIZE and PALS_SIZE and WORLD_SIZE are not set"),
        (HYDRA | {"PMI_RANK": "x"}, "PMI_RANK is 'x', expected a whole number"),
        (HYDRA | {"PMI_RANK": "8"}, "the variables of MPICH hydra contradict each other: rank 8"),
    ],
)
def test_inconsistent_launcher_variables_are_refused(variables: dict[str, str], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        launch.detect_rank(variables)


def test_unknown_or_missing_device_or_backend_is_refused() -> None:
    assert select_device("cpu", "gloo", RankInfo(1, 4, 1)) == torch.device("cpu")
    for device, backend in (("tpu", "gloo"), ("cpu", "mpi"), ("cpu", "nccl"), ("cuda", "xccl")):
        with pytest.raises(InputError):
            select_device(device, backend, RankInfo())
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="device 'cuda' was requested, but none is visible"):
            select_device("cuda", "gloo", RankInfo())
