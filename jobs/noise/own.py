"""Noise of an extension: a function gives each sample's threshold and replacement.

Takes the keys and clean values of a corpus's training rows, and a function

    noise(keys, labels, classes, seed)   -> (thresholds, labels)     numpy [N], float and whole
    noise(keys, captions, classes, seed) -> (thresholds, captions)   numpy [N] and a list of texts

with `keys` a list of texts, `labels` numpy int32 [N], `classes` the names in label order and `seed`
that of the draw. A level changes the samples with the lowest thresholds. The function gets the rows
in the order of their keys and the count follows from the level, so whatever it does, levels are
nested and exact, and nothing depends on shards or on the rows' order. A sample without a threshold
(NaN), or whose replacement is its own value, cannot be changed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from jobs.contract import StageError
from jobs.corpus.readers.labels import is_unicode
from jobs.extensions.declared import Declared
from jobs.extensions.load import blaming, load
from jobs.extensions.spec import Part
from jobs.noise.captions import Captioned
from jobs.noise.labels import Choice, Flips, Labelled, Labels, Mask, Rows, possible_count


def labels(samples: Labelled, choice: Choice, part: Part, classes: Sequence[str]) -> Flips:
    """The plan of a label noise. Raises StageError for what the function gets wrong."""
    order = _by_key(samples.keys)
    thresholds, given = _call(part, samples.keys, samples.labels[order], order, classes, choice)
    found = _numbers(given)
    if found is None or found.shape != (len(order),) or (found != np.floor(found)).any():
        raise StageError(
            f"{part}: its labels are not {len(order)} whole numbers; return one for each key"
        )
    outside = (found < 0) | (found >= samples.classes)
    if outside.any():
        raise StageError(
            f"{part}: label {found[outside][0]:g} is outside 0..{samples.classes - 1}, the numbers "
            f"of the corpus's classes; return one of these"
        )
    noisy: Labels = np.empty(len(order), np.int32)
    noisy[order] = found
    allowed = samples.allowed(choice)
    rows, able = _lowest(thresholds, order, allowed & (noisy != samples.labels))
    empty = rows[~samples.has_rows[noisy[rows]]]
    if len(empty):
        raise StageError(
            f"{part} gives key {samples.keys[int(empty[0])].as_py()!r} the class "
            f"{classes[noisy[empty[0]]]!r}, which has no training row ({len(empty)} such keys); "
            f"give another class, or the threshold NaN"
        )
    counts = {"rows_not_changeable": int((allowed & ~able).sum())}
    return Flips(samples, noisy, rows, int(allowed.sum()), choice.of, counts)


@dataclass(frozen=True)
class Replaced:
    """Captions replaced by others, for every level."""

    samples: Captioned
    noisy: pa.Array  # each sample's caption if it is changed, [N]
    order: Rows  # the samples that can be changed; a level takes the first ones
    eligible: int
    of: str
    counts: dict[str, int]

    def changed(self, level: float) -> pa.Table:
        """The changed samples by position: row (int64), key, clean and noisy caption (string)."""
        of = len(self.noisy) if self.of == "corpus" else self.eligible
        wanted = possible_count(level, of, len(self.order), self.samples.corpus, "captions")
        rows = pa.array(np.sort(self.order[:wanted]))
        return pa.table(
            {
                "row": rows,
                "key": self.samples.keys.take(rows),
                "clean": self.samples.captions.take(rows),
                "noisy": self.noisy.take(rows),
            }
        )


def captions(
    samples: Captioned, choice: Choice, part: Part, classes: Sequence[str], allowed: Mask | None
) -> Replaced:
    """The plan of a caption noise. Raises StageError for what the function gets wrong."""
    order = _by_key(samples.keys)
    clean = samples.captions.take(pa.array(order)).to_pylist()
    thresholds, given = _call(part, samples.keys, clean, order, classes, choice)
    if isinstance(given, (str, bytes, Set, Mapping)):  # its parts are no captions, or in no order
        raise StageError(
            f"{part}: its captions are a {type(given).__name__}; return a list of {len(order)} "
            f"texts, one for each key"
        )
    with blaming(part.extension):  # it may be a generator
        found = list(given)
    if len(found) != len(order) or not all(_is_caption(text) for text in found):
        raise StageError(
            f"{part}: its captions are not {len(order)} texts, one for each key, with words in "
            f"each and no NUL; return such a list"
        )
    back = np.argsort(order)
    noisy = pa.array(found, samples.captions.type).take(pa.array(back))
    differs = np.array([ours != theirs for ours, theirs in zip(clean, found, strict=True)])[back]
    everywhere = np.ones(len(order), np.bool_) if allowed is None else allowed
    rows, able = _lowest(thresholds, order, everywhere & differs)
    counts = {"rows_not_changeable": int((everywhere & ~able).sum())}
    return Replaced(samples, noisy, rows, int(everywhere.sum()), choice.of, counts)


def _by_key(keys: pa.Array) -> Rows:
    """The rows' positions in the order of their keys."""
    texts = keys.to_pylist()
    return np.array(sorted(range(len(texts)), key=texts.__getitem__), np.int64)


def _call(
    part: Part, keys: pa.Array, clean: Any, order: Rows, classes: Sequence[str], choice: Choice
) -> tuple[Any, Any]:
    with blaming(part.extension):
        found = load(part)(
            keys.take(pa.array(order)).to_pylist(), clean, tuple(classes), choice.seed
        )
    if not isinstance(found, tuple) or len(found) != 2:
        raise StageError(
            f"{part} returns {type(found).__name__}; return (thresholds, replacements)"
        )
    thresholds = _numbers(found[0])
    if thresholds is None:
        raise StageError(f"{part}: its thresholds are not numbers; return one for each key")
    if thresholds.shape != (len(order),):
        raise StageError(
            f"{part}: its thresholds have the shape {thresholds.shape}, not ({len(order)},); "
            f"return one for each key"
        )
    return thresholds, found[1]


def _numbers(given: Any) -> npt.NDArray[np.float64] | None:
    """What a function returned as float64; None if it is no array of real numbers."""
    try:
        found = np.asarray(given)
    except Exception:  # any object may be returned
        return None
    return found.astype(np.float64) if found.dtype.kind in "fiu" else None


def _is_caption(text: Any) -> bool:
    """Whether a corpus could have this caption."""
    return isinstance(text, str) and bool(text.strip()) and "\0" not in text and is_unicode(text)


def _lowest(thresholds: Any, order: Rows, able: Mask) -> tuple[Rows, Mask]:
    """(positions that can change, by rising threshold and then key; which ones they are)."""
    able = able.copy()
    able[order] &= ~np.isnan(thresholds)
    ranked = order[np.argsort(thresholds, kind="stable")]
    return ranked[able[ranked]], able


def check(part: Part, declared: Declared) -> str:
    """One sentence about a function that works on made-up rows. StageError if it does not."""
    keys = [f"sample-{number:03d}" for number in range(200)]
    names = ("cat", "dog", "fox", "owl", "eel")
    of_captions = "captions" in declared.arguments
    made: list[Flips | Replaced] = []
    for order in (range(200), range(200), range(199, -1, -1)):
        own = [keys[n] for n in order]
        if of_captions:
            texts = Captioned.of("made-up", own, [f"a {names[n % 5]} number {n}" for n in order])
            made.append(captions(texts, Choice(), part, names, None))
        else:
            rows = Labelled.of("made-up", own, [n % 5 for n in order], len(names))
            made.append(labels(rows, Choice(), part, names))
    reach = 100 * len(made[0].order) / 200
    level = min(20.0, reach)
    first, again, turned = (
        {row["key"]: row["noisy"] for row in one.changed(level).to_pylist()} for one in made
    )
    if first != again:
        raise StageError(f"{part} gives other noise when it is called again; draw from its seed")
    if first != turned:
        raise StageError(f"{part} depends on the order of the rows; draw from keys and seed")
    what = "captions" if of_captions else "labels"
    return f"changes up to {reach:.0f} % of made-up {what}, nested and exact"
