"""What each image adds to a score of masks: its mean is the score, its spread the bootstrap's."""

import numpy as np
import pyarrow as pa
import pytest

from jobs.tuning import schema
from orchestrator.results import masks


def table(seed: int, images: int = 60, classes: int = 4) -> tuple[pa.Table, np.ndarray]:
    """A cell's predictions, and the pixels [3, N, C] of intersection, prediction and label."""
    drawn = np.random.default_rng(seed)
    labelled = drawn.integers(0, 400, (images, classes)) * (drawn.random((images, classes)) < 0.7)
    hits = (labelled * drawn.beta(4, 2, (images, classes))).astype(int)
    guessed = hits + drawn.integers(0, 80, (images, classes))
    sums = np.stack([hits, guessed, labelled])
    rows = []
    for image in range(images):
        met = np.flatnonzero(sums[1, image] + sums[2, image])
        names = ("intersection", "predicted_pixels", "labelled_pixels")
        found = {name: tuple(sums[at, image, met].tolist()) for at, name in enumerate(names)}
        rows.append(schema.Segmented(f"k{image:02d}", (0,), (0,), tuple(met.tolist()), **found))
    return schema.to_table(schema.Segmented, rows), sums


def score(sums: np.ndarray, metric: str) -> float:
    hits, guessed, labelled = sums.sum(axis=1)
    if metric == "pixel_accuracy":
        return float(hits.sum() / labelled.sum())
    return float((hits / (guessed + labelled - hits)).mean())


@pytest.mark.parametrize("metric", ["miou", "pixel_accuracy"])
def test_shares_average_to_the_score_and_spread_as_resampled_images_do(metric: str) -> None:
    found, sums = table(0)
    shares = masks.shares(found, metric).to_numpy()
    assert shares.mean() == pytest.approx(score(sums, metric), rel=1e-9)
    drawn = np.random.default_rng(1)
    count = sums.shape[1]
    resampled = [score(sums[:, drawn.integers(0, count, count)], metric) for _ in range(2_000)]
    assert shares.std(ddof=1) / count**0.5 == pytest.approx(np.std(resampled), rel=0.1)
