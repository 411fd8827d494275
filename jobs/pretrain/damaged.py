"""The images of a run that cannot be decoded: shown as grey, counted over all workers, limited.

Takes the sets of names to which sources and parts add each such image that they meet. What is shown
instead (`jobs.images.pixels.or_grey`) depends on nothing, so a run stays the same in memory and
streamed, for any number of workers, and when it resumes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from jobs.contract import StageError
from jobs.pretrain.distributed import DistributedGroup


class DamagedImages:
    """Counts the damaged images that a run has met."""

    def __init__(self, group: DistributedGroup, most: int, met: Sequence[set[str]]) -> None:
        """`met`: sets to which this worker's parts add names. `most`: the limit of the run."""
        self._group, self._most, self._met = group, most, met
        self._before: set[str] = set()

    def restore(self, names: Iterable[str]) -> None:
        """Continue with those of a checkpoint."""
        self._before = set(names)

    def check_own(self) -> None:
        """Raise StageError as soon as this worker alone has met too many. Costs no exchange."""
        self._refuse_too_many(self._before.union(*self._met))

    def check(self) -> tuple[str, ...]:
        """The names met by all workers, sorted; StageError if they are too many.

        All workers must call this.
        """
        found = self._group.union(self._before.union(*self._met))
        self._refuse_too_many(found)
        return tuple(sorted(found))

    def _refuse_too_many(self, names: set[str]) -> None:
        if len(names) > self._most:
            raise StageError(
                f"{len(names):,} images cannot be decoded, more than pretrain.max_damaged = "
                f"{self._most:,} ({min(names)}, for one); set corpus.verify to full, which leaves "
                f"them out of the corpus, and build it again, or raise pretrain.max_damaged"
            )
