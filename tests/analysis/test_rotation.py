"""Promises of the rotation: blind to what is no turn, right where the answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from analysis.rotation import rotation, space


def features(rows: int = 300, dim: int = 20, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.standard_normal((rows, dim)) * np.geomspace(8, 0.1, dim) + 3.0


def test_an_orthogonal_map_of_the_dimensions_is_no_rotation() -> None:
    first = features()
    turn, _ = np.linalg.qr(np.random.default_rng(1).standard_normal((20, 20)))
    found = rotation(space(first, 5), space(7 * first @ turn + 2, 5))
    assert found.overlap == pytest.approx(1.0)
    assert found.cka == pytest.approx(1.0)
    assert max(found.angles) < 1e-4


def test_encoders_of_other_widths_are_compared() -> None:
    first = features()
    wide = np.concatenate([first, np.zeros((300, 400))], axis=1)  # N < D: the other Gram matrix
    found = rotation(space(first, 5), space(wide, 5))
    assert found.overlap == pytest.approx(1.0)
    assert found.cka == pytest.approx(1.0)


def test_a_known_angle_is_found() -> None:
    random = np.random.default_rng(2)
    raw = random.standard_normal((50, 2))
    basis, _ = np.linalg.qr(raw - raw.mean(axis=0))
    for degrees in (0.0, 20.0, 90.0):
        a = math.radians(degrees)
        turned = math.cos(a) * basis[:, :1] + math.sin(a) * basis[:, 1:]
        found = rotation(space(basis[:, :1], 1), space(turned, 1))
        assert found.angles == pytest.approx((degrees,), abs=1e-5)
        assert found.overlap == pytest.approx(math.cos(a) ** 2)
        assert found.cka == pytest.approx(math.cos(a) ** 2)


def test_the_subspace_is_that_of_a_full_svd() -> None:
    first = features()
    left = np.linalg.svd(first - first.mean(axis=0), full_matrices=False)[0][:, :4]
    top = space(first, 4).top
    assert np.linalg.svd(left.T @ top, compute_uv=False) == pytest.approx(np.ones(4))


def test_unrelated_encoders_overlap_by_chance_alone() -> None:
    found = rotation(space(features(seed=1), 10), space(features(seed=2), 10))
    assert found.overlap < 0.1
    assert (found.k, found.rows) == (10, 300)


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ValueError, match="300 and 200 samples"):
        rotation(space(features()), space(features(200)))
    with pytest.raises(ValueError, match="constant"):
        rotation(space(features()), space(np.ones((300, 4))))
    with pytest.raises(ValueError, match="infinite"):
        space(np.full((3, 3), np.inf))
    with pytest.raises(ValueError, match="no subspaces"):
        space(np.ones((1, 3)))
