"""The files of features of patches: complete, sorted, mapped, and scored by a cell."""

from pathlib import Path

import numpy as np
import pytest
from scenes import scene

from jobs.contract import StageError
from jobs.features import grids
from jobs.features.parts import has_unit
from jobs.images import masks
from jobs.storage.folder import Folder
from jobs.tuning.frozen.features import FeatureCache, read_part
from jobs.tuning.frozen.patches import PatchRows
from tests.patches import ROWS, SIDE, Extracted, extracted


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Extracted:
    return extracted(tmp_path_factory.mktemp("patches"))


def test_every_part_is_sorted_by_key_and_has_each_patch(made: Extracted) -> None:
    rows = 0
    for part in ("train", "validation", "test"):
        found = grids.read_part(made.folder, part)
        keys = found.keys.to_pylist()
        assert keys == sorted(keys)
        assert found.features.shape == (3 if part == "train" else 1, len(keys), SIDE**2, 16)
        assert found.features.dtype == np.float16
        for at, key in enumerate(keys):
            mask = scene(int(key.removeprefix("scene-")))[1]
            assert np.array_equal(found.counts[0, at], masks.counts(mask, SIDE, 3))
        assert made.outcome.counts[f"rows_{part}"] == found.features.shape[0] * len(keys)
        rows += len(keys)
    assert rows == ROWS
    assert made.outcome.counts["patches"] == SIDE**2
    assert np.isfinite(made.outcome.metrics["features/sve"])


def test_views_have_counts_of_their_own(made: Extracted) -> None:
    counts = grids.read_part(made.folder, "train").counts
    assert not np.array_equal(counts[1], counts[0])
    assert not np.array_equal(counts[1], counts[2])


def test_a_unit_of_another_grid_is_extracted_again(made: Extracted) -> None:
    assert has_unit(made.scratch, made.units[0], made.identity(made.step))
    other = made.step.model_copy(update={"grid": made.step.grid.model_copy(update={"layer": 0})})
    assert not has_unit(made.scratch, made.units[0], made.identity(other))


def test_features_stay_in_their_file(made: Extracted) -> None:
    part = read_part(made.folder, "train")
    assert isinstance(part.views.base, np.memmap) or isinstance(part.views, np.memmap)
    assert part.augmented == 2
    assert part.views.shape[1] == len(part.keys) == len(part.labels)
    plain = FeatureCache().load(made.folder, plain=True).train
    assert plain.augmented == 0
    assert plain.views.shape[0] == 1
    some = PatchRows(part.views, np.array([5, 2, 9]))
    assert np.array_equal(some[:, [0, 2]].numpy(), part.views[:, [5, 9]].astype(np.float32))
    assert np.array_equal(some[1, [1]].numpy(), part.views[1, [2]].astype(np.float32))


def test_a_folder_without_a_file_says_so(made: Extracted, tmp_path: Path) -> None:
    empty = Folder.of(tmp_path)
    empty.write_bytes("keys-test.parquet", made.folder.read_bytes("keys-test.parquet"))
    with pytest.raises(StageError, match="lacks a file of the patches of its test part"):
        read_part(empty, "test")
