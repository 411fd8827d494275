"""scikit-learn's handwritten digits, the corpus of the demo."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from jobs.corpus.reader_spec import DigitsReader
from jobs.corpus.readers.rows import RAW, Classes, Unit
from jobs.keyed_hash import hash64

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

CAPTIONS = (
    "a photo of the handwritten digit {}",
    "the number {} written by hand",
    "a small scan of a {}",
    "a handwritten {}",
)


@dataclass(frozen=True)
class Digits:
    """scikit-learn's digits: keys `digits/0000` to `digits/1796`, 8 x 8 grey PNGs.

    The source's 17 grey levels are scaled to 0..255. Each caption names the digit in one of four
    templates, chosen by key.
    """

    spec: DigitsReader

    labels = True
    captions = True

    def classes(self) -> Classes:
        """The ten digits' names."""
        return Classes.of(NAMES)

    def units(self) -> Sequence[Unit]:
        """One unit: the whole source is read in milliseconds."""
        return (Unit("digits", 0, 1797),)

    def files(self) -> Iterator[tuple[str, int]]:
        """No files: the images are part of the package."""
        return iter(())

    def label_counts(self) -> Counter[int]:
        """About 180 of each digit."""
        from sklearn.datasets import load_digits

        return Counter(load_digits(return_X_y=True)[1].tolist())

    def read(self, unit: Unit, notes: Counter[str]) -> Iterator[pa.Table]:
        """Images [unit.start, unit.stop)."""
        from sklearn.datasets import load_digits

        images, labels = load_digits(return_X_y=True)
        pixels = np.rint(images[unit.start : unit.stop] * (255 / 16)).astype(np.uint8)
        labels = labels[unit.start : unit.stop]
        keys = pa.array([f"digits/{i:04d}" for i in range(unit.start, unit.stop)])
        drawn = hash64(keys, seed=0, scope="digits", stream="caption") % np.uint64(len(CAPTIONS))
        captions = [
            CAPTIONS[template].format(NAMES[label]).encode()
            for template, label in zip(drawn, labels, strict=True)
        ]
        yield pa.table(
            {
                "source": ["digits"] * len(keys),
                "key": keys,
                "image": [_png(row.reshape(8, 8)) for row in pixels],
                "label": labels,
                "caption": captions,
                "mask": [None] * len(keys),
                "claims": ["png"] * len(keys),
                "fault": [None] * len(keys),
                "detail": [None] * len(keys),
            },
            schema=RAW,
        )


def _png(grey: np.ndarray[tuple[int, int], np.dtype[np.uint8]]) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(grey).save(stream, format="PNG")
    return stream.getvalue()
