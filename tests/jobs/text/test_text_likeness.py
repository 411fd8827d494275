"""Copies of texts are found, whatever their case, blanks and punctuation; other texts are not."""

import numpy as np
import pyarrow as pa
import pytest

from jobs.images.likeness import alike
from jobs.overlap.match import Finder, Images
from jobs.text.likeness import marks_of

TEXTS = ["A man sleeps.", "Nobody sleeps.", "Two dogs run", "一人が眠る", "..."]


def images(texts: list[str], pairs: list[str | None] | None = None) -> Images:
    rows = pa.table({"text": texts, "pair": pa.array(pairs or [None] * len(texts), pa.string())})
    marks = marks_of(rows)
    digests = np.frombuffer(b"".join(d for d in marks.digests if d), np.uint64).reshape(-1, 2)
    return Images(digests, marks.hashes, marks.thumbnails)


@pytest.mark.parametrize(
    ("copy", "exact"),
    [("A man sleeps.", True), ("a man  sleeps", False), ("A MAN sleeps!", False)],
)
def test_a_copy_is_found_as_exact_or_near(copy: str, exact: bool) -> None:
    finder = Finder(images([copy]))
    finder.add(images(TEXTS))
    assert finder.exact.tolist() == ([0] if exact else [-1])
    assert finder.near.tolist() == [0]


def test_texts_with_other_words_are_no_copies() -> None:
    generated = [f"{i} dogs run" for i in range(500)]
    finder = Finder(images(generated))
    finder.add(images([f"{i} dogs run" for i in range(500, 1_000)]))
    assert (finder.exact == -1).all()
    assert (finder.near == -1).all()
    marks = images(TEXTS).thumbnails
    assert not alike(marks[:-1], marks[1:]).any()


def test_a_pair_is_part_of_the_text() -> None:
    finder = Finder(images(["a b"], ["c"]))
    finder.add(images(["a b", "a", "a b"], ["d", "b c", None]))
    assert finder.exact.tolist() == finder.near.tolist() == [-1]
