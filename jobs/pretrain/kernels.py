"""How torch computes while runs train: threads, and kernels that give the same bytes twice.

Takes a run's `Resources` and its device. On a CPU the kernels are always deterministic, which costs
nothing. On a GPU some of them are slower, so they can be given up (`resources.deterministic`).
Settings of the process are restored at the end.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from jobs.pretrain.spec import Resources


def deterministic_kernels(resources: Resources, device: torch.device) -> bool:
    """Whether a run on this device computes the same bytes twice."""
    return resources.deterministic or device.type == "cpu"


@contextmanager
def torch_kernels(resources: Resources, device: torch.device) -> Iterator[None]:
    """Set the number of threads and the kind of kernels; restore both at the end."""
    chosen = deterministic_kernels(resources, device)
    threads = torch.get_num_threads()
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    filling: Any = torch.utils.deterministic  # its types lack the setting
    fill = filling.fill_uninitialized_memory
    torch.set_num_threads(resources.cpus_per_worker)
    torch.use_deterministic_algorithms(chosen, warn_only=True)
    # Otherwise torch fills every new tensor with NaN first, which takes time.
    filling.fill_uninitialized_memory = False
    # cuDNN times its kernels for a shape once and takes the fastest, another one in another run.
    torch.backends.cudnn.benchmark = not chosen
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
        filling.fill_uninitialized_memory = fill
        torch.backends.cudnn.benchmark = benchmark
