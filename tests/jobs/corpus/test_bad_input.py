"""Every fault of a source is quarantined and counted, or is one sentence; none is silent."""

import io
import json
import struct
import tarfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from jobs.contract import Outcome, StageError
from jobs.corpus.preview import preview
from jobs.corpus.reader_spec import ParquetReader
from jobs.corpus.readers.parquet import Parquet
from jobs.corpus.shards import Index, read_part
from jobs.corpus.spec import Corpus
from jobs.images.decode import decode
from jobs.images.pixels import to_pixels
from jobs.images.spec import ImageInput
from jobs.storage.folder import Folder

Picture = Callable[..., bytes]
Build = Callable[[Corpus, Path], tuple[Folder, Outcome]]
WriteTar = Callable[[Path, Mapping[str, bytes]], Path]

ALL_TRAIN = {"train": 1, "validation": 0, "test": 0}


def corpus(max_bad_share: float = 1, **fields: object) -> Corpus:
    defaults = {"name": "c", "parts": ALL_TRAIN, "max_bad_share": max_bad_share}
    return Corpus.model_validate(defaults | fields)


def parquet(path: Path, **columns: object) -> dict[str, object]:
    """A reader of a file with these columns, each row keyed by `key`."""
    pq.write_table(pa.table(columns), path)
    fields = {"kind": "parquet", "path": str(path), "key": ["key"]}
    return fields | {name: name for name in ("label", "caption") if name in columns}


def test_what_a_parquet_source_cannot_mean_is_refused(
    tmp_path: Path, picture: Picture, build: Build
) -> None:
    path = tmp_path / "t.parquet"
    images = [picture(number) for number in range(2)]
    truths = parquet(path, image=images, key=[True, False], caption=["x", "y"])
    with pytest.raises(StageError, match="`key`, holds bool instead of text or numbers"):
        build(corpus(reader=truths), tmp_path / "o")
    rows = {"image": images, "key": ["a", "b"], "label": [0, 1]}
    chosen = parquet(path, **rows) | {"where": {"key": ["c", "d"]}, "classes": ["fox", "owl"]}
    with pytest.raises(StageError, match=r"no row of the source fits `where` \(.*'c', 'd'"):
        build(corpus(reader=chosen), tmp_path / "o")
    mixed = ParquetReader.model_validate(chosen | {"where": {"key": [1, "a"]}})
    assert Parquet(mixed).rows() == 1
    for name, order in (("a", ["fox", "crane", "crane"]), ("b", ["crane", "fox", "crane"])):
        declared = {"info": {"features": {"label": {"names": order}}}}
        schema = pa.table(rows).schema.with_metadata({"huggingface": json.dumps(declared)})
        (tmp_path / "two").mkdir(exist_ok=True)
        pq.write_table(pa.table(rows, schema=schema), tmp_path / f"two/{name}.parquet")
    reader = {"kind": "parquet", "path": str(tmp_path / "two"), "key": ["key"], "label": "label"}
    with pytest.raises(StageError, match="calls two 'crane'; write all files with the same order"):
        build(corpus(reader=reader), tmp_path / "o")


def test_a_where_that_no_row_fits_is_said_of_the_reader_that_has_it(
    tmp_path: Path, picture: Picture, build: Build
) -> None:
    columns = {"image": [picture(n) for n in range(2)], "label": [0, 1], "key": ["a", "b"]}
    main = parquet(tmp_path / "t.parquet", **columns)
    own = parquet(tmp_path / "u.parquet", **columns) | {"key_prefix": "u/"}
    nothing = own | {"where": {"key": "A"}}
    parts = ALL_TRAIN | {"test": nothing}
    fits = r"no row of the source fits `where` \(\{'key': 'A'\}\); correct corpus\.parts\.test"
    with pytest.raises(StageError, match=fits):
        build(corpus(reader=main, parts=parts), tmp_path / "o")
    parts = ALL_TRAIN | {"test": parquet(tmp_path / "v.parquet", **columns | {"image": [b"", b""]})}
    with pytest.raises(
        StageError, match=r"all 2 rows of corpus\.parts\.test are bad: 2 empty_image"
    ):
        build(corpus(reader=main, parts=parts), tmp_path / "p")
    with pytest.raises(StageError, match=r"have no row .* \('1'\); does `where` leave their rows"):
        build(corpus(reader=main | {"where": {"key": "a"}}), tmp_path / "q")
    shown = preview(corpus(reader=main | {"where": {"key": "A"}})).in_a_line()
    assert shown.endswith("no row of the source fits `where` ({'key': 'A'})")


def test_a_caption_with_a_null_character_is_counted(
    tmp_path: Path, picture: Picture, build: Build
) -> None:
    rows = {"image": [picture(0), picture(1)], "key": ["a", "b"], "caption": ["x", "x\0y"]}
    output, outcome = build(corpus(reader=parquet(tmp_path / "t.parquet", **rows)), tmp_path / "o")
    assert outcome.counts["bad_caption_with_nul"] == 1
    assert quarantine(output) == {"b": "caption_with_nul"}


def quarantine(folder: Folder) -> dict[str, str]:
    return {
        row["key"]: row["reason"] for row in folder.read_table("quarantine.parquet").to_pylist()
    }


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)  # type: ignore[arg-type]
    return stream.getvalue()


def long_text() -> PngInfo:
    """A text chunk of a PNG that Pillow refuses to decompress."""
    info = PngInfo()
    info.add_text("key", "a" * 3_000_000, zip=True)
    return info


def test_faulty_images_are_quarantined_with_their_reason(
    tmp_path: Path, picture: Picture, build: Build
) -> None:
    images = {
        "good": picture(0),
        "no bytes": b"",
        "null": None,
        "html": b"<html>gone</html>",
        "cut": picture(1)[:-40],
        "cut png": picture(1, "PNG")[:-40],
        "header": picture(2)[:25],
        "bomb": saved(Image.new("1", (4000, 3000)), "PNG"),
        "gif bomb": b"GIF89a" + b"\xff" * 4 + picture(3, "GIF")[10:],
        "texts": saved(Image.new("L", (99, 99)), "PNG", pnginfo=long_text()),
    }
    source = parquet(
        tmp_path / "t.parquet",
        image=pa.array(images.values(), pa.binary()),
        label=[0] * len(images),
        key=list(images),
    )
    folder, outcome = build(corpus(reader=source, max_pixels=1_000_000), tmp_path)
    assert quarantine(folder) == {
        "no bytes": "empty_image",
        "null": "no_image",
        "html": "not_an_image",
        "cut": "truncated",
        "cut png": "truncated",
        "header": "broken_header",
        "bomb": "too_many_pixels",
        "gif bomb": "too_many_pixels",
        "texts": "undecodable",
    }
    assert read_part(folder, "train", ["key"])["key"].to_pylist() == ["good"]
    index = Index.read(folder)
    assert index.rows_read == 10 == outcome.counts["rows_read"]
    assert outcome.counts["quarantined"] == 9 == sum(index.quarantined.values())
    assert outcome.counts["bad_truncated"] == 2 == index.quarantined["truncated"]
    sources = folder.read_table("quarantine.parquet")["source"].to_pylist()
    assert set(sources) == {"t.parquet"}


def test_faulty_captions_and_labels_are_quarantined(
    tmp_path: Path, picture: Picture, build: Build
) -> None:
    captions = [b"a cat", None, b"", b" \n", b"caf\xe9", "café".encode(), b"x", b"x", b"x"]
    labels = [0, 0, 0, 0, 0, 1, 2, -1, None]
    source = parquet(
        tmp_path / "t.parquet",
        image=[picture(n) for n in range(9)],
        caption=pa.array(captions, pa.binary()),
        label=labels,
        key=[f"k{n}" for n in range(9)],
    )
    folder, _ = build(corpus(reader=source | {"classes": ["cat", "dog"]}), tmp_path)
    assert quarantine(folder) == {
        "k1": "no_caption",
        "k2": "empty_caption",
        "k3": "empty_caption",
        "k4": "caption_not_utf8",
        "k6": "label_unknown",
        "k7": "label_unknown",
        "k8": "no_label",
    }
    kept = {
        row["key"]: row["caption"]
        for row in read_part(folder, "train", ["key", "caption"]).to_pylist()
    }
    assert kept == {"k0": "a cat", "k5": "café"}


ODD_LABELS = {
    "cat": None,
    "1": None,
    "bird": "label_unknown",
    "-1": "label_unknown",
    "2": "label_unknown",
    "\u00b2": "label_unknown",
    "9" * 20: "label_unknown",
    "9" * 5000: "label_unknown",
    "1.5": "label_unknown",
    "": "no_label",
}
"""A row's label in a source whose classes are cat and dog -> its fault."""

CLASSES = {"label": "label", "classes": ["cat", "dog"]}


def test_odd_labels_of_a_table_are_one_rows_fault(
    tmp_path: Path, picture: Picture, build: Build
) -> None:
    (tmp_path / "a.jpg").write_bytes(picture(0))
    lines = ["path\tlabel\tkey", *(f"a.jpg\t{text}\tk{text[:50]}" for text in ODD_LABELS)]
    (tmp_path / "t.tsv").write_text("\n".join(lines))
    reader = {"kind": "table", "path": str(tmp_path / "t.tsv"), "key": "key"} | CLASSES
    folder, _ = build(corpus(reader=reader), tmp_path)
    assert quarantine(folder) == {f"k{text[:50]}": why for text, why in ODD_LABELS.items() if why}
    rows = read_part(folder, "train", ["key", "label"]).to_pylist()
    assert {row["key"]: row["label"] for row in rows} == {"kcat": 0, "k1": 1}


def test_odd_labels_of_a_tar_are_one_rows_fault(
    tmp_path: Path, picture: Picture, build: Build, write_tar: WriteTar
) -> None:
    members = {}
    for number, text in enumerate(ODD_LABELS):
        members |= {f"{number}.jpg": picture(number), f"{number}.cls": text.encode()}
    write_tar(tmp_path / "0.tar", members)
    reader = {"kind": "webdataset", "path": str(tmp_path), "caption": None}
    folder, _ = build(corpus(reader=reader | CLASSES | {"label": "cls"}), tmp_path / "o")
    faults = enumerate(ODD_LABELS.values())
    assert quarantine(folder) == {str(number): why for number, why in faults if why}


def test_a_name_outside_the_classes_of_parquet_is_an_unknown_label(
    tmp_path: Path, picture: Picture, build: Build
) -> None:
    source = parquet(
        tmp_path / "t.parquet",
        image=[picture(n) for n in range(3)],
        label=["cat", "bird", None],
        key=list("abc"),
    )
    source |= {"classes": ["cat", "dog"]}
    with pytest.raises(StageError, match=r"1 of 2 classes have no row .* \('dog'\)"):
        build(corpus(reader=source), tmp_path)
    folder, _ = build(corpus(reader=source, allow_empty_classes=True), tmp_path)
    assert quarantine(folder) == {"b": "label_unknown", "c": "no_label"}


@pytest.mark.parametrize("kind", [pa.null(), pa.int64(), pa.string()])
def test_a_label_that_is_null_everywhere_does_not_make_an_unlabelled_corpus(
    tmp_path: Path, picture: Picture, build: Build, kind: pa.DataType
) -> None:
    source = parquet(
        tmp_path / "t.parquet",
        image=[picture(n) for n in range(3)],
        caption=["a", "b", "c"],
        label=pa.nulls(3, kind),
        key=list("abc"),
    )
    with pytest.raises(StageError, match=r"all 3 rows are bad: 3 no_label \(first: a\)"):
        build(corpus(reader=source), tmp_path)


def test_a_source_of_bad_rows_alone_is_an_error_with_its_reasons(
    tmp_path: Path, build: Build
) -> None:
    source = parquet(tmp_path / "t.parquet", image=[b"", b"<html>"], label=[0, 0], key=["a", "b"])
    with pytest.raises(StageError) as caught:
        build(corpus(1, reader=source), tmp_path)
    assert str(caught.value) == (
        "corpus c: all 2 rows are bad: 1 empty_image (first: a), 1 not_an_image (first: b); "
        "repair the source or correct corpus.reader"
    )


def test_faulty_samples_of_a_tar_are_quarantined(
    tmp_path: Path, picture: Picture, build: Build
) -> None:
    members = {
        "ok.jpg": picture(0), "ok.txt": b"a cat",
        "mute.jpg": picture(1),
        "blind.txt": b"a dog",
        "two.jpg": picture(2), "two.png": picture(2, "PNG"), "two.txt": b"two",
        "../up.jpg": picture(3), "../up.txt": b"up",
        "json.jpg": picture(4), "json.txt": b"kept",
    }  # fmt: skip
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.LNKTYPE, "ok.jpg"
        tar.addfile(link)
        for name, data in (("z.jpg", picture(5)), ("z.txt", b"one"), ("z.txt", b"other")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    folder, _ = build(corpus(reader={"kind": "webdataset", "path": str(tmp_path)}), tmp_path / "o")
    assert quarantine(folder) == {
        "mute": "no_caption",
        "blind": "no_image",
        "two": "two_images",
        "../up": "unsafe_path",
        "link": "link",
        "z": "repeated_member",
    }


def test_a_field_of_broken_json_is_one_rows_fault(
    tmp_path: Path, picture: Picture, build: Build
) -> None:
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        deep = b'{"alt": ' + b"[" * 100_000
        fields = {
            "d": deep,
            "a": b"{oops",
            "b": b'["no"]',
            "c": json.dumps({"alt": "a cat"}).encode(),
        }
        for number, (stem, text) in enumerate(fields.items()):
            for end, data in (("jpg", picture(number)), ("json", text)):
                info = tarfile.TarInfo(f"{stem}.{end}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    reader = {"kind": "webdataset", "path": str(tmp_path), "caption": "json:alt"}
    folder, _ = build(corpus(reader=reader), tmp_path / "o")
    assert quarantine(folder) == {"a": "broken_json", "b": "broken_json", "d": "broken_json"}


def test_paths_of_a_table_never_leave_its_folder(
    tmp_path: Path, picture: Picture, build: Build
) -> None:
    (tmp_path / "secret.jpg").write_bytes(picture(0))
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jpg").write_bytes(picture(1))
    paths = ["a.jpg", "../secret.jpg", str(tmp_path / "secret.jpg"), "none.jpg", "."]
    (tmp_path / "in/t.csv").write_text("path,caption\n" + "".join(f"{p},x\n" for p in paths))
    reader = {"kind": "table", "path": str(tmp_path / "in/t.csv"), "caption": "caption"}
    folder, _ = build(corpus(reader=reader), tmp_path)
    assert quarantine(folder) == {
        "../secret.jpg": "unsafe_path",
        str(tmp_path / "secret.jpg"): "unsafe_path",
        "none.jpg": "no_image",
        ".": "no_image",
    }


def test_a_path_of_a_table_without_a_file_is_one_rows_fault(
    tmp_path: Path, picture: Picture, build: Build
) -> None:
    (tmp_path / "a.jpg").write_bytes(picture(0))
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    paths = ["a.jpg", "a.jpg/x.jpg", f"{'x' * 300}.jpg", "nul\0.jpg", "loop.jpg"]
    (tmp_path / "t.csv").write_text("path,caption\n" + "".join(f"{p},x\n" for p in paths))
    reader = {"kind": "table", "path": str(tmp_path / "t.csv"), "caption": "caption"}
    folder, _ = build(corpus(reader=reader), tmp_path)
    assert quarantine(folder) == dict.fromkeys(paths[1:], "no_image")


def test_a_build_fails_above_max_bad_share_and_says_what_is_bad(
    tmp_path: Path, picture: Picture, build: Build
) -> None:
    images = [picture(n % 9) for n in range(98)] + [b"", b"<html>"]
    source = parquet(
        tmp_path / "t.parquet", image=images, label=[0] * 100, key=[str(n) for n in range(100)]
    )
    with pytest.raises(StageError) as caught:
        build(corpus(0.01, reader=source), tmp_path / "a")
    assert str(caught.value) == (
        "corpus c: 2 of 100 rows (2.00%) are bad, more than max_bad_share = 1.00%: 1 empty_image "
        "(first: 98), 1 not_an_image (first: 99); repair the source, or raise "
        "corpus.max_bad_share to leave them out"
    )
    folder, _ = build(corpus(0.02, reader=source), tmp_path / "b")
    assert Index.read(folder).rows("train") == 98


def test_every_row_is_decoded_when_asked(tmp_path: Path, build: Build) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (70, 90, 3), np.uint8)
    whole = saved(Image.fromarray(noise), "PNG")
    at = whole.index(b"IDAT")
    (length,) = struct.unpack_from(">I", whole, at - 4)
    middle = bytearray(whole)
    middle[at + length // 2] ^= 0xFF
    checksum = struct.pack(">I", zlib.crc32(middle[at : at + 4 + length]))
    middle[at + 4 + length : at + 8 + length] = checksum  # only its pixels are wrong
    source = parquet(
        tmp_path / "t.parquet", image=[whole, bytes(middle)], label=[0, 0], key=["whole", "middle"]
    )
    folder, _ = build(corpus(reader=source), tmp_path / "a")
    assert quarantine(folder) == {}
    folder, _ = build(corpus(reader=source, verify="full"), tmp_path / "b")
    assert quarantine(folder) == {"middle": "undecodable"}


def unusual() -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    rgb = Image.fromarray(rng.integers(0, 256, (14, 20, 3), np.uint8))
    deep = Image.fromarray((rng.integers(0, 256, (14, 20)) * 257).astype(np.uint16))
    exif = Image.Exif()
    exif[0x0112] = 6
    frames = [Image.new("RGB", (20, 14), c) for c in ("red", "green")]
    return {
        "cmyk": saved(rgb.convert("CMYK"), "JPEG"),
        "sixteen_bit": saved(deep, "PNG"),
        "palette": saved(rgb.convert("P"), "PNG"),
        "animated": saved(frames[0], "WEBP", save_all=True, append_images=frames[1:]),
        "exif_rotated": saved(rgb, "JPEG", exif=exif),
        "wrong_extension": saved(rgb, "PNG"),
    }


def test_unusual_images_are_kept_unchanged_and_counted_and_can_be_decoded(
    tmp_path: Path, build: Build
) -> None:
    (tmp_path / "tree/class").mkdir(parents=True)
    images = unusual()
    for note, data in images.items():
        with Image.open(io.BytesIO(data)) as image:
            end = "jpg" if note == "wrong_extension" else str(image.format).lower()
        (tmp_path / f"tree/class/{note}.{end}").write_bytes(data)
    reader = {"kind": "imagefolder", "path": str(tmp_path / "tree")}
    folder, outcome = build(corpus(0, reader=reader, verify="full"), tmp_path)
    assert Index.read(folder).notes == dict.fromkeys(sorted(images), 1)
    assert {c: n for c, n in outcome.counts.items() if c.startswith("note_")} == {
        f"note_{note}": 1 for note in images
    }
    for row in read_part(folder, "train", ["key", "image", "width", "height"]).to_pylist():
        note = row["key"].partition("/")[2].partition(".")[0]
        assert row["image"] == images[note]
        decoded = decode(row["image"], row["key"])
        assert decoded.mode in ("L", "RGB")
        assert decoded.size == (row["width"], row["height"]) == (20, 14)
        for channels in (1, 3):
            mean = (0.5,) * channels
            spec = ImageInput(size=14, channels=channels, mean=mean, std=mean)  # type: ignore[arg-type]
            with Image.open(io.BytesIO(row["image"])) as image:
                assert to_pixels(image, spec).shape == (channels, 14, 14)


def test_captions_of_several_lines_are_counted(
    tmp_path: Path, picture: Picture, build: Build
) -> None:
    captions = ["one line\n", "two\nlines", "two\nlines, no image", "one"]
    images = [picture(0), picture(1), b"", picture(2)]
    source = parquet(tmp_path / "t.parquet", image=images, caption=captions, key=list("abcd"))
    folder, _ = build(corpus(reader=source), tmp_path)
    assert Index.read(folder).notes == {"caption_of_lines": 1}


def test_sixteen_bits_become_eight_without_clipping() -> None:
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    data = saved(Image.fromarray(grey.astype(np.uint16) * 257), "PNG")
    assert np.array_equal(np.asarray(decode(data, "deep")), grey)
    with Image.open(io.BytesIO(data)) as image:
        spec = ImageInput(size=16, channels=1, mean=(0.5,), std=(0.5,))
        assert np.array_equal(to_pixels(image, spec)[0].numpy(), grey)


def test_a_parts_own_source_must_name_its_classes_alike(
    tmp_path: Path, picture: Picture, build: Build
) -> None:
    for tree, classes in (("train", ("a", "b", "c")), ("val", ("c", "a")), ("bad", ("a", "x"))):
        for number, name in enumerate(classes):
            (tmp_path / tree / name).mkdir(parents=True)
            (tmp_path / tree / name / f"{tree}{number}.jpg").write_bytes(picture(number))
    reader = {"kind": "imagefolder", "path": str(tmp_path / "train")}
    parts = {"train": 1, "validation": reader | {"path": str(tmp_path / "val")}, "test": 0}
    folder, _ = build(corpus(reader=reader, parts=parts), tmp_path)
    rows = read_part(folder, "validation", ["key", "label"]).to_pylist()
    assert {row["key"]: row["label"] for row in rows} == {"a/val1.jpg": 0, "c/val0.jpg": 2}
    bad = {"train": 1, "validation": reader | {"path": str(tmp_path / "bad")}, "test": 0}
    with pytest.raises(StageError, match=r"classes that corpus.reader lacks \(x\)"):
        build(corpus(reader=reader, parts=bad), tmp_path)


def test_two_classes_of_one_name_are_never_merged(
    tmp_path: Path, picture: Picture, build: Build
) -> None:
    parts = {}
    for name in ("train", "validation"):
        columns = {"image": [picture(n) for n in range(3)], "label": [0, 1, 2]}
        columns |= {"name": ["crane", "crane", "fox"], "key": [f"{name}{n}" for n in range(3)]}
        parts[name] = parquet(tmp_path / f"{name}.parquet", **columns) | {"label_name": "name"}
    own = {"train": 1, "validation": parts["validation"], "test": 0}
    folder, _ = build(corpus(reader=parts["train"], parts=own), tmp_path)
    rows = read_part(folder, "validation", ["key", "label"]).to_pylist()
    assert {row["key"]: row["label"] for row in rows} == {f"validation{n}": n for n in range(3)}
    few = own | {"validation": parts["validation"] | {"label_name": None, "classes": ["crane"]}}
    with pytest.raises(StageError, match="two classes are called 'crane'"):
        build(corpus(reader=parts["train"], parts=few), tmp_path)
