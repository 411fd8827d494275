"""Likeness of texts: what tells that two texts are copies of each other.

Takes rows of a corpus of texts; gives a digest of each row's texts, and marks in which copies agree
that differ in letter case, blanks or punctuation alone. Hash and thumbnail are drawn from a hash of
the words: rows with the same words agree in both, and others never come near each other. Nothing
here knows parts, tasks or labels.
"""

from __future__ import annotations

import hashlib
import unicodedata

import numpy as np
import pyarrow as pa

from jobs.likeness import BITS, DIGEST, THUMBNAIL, Marks


def marks_of(rows: pa.Table) -> Marks:
    """What rows [N] with `text` and `pair` are compared by."""
    digests: list[bytes | None] = []
    hashes = np.empty(len(rows), np.uint64)
    drawn = np.empty((len(rows), THUMBNAIL), np.uint8)
    pairs = zip(rows["text"].to_pylist(), rows["pair"].to_pylist(), strict=True)
    for row, (text, pair) in enumerate(pairs):
        digests.append(_digest(text, pair).digest())
        words = _digest(_words(text), None if pair is None else _words(pair)).digest()
        hashes[row] = int.from_bytes(words[:8], "little") & ((1 << BITS) - 1)
        drawn[row] = np.frombuffer(hashlib.shake_128(words).digest(THUMBNAIL), np.uint8)
    return Marks(digests, hashes, drawn)


def _digest(text: str, pair: str | None) -> hashlib.blake2b:
    whole = text if pair is None else f"{text}\0{pair}"
    return hashlib.blake2b(whole.encode(), digest_size=DIGEST)


def _words(text: str) -> str:
    """The words of a text in lower case; the text itself if it has none."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    kept = "".join(letter if letter.isalnum() else " " for letter in folded)
    return " ".join(kept.split()) or text
