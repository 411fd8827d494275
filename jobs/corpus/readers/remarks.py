"""Short remarks on films or on kitchen things, the texts of the text demo.

Each remark is made from a frame, a subject and an opinion, so the corpus needs no file and no
network. The opinion decides the class. The two domains share the frames and no subject, and only
some of their opinions: heads that are trained on one meet new words on the other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import pyarrow as pa

from jobs.corpus.reader_spec import RemarksReader
from jobs.corpus.readers.rows import TEXTS, Classes, Unit

NAMES = ("negative", "positive")

_FRAMES = (
    "{subject} {opinion}.",
    "I did not know what to think at first, but {subject} {opinion}.",
    "My sister was right: {subject} {opinion}.",
    "For the price, {subject} {opinion}.",
    "After a second try I can say that {subject} {opinion}.",
)

_SUBJECTS = {
    "films": (
        "the film",
        "the plot",
        "the acting",
        "the ending",
        "the script",
        "the camera work",
        "the music",
        "the first half",
    ),
    "kitchen": (
        "the blender",
        "the pan",
        "the kettle",
        "the knife",
        "the toaster",
        "the lid",
        "the handle",
        "the oven glove",
    ),
}

_SHARED = {
    "negative": (
        "is a waste of money",
        "let me down",
        "is worse than the old one",
        "is a bad joke",
    ),
    "positive": ("is worth every penny", "won me over", "is better than I hoped", "is a pleasure"),
}

_OWN = {
    ("films", "negative"): (
        "drags on without a point",
        "put me to sleep",
        "feels flat and lifeless",
        "makes no sense at all",
        "falls apart long before the credits",
        "is dull from start to finish",
    ),
    ("films", "positive"): (
        "moved me to tears of joy",
        "kept me on the edge of my seat",
        "is clever and warm",
        "stays with you for days",
        "is a small masterpiece",
        "made the whole room laugh",
    ),
    ("kitchen", "negative"): (
        "broke after two weeks",
        "leaks all over the table",
        "burns everything",
        "smells of melting plastic",
        "is far too heavy to lift",
        "arrived with a crack",
    ),
    ("kitchen", "positive"): (
        "works perfectly every morning",
        "is easy to clean",
        "feels solid in the hand",
        "still looks like new",
        "heats up in no time",
        "does exactly what it should",
    ),
}


@dataclass(frozen=True)
class Remarks:
    """The remarks of one domain: keys `films/0000` to `films/0799`, half of them positive."""

    spec: RemarksReader

    labels = True
    captions = False

    def classes(self) -> Classes:
        """Negative and positive."""
        return Classes.of(NAMES)

    def units(self) -> Sequence[Unit]:
        """One unit: the whole source is made in milliseconds."""
        return (Unit(self.spec.domain, 0, RemarksReader.rows or 0),)

    def files(self) -> Iterator[tuple[str, int]]:
        """No files: the texts are made here."""
        return iter(())

    def label_counts(self) -> Counter[int]:
        """Half of each class."""
        return Counter(label for _, label in self._texts())

    def read(self, unit: Unit, notes: Counter[str]) -> Iterator[pa.Table]:
        """Remarks [unit.start, unit.stop)."""
        rows = list(self._texts())[unit.start : unit.stop]
        numbers = range(unit.start, unit.start + len(rows))
        none = [None] * len(rows)
        yield pa.table(
            {
                "source": [unit.file] * len(rows),
                "key": [f"{unit.file}/{number:04d}" for number in numbers],
                "text": [text.encode() for text, _ in rows],
                "pair": none,
                "label": [label for _, label in rows],
                "number": none,
                "fault": none,
                "detail": none,
            },
            schema=TEXTS,
        )

    def _texts(self) -> Iterator[tuple[str, int]]:
        """Every remark of the domain and its label."""
        domain = self.spec.domain
        for label, name in enumerate(NAMES):
            opinions = (*_SHARED[name], *_OWN[domain, name])
            for frame, subject, opinion in product(_FRAMES, _SUBJECTS[domain], opinions):
                text = frame.format(subject=subject, opinion=opinion)
                yield text[:1].upper() + text[1:], label
