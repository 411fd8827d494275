"""oneDNN's AMX kernels are not used, in any process of ours, unless a user wants them."""

import os
import subprocess
import sys

import pytest

from jobs import INSTRUCTION_SETS
from orchestrator import cluster, provenance

CONVOLVE = """
import torch
import jobs
image, filters = (torch.randn(shape).bfloat16() for shape in ((2, 8, 8, 8), (8, 8, 3, 3)))
torch.nn.functional.conv2d(image, filters)
"""


def verbose(**setting: str) -> str:
    """What oneDNN says of the kernels that a process of ours runs under a user's setting."""
    clean = {k: v for k, v in os.environ.items() if k not in INSTRUCTION_SETS}
    done = subprocess.run(
        [sys.executable, "-c", CONVOLVE],
        env={**clean, "ONEDNN_VERBOSE": "1", **setting},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.lower()


def test_a_process_that_imports_the_jobs_runs_no_amx_kernel() -> None:
    assert "amx" not in verbose()


@pytest.mark.parametrize("name", INSTRUCTION_SETS)
def test_a_users_own_setting_is_respected(name: str) -> None:
    ask = "import jobs, os; print(*(os.environ.get(n) for n in jobs.INSTRUCTION_SETS))"
    clean = {k: v for k, v in os.environ.items() if k not in INSTRUCTION_SETS}
    done = subprocess.run(
        [sys.executable, "-c", ask],
        env={**clean, name: "AVX2"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["AVX2" if n == name else "None" for n in INSTRUCTION_SETS]


def test_workers_of_a_joined_cluster_get_what_the_driver_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster.settings()
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert cluster._of_workers()["ONEDNN_MAX_CPU_ISA"] == "AVX2"


def test_the_setting_is_recorded() -> None:
    assert provenance.environment()["instruction_set"] == os.environ["ONEDNN_MAX_CPU_ISA"]
