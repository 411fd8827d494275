"""The figure of the realised transition matrix."""

import numpy as np

from analysis.figures import noise
from analysis.figures.style import save


def texts(counts: list[list[int]], classes: list[str]) -> list[str]:
    figure = noise.transition(np.array(counts), classes, title="t", detail="d")
    return [text.get_text() for text in figure.axes[0].texts]


def test_cells_show_the_percentage_of_their_class() -> None:
    found = texts([[90, 10], [0, 40]], ["cat", "dog"])
    assert {"90.0", "10.0", "100.0", "0.0"} <= set(found), "every cell has its number"


def test_an_empty_class_and_clean_labels_are_drawn_too() -> None:
    assert "100.0" in texts([[5, 0, 0], [0, 0, 0], [0, 0, 7]], ["a", "b", "c"])


def test_many_classes_are_drawn_without_numbers() -> None:
    size = 50
    found = texts((np.eye(size, dtype=int) * 9 + 1).tolist(), [str(i) for i in range(size)])
    assert not any("." in text for text in found)


def test_equal_counts_give_equal_bytes() -> None:
    counts = np.array([[3, 1], [1, 3]])
    one, other = (noise.transition(counts, ["$\\bad$", "b"], title="$5") for _ in range(2))
    assert save(one, "png") == save(other, "png")
