"""The eigensolver's threads change only the time, not the result."""

from __future__ import annotations

import os
import sys

import pytest
import torch

from jobs.tuning.eigen import eigh


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_a_thread_has_no_helpers_of_its_own() -> None:
    """Torch would split a product of this size; more threads than cores would slow it down."""
    torch.set_num_threads(2)
    matrices = torch.eye(128, dtype=torch.float64).repeat(16, 1, 1)
    matrices @ matrices  # this thread's own helpers
    eigh(matrices[:2])
    before = len(os.listdir("/proc/self/task"))
    eigh(matrices)
    assert len(os.listdir("/proc/self/task")) == before


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("members", [1, 2, 5])
def test_threads_solve_what_one_solves_and_leave_the_processs_count(
    threads: int, members: int
) -> None:
    generator = torch.Generator().manual_seed(members)
    rows = torch.randn(members, 20, 30, generator=generator, dtype=torch.float64)
    matrices = rows @ rows.mT
    torch.set_num_threads(threads)
    values, vectors = eigh(matrices)
    assert torch.get_num_threads() == threads
    torch.testing.assert_close(values, torch.linalg.eigvalsh(matrices))
    torch.testing.assert_close((vectors * values[:, None, :]) @ vectors.mT, matrices)
