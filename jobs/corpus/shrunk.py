"""What `corpus.shrink` has done: how many images were stored smaller, and their bytes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shrunk:
    """The images that were shrunk, and their bytes before and after."""

    images: int
    bytes_before: int
    bytes_after: int

    def __add__(self, other: Shrunk) -> Shrunk:
        return Shrunk(
            self.images + other.images,
            self.bytes_before + other.bytes_before,
            self.bytes_after + other.bytes_after,
        )


NONE = Shrunk(0, 0, 0)
