"""Sources like those of users, made of real encoded images, and a corpus built from one."""

import io
import tarfile
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs.contract import Outcome
from jobs.corpus import build as building
from jobs.corpus.layout import lay_out
from jobs.corpus.shards import write_shard
from jobs.corpus.spec import Corpus
from jobs.storage.folder import Folder

Picture = Callable[..., bytes]
Build = Callable[[Corpus, Path], tuple[Folder, Outcome]]
WriteTar = Callable[[Path, Mapping[str, bytes]], Path]


@pytest.fixture(scope="session")
def picture() -> Picture:
    """A different encoded image for each number, 16 x 12."""

    @lru_cache
    def encode(number: int, kind: str = "JPEG", mode: str = "RGB") -> bytes:
        pixels = np.random.default_rng(number).integers(0, 256, (12, 16, 3), np.uint8)
        stream = io.BytesIO()
        Image.fromarray(pixels).convert(mode).save(stream, kind)
        return stream.getvalue()

    return encode


@pytest.fixture
def write_tar() -> WriteTar:
    """Write a tar with these members, in their order."""

    def write(path: Path, members: Mapping[str, bytes]) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        mode = "w:gz" if path.name.endswith("gz") else "w"
        with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
            for name, data in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        return path

    return write


def built(corpus: Corpus, root: Path) -> tuple[Folder, Outcome]:
    """Build a corpus below a folder, in this process and without Ray."""
    output, scratch = Folder.of(root / "corpus"), Folder.of(root / "scratch")
    found = building.survey(corpus)
    building.resume(scratch, found)
    scans = [building.scan(corpus, found, piece, scratch) for piece in found.pieces]
    building.refuse_bad(corpus, found, scans)
    runs = [run for scan in scans for run in scan.runs]
    cuts = lay_out(corpus, scratch, runs)
    files = [(cut.part, write_shard(scratch, runs, cut, output, corpus.form)) for cut in cuts]
    return output, building.finish(corpus, found, scans, files, scratch, output)


@pytest.fixture
def build() -> Build:
    """See `built`."""
    return built
