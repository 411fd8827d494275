"""`corpus.shrink` stores large images smaller, and training sees of them what it would see."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms
from pydantic import ValidationError

from jobs.contract import Outcome
from jobs.corpus.reader_spec import ImageFolderReader
from jobs.corpus.shards import INDEX, Index, read_part
from jobs.corpus.spec import Corpus
from jobs.images.decode import open_image
from jobs.images.shrink import shrunk, smaller_size
from jobs.images.spec import MOST_PIXELS, Shrink
from jobs.storage.folder import Folder
from orchestrator.cli.corpus import _in_a_line, _lines, _summary

SMALL = Shrink(shorter_side=32, quality=95)
Build = Callable[[Corpus, Path], tuple[Folder, Outcome]]


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """A smooth RGB image: JPEG loses little of it."""
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def stored(data: bytes) -> Image.Image:
    found = shrunk(data, SMALL, MOST_PIXELS)
    assert found is not None
    image = Image.open(io.BytesIO(found[0]))
    assert (image.format, image.size) == ("JPEG", found[1])
    return image


@pytest.mark.parametrize(
    ("size", "wanted"),
    [
        ((64, 48), (43, 32)),
        ((48, 64), (32, 43)),
        ((33, 1000), (32, 970)),
        ((32, 1000), None),
        ((20, 20), None),
        ((64, 200_000), None),  # no JPEG is as long as that
    ],
)
def test_the_shorter_side_is_as_asked_for_and_never_longer(
    size: tuple[int, int], wanted: tuple[int, int] | None
) -> None:
    assert smaller_size(*size, SMALL) == wanted


def grey_alpha() -> bytes:
    return encoded(photo(64, 48).convert("LA"))


def palette() -> bytes:
    return encoded(photo(64, 48).quantize(64), transparency=0)


def alpha() -> bytes:
    image = photo(64, 48)
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return encoded(image)


def sixteen_bits() -> bytes:
    deep = np.asarray(photo(64, 48).convert("L")).astype(np.uint16) * 257
    return encoded(Image.fromarray(deep))


def profiled() -> bytes:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    return encoded(photo(64, 48), "JPEG", quality=95, icc_profile=profile, comment=b"a comment")


@pytest.mark.parametrize(
    ("data", "mode"),
    [
        (encoded(photo(64, 48), "JPEG", quality=95), "RGB"),
        (encoded(photo(64, 48).convert("L"), "JPEG", quality=95), "L"),
        (encoded(photo(64, 48).convert("CMYK"), "JPEG", quality=95), "RGB"),
        (encoded(photo(64, 48), "WEBP", lossless=True), "RGB"),
        (grey_alpha(), "RGB"),
        (palette(), "RGB"),
        (alpha(), "RGB"),
        (sixteen_bits(), "L"),
        (profiled(), "RGB"),
    ],
    ids=["rgb", "grey", "cmyk", "webp", "grey-alpha", "palette", "alpha", "16-bits", "icc"],
)
@pytest.mark.parametrize("seen", ["RGB", "L"])
def test_training_sees_of_every_kind_of_image_what_it_would_see(
    data: bytes, mode: str, seen: str
) -> None:
    """Up to what a smaller image and a JPEG lose, whatever alpha and profile say."""
    found = stored(data)
    assert found.mode == mode
    assert not {"icc_profile", "comment", "exif"} & set(found.info)
    sides = [image.convert(seen).resize((24, 24)) for image in (open_image(data), found)]
    before, after = (np.asarray(side).astype(int) for side in sides)
    assert np.abs(before - after).mean() < 5  # of 255


def test_the_orientation_of_the_file_stays_beside_pixels_that_are_not_turned() -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a camera"
    found = stored(encoded(photo(64, 48), "JPEG", quality=95, exif=exif))
    assert found.size == (43, 32)
    assert dict(found.getexif()) == {0x0112: 6}
    upright = stored(encoded(photo(64, 48), "JPEG", quality=95))
    assert np.abs(np.asarray(found).astype(int) - np.asarray(upright)).mean() == 0


def put_tree(root: Path) -> dict[str, bytes]:
    """Two classes of images, by their keys."""
    files = {
        "a/large.jpg": encoded(photo(96, 72), "JPEG", quality=95),
        "a/small.jpg": encoded(photo(40, 32, 1), "JPEG", quality=95),
        "b/large.png": encoded(photo(80, 80, 2)),
        "b/cut.jpg": encoded(photo(96, 72, 3), "JPEG", quality=95)[:-900],
    }
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return files


def corpus(path: Path, shrink: Shrink | None) -> Corpus:
    reader = ImageFolderReader(path=str(path))
    parts = {"train": 1.0, "validation": 0.0, "test": 0.0}
    return Corpus.model_validate(
        {"name": "c", "reader": reader, "parts": parts, "max_bad_share": 0.5, "shrink": shrink}
    )


def test_only_large_images_are_stored_smaller_and_they_are_counted(
    tmp_path: Path, build: Build
) -> None:
    files = put_tree(tmp_path / "tree")
    (plain, _), (small, outcome) = (
        build(corpus(tmp_path / "tree", shrink), tmp_path / name)
        for name, shrink in (("plain", None), ("small", SMALL))
    )
    columns = ["key", "image", "width", "height"]
    rows = {row["key"]: row for row in read_part(small, "train", columns).to_pylist()}
    assert rows.keys() == {"a/large.jpg", "a/small.jpg", "b/large.png"}
    assert rows["a/small.jpg"]["image"] == files["a/small.jpg"]
    for key, size in (("a/large.jpg", (43, 32)), ("b/large.png", (32, 32))):
        assert (rows[key]["width"], rows[key]["height"]) == size
        assert Image.open(io.BytesIO(rows[key]["image"])).size == size
    index = Index.read(small)
    assert index.quarantined == {"truncated": 1}, "an image that is shrunk is decoded"
    before = sum(len(files[key]) for key in ("a/large.jpg", "b/large.png"))
    after = sum(len(rows[key]["image"]) for key in ("a/large.jpg", "b/large.png"))
    counts = {n: c for n, c in outcome.counts.items() if n.startswith("shrunk")}
    assert counts == {
        "shrunk_images": 2,
        "shrunk_bytes_before": before,
        "shrunk_bytes_after": after,
    }
    shown = "\n".join(_lines("corpus/c", _summary(small)))
    words = f"2 images shrunk from {before / 1e6:,.1f} MB to {after / 1e6:,.1f} MB"
    assert words in shown
    assert words in _in_a_line(index)
    assert "shrunk" not in json.loads((plain.local_path() / INDEX).read_text())
    assert "shrunk" not in "\n".join(_lines("corpus/c", _summary(plain)))


def test_a_build_that_goes_on_counts_what_it_shrank_before(tmp_path: Path, build: Build) -> None:
    put_tree(tmp_path / "tree")
    first, _ = build(corpus(tmp_path / "tree", SMALL), tmp_path)
    index = Index.read(first)
    again, _ = build(corpus(tmp_path / "tree", SMALL), tmp_path)  # its units are in scratch
    assert Index.read(again) == index
    assert index.shrunk is not None
    assert index.shrunk.images == 2


def test_a_corpus_without_shrink_keeps_its_identity(tmp_path: Path) -> None:
    plain = corpus(tmp_path, None)
    assert "shrink" not in plain.semantic()
    identities = [
        json.dumps(corpus(tmp_path, shrink).semantic(), sort_keys=True)
        for shrink in (None, SMALL, Shrink(shorter_side=32), Shrink(shorter_side=64))
    ]
    assert len(set(identities)) == 4


def test_texts_cannot_be_shrunk() -> None:
    reader = {"kind": "jsonl", "path": "x", "fields": {}}
    with pytest.raises(ValidationError, match=r"corpus\.shrink is for images"):
        Corpus.model_validate(
            {"name": "c", "modality": "text", "reader": reader, "shrink": {"shorter_side": 32}}
        )
