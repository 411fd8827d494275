"""Wall time and processor time, for the benchmarks of pre-training."""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Spent:
    """Seconds of wall time, and of processor time of this process and its ended children.

    On a shared machine, wall time also measures other processes.
    """

    wall: float
    cpu: float

    @classmethod
    def now(cls) -> Spent:
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = time.process_time() + ended.ru_utime + ended.ru_stime
        return cls(time.perf_counter(), cpu)

    def since(self, before: Spent) -> Spent:
        return Spent(self.wall - before.wall, self.cpu - before.cpu)

    def __str__(self) -> str:
        return f"{1e3 * self.cpu:.1f} ms of a processor ({1e3 * self.wall:.1f} ms)"
