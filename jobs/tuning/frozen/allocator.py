"""Memory that is freed at one training step and wanted at the next stays with the process.

glibc hands large blocks back to the system when they are freed, and gets them anew, page by page,
every page zeroed: a seventh to a quarter of the time of a head's step on a CPU (docs/tuning.md). A
process that trains for minutes may as well keep them.
"""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # malloc.h


def keep_freed_memory() -> None:
    """From now on, in this process; without effect where malloc is not glibc's.

    Threads that have not allocated yet share one heap, for those of their own are small.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(_MMAP_THRESHOLD, 1 << 30)
    mallopt(_TRIM_THRESHOLD, (1 << 31) - 1)
    mallopt(_ARENA_MAX, 1)
