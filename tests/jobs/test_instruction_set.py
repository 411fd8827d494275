"""No process of ours runs oneDNN's AMX kernels, unless a user wants them."""

import os
import subprocess
import sys

import pytest

from jobs import INSTRUCTION_SETS
from orchestrator import cluster
from orchestrator.store import provenance

CONVOLVE = """
import torch
import jobs
image, filters = (torch.randn(shape).bfloat16() for shape in ((2, 8, 8, 8), (8, 8, 3, 3)))
torch.nn.functional.conv2d(image, filters)
"""

ASK = "import jobs, os; print(*(os.environ.get(name) for name in jobs.INSTRUCTION_SETS))"


def printed(script: str, **setting: str) -> str:
    """What a new process prints under a user's setting, or under none."""
    clean = {k: v for k, v in os.environ.items() if k not in INSTRUCTION_SETS}
    command, environment = [sys.executable, "-c", script], {**clean, **setting}
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True
    ).stdout


def test_a_process_that_imports_the_jobs_runs_no_amx_kernel() -> None:
    assert "amx" not in printed(CONVOLVE, ONEDNN_VERBOSE="1").lower()


def test_the_cap_is_set_where_a_user_has_set_none() -> None:
    assert printed(ASK).split() == ["AVX512_CORE_FP16", "None"]


@pytest.mark.parametrize("name", INSTRUCTION_SETS)
def test_a_users_own_setting_is_respected(name: str) -> None:
    found = printed(ASK, **{name: "AVX2"}).split()
    assert found == ["AVX2" if each == name else "None" for each in INSTRUCTION_SETS]


def test_workers_of_a_joined_cluster_get_what_the_driver_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster.settings()
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert cluster._worker_environment()["ONEDNN_MAX_CPU_ISA"] == "AVX2"


def test_the_setting_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert provenance.environment.__wrapped__()["instruction_set"] == "AVX2"
