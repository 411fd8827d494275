"""Eigenvalues and eigenvectors of a stack of symmetric matrices, solved side by side on a CPU.

torch solves a batch one matrix after another. At the size of a batch of features (128 or so) LAPACK
gains almost nothing from a second thread. On busy cores it loses much, because its threads
synchronise thousands of times. Here each thread of the process solves its own share of the members.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch
from torch import Tensor


def eigh(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """As `torch.linalg.eigh` of [K, N, N], finite: ascending values [K, N], vectors [K, N, N]."""
    return begin(matrices)()


def begin(matrices: Tensor) -> Callable[[], tuple[Tensor, Tensor]]:
    """Start `eigh`; return a function that waits for its result. Other work can run in between."""
    threads = torch.get_num_threads()
    workers = min(threads, len(matrices))
    if matrices.device.type != "cpu" or workers == 1:  # one matrix: handing it over costs more
        values, vectors = torch.linalg.eigh(matrices)
        return lambda: (values, vectors)
    solving = [
        _pool(workers).submit(torch.linalg.eigh, share) for share in matrices.tensor_split(workers)
    ]

    def wait() -> tuple[Tensor, Tensor]:
        solved = [share.result() for share in solving]
        return torch.cat([s[0] for s in solved]), torch.cat([s[1] for s in solved])

    return wait


@cache
def _pool(workers: int) -> ThreadPoolExecutor:
    """Threads that use one core each. Setting theirs changes the default of new threads: reset."""
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(workers, "eigh", initializer=_keep_to_one_core)
    list(pool.map(torch.linalg.eigh, [torch.eye(2)] * (8 * workers)))  # starts them all
    torch.set_num_threads(threads)
    return pool


def _keep_to_one_core() -> None:
    # torch gives a thread the process's number at its first query, even if another was set before.
    # A thread with OpenMP helpers of its own makes more threads than there are cores. OpenMP then
    # puts all to sleep between operations, and everything else in the process takes up to twice as
    # long.
    torch.get_num_threads()
    torch.set_num_threads(1)
