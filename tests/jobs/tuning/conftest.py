"""Fixtures of the tuning tests: feature folders, and cells on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch

from jobs.contract import Work
from jobs.storage.folder import Folder
from jobs.tuning.spec import TuneStep
from tests.jobs.tuning.blobs import CLASSES, SIZES, part_table

WriteFeatures = Callable[..., Folder]
MakeWork = Callable[..., Work]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def write_features(tmp_path: Path) -> WriteFeatures:
    def write(
        name: str = "features",
        *,
        views: int = 2,
        parts: Sequence[str] = tuple(SIZES),
        shuffle: int | None = None,
        noise: float = 1.0,
    ) -> Folder:
        folder = Folder.of(tmp_path / name)
        for part in parts:
            present = range(views + 1) if part == "train" else (0,)
            table = part_table(part, list(present), shuffle=shuffle, noise=noise)
            folder.write_table(f"features-{part}.parquet", table)
        folder.write_json("classes.json", list(CLASSES))
        return folder

    return write


@pytest.fixture
def make_work(tmp_path: Path) -> MakeWork:
    def make(address: str, spec: TuneStep, **inputs: Folder) -> Work:
        return Work(
            address=address,
            fingerprint="0" * 64,
            spec=spec,
            inputs=inputs,
            output=Folder.of(tmp_path / "out" / address),
            scratch=Folder.of(tmp_path / "scratch" / address),
        )

    return make
