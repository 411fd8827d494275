"""Eigenvalues and vectors of a stack of symmetric matrices, the members side by side on a CPU.

torch solves a batch one matrix after another, and LAPACK gains next to nothing from a second thread
at the sizes of a batch of features (128 or so). Here each of the process's threads takes a share of
the members and solves it with one thread of its own.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch
from torch import Tensor


def eigh(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """As `torch.linalg.eigh` of [K, N, N], finite: ascending values [K, N], vectors [K, N, N]."""
    workers = min(torch.get_num_threads(), len(matrices))
    if matrices.device.type != "cpu" or workers < 2:
        values, vectors = torch.linalg.eigh(matrices)
        return values, vectors
    solved = list(_pool(workers).map(torch.linalg.eigh, matrices.tensor_split(workers)))
    return torch.cat([s[0] for s in solved]), torch.cat([s[1] for s in solved])


@cache
def _pool(workers: int) -> ThreadPoolExecutor:
    """Threads that each keep to one core. Setting theirs changes what new threads get: set back."""
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(workers, "eigh", initializer=torch.set_num_threads, initargs=(1,))
    list(pool.map(torch.linalg.eigh, [torch.eye(2)] * (8 * workers)))  # starts them all
    torch.set_num_threads(threads)
    return pool
