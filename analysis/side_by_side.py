"""Two sweeps side by side: the averages of each by level and method, and their difference.

Takes two `Readout`s, gives rows. Both sides are averaged over the tasks that they share, judged by
the same metric. The difference is paired by replicate: over pre-training seeds that both have. Two
sweeps need not share anything else. Reads no store and draws nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc

from analysis.readout import Readout
from analysis.schemas import DOMAINS
from analysis.statistics import Difference, Interval


@dataclass(frozen=True)
class Row:
    """A method at a noise level in one domain, in both sweeps."""

    domain: str
    method: str
    noise: float  # level, percent
    first: Interval | None  # over replicates; None: not measured
    second: Interval | None
    difference: Difference | None  # second minus first; None: no replicate in common


@dataclass(frozen=True)
class SideBySide:
    """Two readouts with the same tasks, and what had to be left out for that."""

    first: Readout
    second: Readout
    tasks: tuple[str, ...]  # that both have, by the same metric
    left_out: tuple[str, ...]  # tasks of one side alone, or judged by two metrics

    def rows(self) -> list[Row]:
        """Every average that at least one side has, by domain, method and level."""
        return list(self._rows())

    def _rows(self) -> Iterator[Row]:
        methods = dict.fromkeys((*self.first.methods(), *self.second.methods()))
        for domain in DOMAINS:
            for method in methods:
                ours, theirs = (one.scores(domain, method) for one in (self.first, self.second))
                for noise in sorted({*ours.levels, *theirs.levels}):
                    yield Row(
                        *(domain, method, noise),
                        first=ours.interval(noise),
                        second=theirs.interval(noise),
                        difference=theirs.against(ours, noise),
                    )


def side_by_side(first: Readout, second: Readout) -> SideBySide:
    """The two, cut down to the tasks that both have.

    Raises ValueError with a sentence where nothing can be compared: a side has no finished cell of
    an encoder trained here, or they share no task or no method at any noise level.
    """
    for readout in (first, second):
        if not readout.cells.num_rows:
            raise ValueError(
                f"{readout.experiment} has no finished cell of an encoder that was pre-trained at "
                f"a noise level, by which two sweeps are compared; sweep it to the end, or name "
                f"another"
            )
    ours, theirs = first.metrics(), second.metrics()
    tasks = tuple(sorted(task for task in ours if theirs.get(task) == ours[task]))
    if not tasks:
        raise ValueError(
            f"the two have no task in common that is judged by the same metric (one has "
            f"{', '.join(sorted(ours))}, the other {', '.join(sorted(theirs))}); name two sweeps "
            f"that share a task"
        )
    left_out = tuple(sorted({*ours, *theirs} - {*tasks}))
    found = SideBySide(_of_tasks(first, tasks), _of_tasks(second, tasks), tasks, left_out)
    if not any(row.first and row.second for row in found.rows()):
        raise ValueError(
            f"the two have no method and noise level in common on {', '.join(tasks)}; name two "
            f"sweeps that share both"
        )
    return found


def _of_tasks(readout: Readout, tasks: tuple[str, ...]) -> Readout:
    """A readout with the cells of some tasks alone."""
    wanted = pc.field("task").isin(pa.array(tasks))
    return replace(readout, cells=readout.cells.filter(wanted))
