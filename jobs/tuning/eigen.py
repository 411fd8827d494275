"""Eigenvalues and vectors of a stack of symmetric matrices, the members side by side on a CPU.

torch solves a batch one matrix after another, and at the sizes of a batch of features (128 or so)
LAPACK gains next to nothing from a second thread, and loses much where cores are contended, for its
threads meet thousands of times. Here each of the process's threads takes a share of the members and
solves it on its own.
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
    """Start what `eigh` does, and give what waits for it: other work can be done in between."""
    threads = torch.get_num_threads()
    workers = min(threads, len(matrices))
    if matrices.device.type != "cpu" or workers == 1:  # one matrix: passing it on costs more
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
    """Threads that each keep to one core. Setting theirs changes what new threads get: set back."""
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(workers, "eigh", initializer=_keep_to_one_core)
    list(pool.map(torch.linalg.eigh, [torch.eye(2)] * (8 * workers)))  # starts them all
    torch.set_num_threads(threads)
    return pool


def _keep_to_one_core() -> None:
    # A thread takes the process's number when it first asks for it, over one set before that. One
    # that has helpers of its own makes more of them than there are cores, and then OpenMP puts all
    # to sleep between operations: everything else in the process takes up to twice as long.
    torch.get_num_threads()
    torch.set_num_threads(1)
