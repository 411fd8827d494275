"""Readers: a source's own files, as rows of the shard schema.

A reader takes its spec and gives the source's class names and its *units of work*: pieces that
can be read apart, on any machine, each large enough to be worth a task. A unit's rows come with
stable, unique keys from the source's own naming, never from an order of reading. Encoded bytes
travel untouched. A reader decides neither parts nor shards nor order, and writes nothing.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa

from jobs.corpus.keyed import hash64
from jobs.corpus.shards import SCHEMA
from jobs.corpus.spec import DigitsReader
from jobs.corpus.spec import Reader as ReaderSpec


@dataclass(frozen=True)
class Unit:
    """A piece of a source, by the reader's own terms: its rows [start, stop)."""

    start: int
    stop: int


class Reader(Protocol):
    """What the corpus stage asks of any source. It is sent to workers, so it holds no handles."""

    def classes(self) -> tuple[str, ...]:
        """Class names in label order; empty for a source without labels."""

    def units(self) -> Sequence[Unit]:
        """The pieces that together are the whole source, each row in exactly one."""

    def read(self, unit: Unit) -> pa.Table:
        """A unit's rows, by `shards.SCHEMA`."""


def reader_of(spec: ReaderSpec) -> Reader:
    """The reader that an experiment file names by `kind`."""
    return Digits(spec)


DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

DIGIT_CAPTIONS = (
    "a photo of the handwritten digit {}",
    "the number {} written by hand",
    "a small scan of a {}",
    "a handwritten {}",
)


@dataclass(frozen=True)
class Digits:
    """scikit-learn's digits: keys `digits/0000` to `digits/1796`, 8 x 8 grey PNGs.

    The 17 grey levels of the source are spread over 0 to 255. Each caption names the digit in
    one of a few templates, chosen by key.
    """

    spec: DigitsReader

    def classes(self) -> tuple[str, ...]:
        """The ten digits' names."""
        return DIGIT_NAMES

    def units(self) -> Sequence[Unit]:
        """Two halves: the whole source is read in milliseconds."""
        return (Unit(0, 900), Unit(900, 1797))

    def read(self, unit: Unit) -> pa.Table:
        """The images numbered from `unit.start` to before `unit.stop`."""
        from sklearn.datasets import load_digits

        images, labels = load_digits(return_X_y=True)
        pixels = np.rint(images[unit.start : unit.stop] * (255 / 16)).astype(np.uint8)
        labels = labels[unit.start : unit.stop].astype(np.int32)
        keys = pa.array([f"digits/{i:04d}" for i in range(unit.start, unit.stop)])
        chosen = hash64(keys, seed=0, scope="digits", stream="caption") % np.uint64(
            len(DIGIT_CAPTIONS)
        )
        captions = [
            DIGIT_CAPTIONS[template].format(DIGIT_NAMES[label])
            for template, label in zip(chosen, labels, strict=True)
        ]
        side = np.full(len(labels), 8, np.int32)
        return pa.table(
            [keys, [_png(row.reshape(8, 8)) for row in pixels], labels, captions, side, side],
            schema=SCHEMA,
        )


def _png(grey: np.ndarray[tuple[int, int], np.dtype[np.uint8]]) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(grey).save(stream, format="PNG")
    return stream.getvalue()
