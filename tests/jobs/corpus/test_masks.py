"""Corpora with masks: each reader, and every way in which a mask can be wrong."""

import io
import struct
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pydantic import ValidationError
from scenes import CLASSES, IGNORED, parquet, png, scene

from jobs.contract import StageError
from jobs.corpus.form import MASKED
from jobs.corpus.preview import preview
from jobs.corpus.shards import Index, read_part
from jobs.corpus.spec import Corpus
from jobs.images import masks
from jobs.images.structure import png_pixels_are_whole
from jobs.storage.folder import Folder

Build = Callable[[Corpus, Path], tuple[Folder, Any]]


def corpus(reader: Mapping[str, Any], **parts: Any) -> Corpus:
    shares = {"train": 1.0, "validation": 0, "test": 0} | parts
    fields = {"name": "c", "reader": dict(reader), "parts": shares, "max_bad_share": 0.9}
    return Corpus.model_validate(fields)


def in_parquet(path: Path, **fields: Any) -> dict[str, Any]:
    own = {"kind": "parquet", "path": str(path), "mask": "mask", "classes": CLASSES, "key": ["key"]}
    return own | fields


def kept(output: Folder) -> dict[str, np.ndarray]:
    rows = read_part(output, "train", ["key", "mask"]).to_pylist()
    return {row["key"]: masks.read(row["mask"], row["key"]) for row in rows}


def test_masks_are_kept_byte_by_byte_where_their_numbers_are_the_corpuss(
    tmp_path: Path, build: Build
) -> None:
    source = parquet(tmp_path / "scenes.parquet", 5)
    output, outcome = build(corpus(in_parquet(source)), tmp_path / "o")
    assert outcome.counts["rows_train"] == 5
    index = Index.read(output)
    assert (index.label_kind, index.classes) == ("masks", CLASSES)
    found = read_part(output, "train", MASKED.names).to_pylist()
    given = {row["key"]: row["mask"] for row in pq.read_table(source).to_pylist()}
    assert {row["key"]: row["mask"] for row in found} == given
    assert {row["label"] for row in found} == {None}
    shown = preview(corpus(in_parquet(source)))
    assert "scene-000: 40 x 32" in shown.rows[0]
    assert shown.counts is None


def folders(root: Path, names: Mapping[str, bytes]) -> None:
    for name, data in names.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)


def test_folders_of_images_and_masks_are_paired_by_name(tmp_path: Path, build: Build) -> None:
    made = {name: scene(n) for n, name in enumerate(("town/a", "town/b", "sea/c"))}
    folders(tmp_path / "i", {f"{name}_img.jpg": image for name, (image, _) in made.items()})
    folders(tmp_path / "m", {f"{name}_ids.png": png(mask) for name, (_, mask) in made.items()})
    folders(tmp_path / "i", {"town/lost_img.jpg": scene(9)[0], "town/.hidden_img.jpg": b""})
    folders(tmp_path / "i", {"town/d_img.JPG": scene(8)[0], "town/about.txt": b"no image"})
    folders(tmp_path / "m", {"town/d_ids.png": png(scene(8)[1])})
    reader = {
        "kind": "maskfolder",
        "path": str(tmp_path / "i"),
        "masks": str(tmp_path / "m"),
        "image_ending": "_img.jpg",
        "mask_ending": "_ids.png",
        "classes": CLASSES,
    }
    output, outcome = build(corpus(reader), tmp_path / "o")
    assert outcome.counts["bad_no_mask"] == 1
    assert {k: n for k, n in outcome.counts.items() if k.startswith("note_")} == {
        "note_hidden_file": 1,
        "note_mask_without_image": 1,
        "note_other_ending": 1,
        "note_wrong_extension": 4,  # they are PNGs
    }
    assert kept(output).keys() == made.keys()
    for name, (_, mask) in made.items():
        assert np.array_equal(kept(output)[name], mask)
    (tmp_path / "val.txt").write_text("town/b\nsea/c\nsea/none\n")
    named = reader | {"names": str(tmp_path / "val.txt")}
    output, outcome = build(corpus(named), tmp_path / "named")
    assert kept(output).keys() == {"town/b", "sea/c"}
    assert outcome.counts["bad_no_image"] == 1
    (tmp_path / "val.txt").write_text("../town/b\n")
    with pytest.raises(StageError, match="outside the folder"):
        build(corpus(named), tmp_path / "unsafe")


def test_a_table_of_two_paths_gives_images_and_masks(tmp_path: Path, build: Build) -> None:
    image, mask = scene(0)
    folders(tmp_path, {"a.png": image, "m/a.png": png(mask), "b.png": image})
    (tmp_path / "t.csv").write_text("path,mask\na.png,m/a.png\nb.png,../b.png\n")
    reader = {"kind": "table", "path": str(tmp_path / "t.csv"), "mask": "mask", "classes": CLASSES}
    output, outcome = build(corpus(reader), tmp_path / "o")
    assert np.array_equal(kept(output)["a.png"], mask)
    assert outcome.counts["bad_no_mask"] == 1, "a path that leaves the folder is not read"


def test_numbers_that_begin_at_one_and_parts_in_another_order_become_the_corpuss(
    tmp_path: Path, build: Build
) -> None:
    image, mask = scene(3)
    lifted = np.where(mask == IGNORED, 0, mask + 1).astype(np.uint8)
    turned = np.array([2, 1, 0] + [0] * 253)[np.where(mask == IGNORED, 1, mask)].astype(np.uint8)
    for name, found in (("main", lifted), ("val", turned)):
        table = pa.table({"image": [image], "mask": [png(found)], "key": [name]})
        pq.write_table(table, tmp_path / f"{name}.parquet")
    main = in_parquet(tmp_path / "main.parquet", first_class=1, ignored=[0])
    other = in_parquet(tmp_path / "val.parquet", classes=tuple(reversed(CLASSES)))
    output, _ = build(corpus(main, validation=other), tmp_path / "o")
    assert np.array_equal(kept(output)["main"], mask)
    (row,) = read_part(output, "validation", ["mask"]).to_pylist()
    assert np.array_equal(masks.read(row["mask"], "val"), np.where(mask == IGNORED, 1, mask))


def test_each_bad_mask_is_counted_by_its_reason(tmp_path: Path, build: Build) -> None:
    image, mask = scene(1)
    sixteen = Image.fromarray(mask.astype(np.uint16))
    sixteen.save(tmp_path / "16.png")
    palette = Image.new("P", (mask.shape[1], mask.shape[0]))
    palette.putpalette([number * 7 % 256 for number in range(768)])
    palette.putdata(mask.flatten().tolist())
    palette.save(tmp_path / "p.png")
    Image.fromarray(mask).save(tmp_path / "m.jpg")
    good = png(mask)
    given = {
        "fine": good,
        "sixteen": (tmp_path / "16.png").read_bytes(),
        "palette": (tmp_path / "p.png").read_bytes(),
        "blank": png(np.full_like(mask, IGNORED)),
        "none": None,
        "empty": b"",
        "jpeg": (tmp_path / "m.jpg").read_bytes(),
        "cut": good[: len(good) // 2],
        "small": png(mask[:-1]),
        "colours": png(np.stack([mask] * 3, axis=-1)),
        "beyond": png(np.where(mask == 2, 3, mask).astype(np.uint8)),
    }
    table = {"image": [image] * len(given), "mask": list(given.values()), "key": list(given)}
    pq.write_table(pa.table(table), tmp_path / "bad.parquet")
    output, outcome = build(corpus(in_parquet(tmp_path / "bad.parquet")), tmp_path / "o")
    found = kept(output)
    assert found.keys() == {"fine", "sixteen", "palette", "blank"}
    for name in ("fine", "sixteen", "palette"):
        assert np.array_equal(found[name], mask), name
    assert {k: n for k, n in outcome.counts.items() if k.startswith(("bad_", "note_all"))} == {
        "bad_no_mask": 2,
        "bad_mask_not_png": 1,
        "bad_mask_undecodable": 1,
        "bad_mask_other_size": 1,
        "bad_mask_not_numbers": 1,
        "bad_mask_number_unknown": 1,
        "note_all_ignored": 1,
    }


def png_of(header: tuple[int, ...], pixels: bytes) -> bytes:
    """A PNG with this header, and these bytes as its pixels."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", *header)), (b"IDAT", zlib.compress(pixels))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in (*chunks, (b"IEND", b""))
    )


@pytest.mark.parametrize(
    ("depth", "row", "numbers"),
    [(2, b"\x1b", [0, 1, 2, 3]), (4, b"\x0f\x12", [0, 15, 1, 2]), (1, b"\x50", [0, 1, 0, 1])],
)
def test_the_numbers_of_a_grey_mask_of_few_bits_are_not_spread(
    depth: int, row: bytes, numbers: list[int]
) -> None:
    """Pillow makes 15 of 4 bits 255, which would be no class."""
    data = png_of((4, 2, depth, 0, 0, 0, 0), (b"\0" + row) * 2)
    found = masks.checked(data, (4, 2), masks.numbers_of(0, (255,), list(range(16))))
    assert not isinstance(found, str)
    assert masks.read(found[0], "mask").tolist() == [numbers] * 2


def test_a_damaged_mask_never_has_other_numbers() -> None:
    mask = np.kron(np.arange(9).reshape(3, 3) % 3, np.ones((8, 8))).astype(np.uint8)
    meaning = masks.numbers_of(0, (255,), [0, 1, 2])
    good = png(mask)
    damaged = [
        good[:at] + bytes([good[at] ^ 1 << at % 8]) + good[at + 1 :] for at in range(8, len(good))
    ]
    rows = b"".join(b"\0" + row.tobytes() for row in mask)
    damaged += [png_of((24, 24, 8, 0, 0, 0, 0), rows[: -25 * n]) for n in (1, 5, 20)]
    damaged += [good[:at] for at in range(20, len(good), 3)]
    accepted = 0
    for data in damaged:
        found = masks.checked(data, (24, 24), meaning)
        if not isinstance(found, str):
            accepted += 1
            assert np.array_equal(masks.read(found[0], "mask"), mask)
    assert accepted < len(damaged) / 3


def test_the_pixels_of_every_kind_of_png_are_counted() -> None:
    for mode in ("1", "L", "P", "I;16", "RGB", "RGBA", "LA"):
        for size in ((1, 1), (7, 3), (33, 20)):
            data = io.BytesIO()
            Image.new(mode, size).save(data, "PNG")
            assert png_pixels_are_whole(data.getvalue()), (mode, size)
    # Interlaced, from the definition: 1 + 1, 1 + 1, 1 + 2, 2 x (1 + 2), 1 + 3, ... bytes.
    for size, count in (((1, 1), 2), ((3, 5), 25), ((9, 2), 23), ((16, 16), 286)):
        header = (*size, 8, 0, 0, 0, 1)
        Image.open(io.BytesIO(png_of(header, bytes(count)))).load()
        assert png_pixels_are_whole(png_of(header, bytes(count)))
        assert not png_pixels_are_whole(png_of(header, bytes(count - 1)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"classes": ()}, "give `classes`"),
        ({"label": "label"}, "both label and mask"),
        ({"ignored": (1,)}, "the number 1 is ignored and is also a class \\('ground'\\)"),
        ({"mask": None, "label": "label", "first_class": 1}, "first_class is about masks"),
        ({"classes": tuple(map(str, range(256)))}, "255 at most"),
    ],
)
def test_settings_of_masks_that_mean_nothing_are_refused(
    fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        corpus(in_parquet(Path("x.parquet"), **fields))


def test_masks_change_no_identity_of_a_corpus_without_them() -> None:
    plain = {"kind": "parquet", "path": "x.parquet", "label": "label"}
    found = Corpus.model_validate({"name": "c", "reader": plain}).semantic()["reader"]
    assert not {"mask", "first_class", "ignored"} & found.keys()
