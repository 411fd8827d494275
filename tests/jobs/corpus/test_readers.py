"""Every reader: its keys, its classes, its bytes."""

import gzip
import io
import json
import os
import re
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.io
from PIL import Image
from sklearn.datasets import load_digits

from jobs.contract import StageError
from jobs.corpus.reader_spec import DigitsReader
from jobs.corpus.readers import Digits, Reader, reader_of
from jobs.corpus.readers import parquet as parquet_module
from jobs.corpus.readers.digits import NAMES
from jobs.corpus.spec import Corpus
from jobs.storage.folder import Folder

Picture = Callable[..., bytes]
WriteTar = Callable[[Path, Mapping[str, bytes]], Path]


def reader(**fields: object) -> Reader:
    return reader_of(Corpus.model_validate({"name": "c", "reader": fields}).reader)


def rows(source: Reader) -> dict[str, dict[str, object]]:
    """Every row by key; no key may occur twice."""
    tables = [table for unit in source.units() for table in source.read(unit, Counter())]
    found = pa.concat_tables(tables).to_pylist()
    assert len({row["key"] for row in found}) == len(found)
    return {row["key"]: row for row in found}


def test_the_digits_are_read_unchanged() -> None:
    found = rows(Digits(DigitsReader()))
    images, labels = load_digits(return_X_y=True)
    assert list(found) == [f"digits/{i:04d}" for i in range(1797)]
    assert [row["label"] for row in found.values()] == labels.tolist()
    for number in (0, 899, 900, 1796):
        row = found[f"digits/{number:04d}"]
        with Image.open(io.BytesIO(row["image"])) as image:  # type: ignore[arg-type]
            assert (image.mode, image.size) == ("L", (8, 8))
            pixels = np.asarray(image)
        assert np.array_equal(pixels, np.rint(images[number].reshape(8, 8) * 255 / 16))
        assert NAMES[labels[number]].encode() in row["caption"]  # type: ignore[operator]
    assert len({row["caption"] for row in found.values()}) == 40


# -- ImageNet's layouts ----------------------------------------------------------------------------

WNIDS = ("n01440764", "n01443537", "n02119789")


@pytest.fixture
def tree(tmp_path: Path, picture: Picture) -> Path:
    for label, wnid in enumerate(WNIDS):
        for number in range(5):
            path = tmp_path / "tree" / wnid / f"{wnid}_{number}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture(10 * label + number))
    (tmp_path / "tree" / WNIDS[0] / ".DS_Store").write_bytes(b"\0")
    return tmp_path / "tree"


def test_an_image_folder_keeps_classes_names_and_wordnet_ids(tree: Path, tmp_path: Path) -> None:
    names = tmp_path / "LOC_synset_mapping.txt"
    names.write_text("n01440764 tench, Tinca tinca\nn01443537 goldfish\nn02119789 kit fox\n")
    source = reader(kind="imagefolder", path=str(tree), class_names=str(names))
    assert source.classes().ids == WNIDS
    assert source.classes().names == ("tench, Tinca tinca", "goldfish", "kit fox")
    found = rows(source)
    assert len(found) == 15
    for key, row in found.items():
        assert row["image"] == (tree / key).read_bytes()
        assert row["label"] == WNIDS.index(key.partition("/")[0])
    assert sum(size for _, size in source.files()) == sum(len(r["image"]) for r in found.values())  # type: ignore[arg-type]


def test_two_folders_may_have_one_class_name(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("n01440764 crane\nn01443537 crane\nn02119789 fox\n")
    source = reader(kind="imagefolder", path=str(tree), class_names=str(tmp_path / "names.txt"))
    assert source.classes().names == ("crane", "crane", "fox")
    assert {row["label"] for row in rows(source).values()} == {0, 1, 2}


def test_hidden_files_are_not_rows_and_hidden_folders_not_classes(
    tree: Path, picture: Picture
) -> None:
    source = reader(kind="imagefolder", path=str(tree))
    classes, found = source.classes(), rows(source)
    for name in (".ipynb_checkpoints/a.jpg", f"{WNIDS[0]}/.thumbs/small/a.jpg", ".cache/b/c.jpg"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(picture(0))
    assert source.classes() == classes
    assert rows(source) == found


def test_a_broken_link_is_a_row_or_an_error(tree: Path) -> None:
    source = reader(kind="imagefolder", path=str(tree))
    for name, target in (("gone", tree / "gone"), ("loop", "loop"), ("odd", tree / ".x/y")):
        (tree / WNIDS[0] / f"{name}.jpg").symlink_to(target)
    (tree / WNIDS[0] / "well.jpg").symlink_to(tree / WNIDS[1] / f"{WNIDS[1]}_0.JPEG")
    found = rows(source)
    assert len(found) == 15 + 4
    assert [key for key, row in found.items() if row["image"] is None] == [
        f"{WNIDS[0]}/{name}.jpg" for name in ("gone", "loop", "odd")
    ]
    (tree / "n03").symlink_to(tree / "gone")
    with pytest.raises(StageError, match=r"n03 is a broken link; repair or remove it"):
        source.classes()
    (tree / "t.parquet").symlink_to(tree / "gone")
    with pytest.raises(StageError, match=r"t\.parquet is a broken link"):
        reader(kind="parquet", path=str(tree), label="label").units()


def test_a_link_to_a_folder_is_followed_and_a_cycle_is_refused(tree: Path) -> None:
    source = reader(kind="imagefolder", path=str(tree))
    (tree / WNIDS[0] / "more").symlink_to(tree / WNIDS[1])
    assert len(rows(source)) == 20
    (tree / WNIDS[0] / "more").unlink()
    (tree / WNIDS[1] / "again").symlink_to(tree)
    with pytest.raises(StageError, match="again links to a folder that contains it; remove it"):
        rows(source)


@pytest.mark.parametrize("name", [WNIDS[0].encode() + b"/caf\xe9.jpg", b"caf\xe9/a.jpg"])
def test_a_name_that_is_not_utf_8_is_one_sentence(tree: Path, name: bytes) -> None:
    path = os.fsencode(tree) + b"/" + name
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb"):
        pass
    with pytest.raises(StageError, match=r"caf\\xe9.* is not UTF-8; rename it"):
        rows(reader(kind="imagefolder", path=str(tree)))


def test_official_tars_give_the_rows_of_the_unpacked_tree(
    tree: Path, tmp_path: Path, write_tar: WriteTar
) -> None:
    inner = {}
    for wnid in reversed(WNIDS):
        files = {f.name: f.read_bytes() for f in (tree / wnid).glob("*.JPEG")}
        inner[f"{wnid}.tar"] = write_tar(tmp_path / f"{wnid}.tar", files).read_bytes()
    outer = write_tar(tmp_path / "ILSVRC2012_img_train.tar", inner)
    source = reader(kind="ilsvrc_tar", path=str(outer))
    assert source.classes().ids == WNIDS
    folder = rows(reader(kind="imagefolder", path=str(tree)))
    tars = rows(source)
    assert tars.keys() == folder.keys()
    for key, row in tars.items():
        for column in ("image", "label", "claims"):
            assert row[column] == folder[key][column]


@pytest.fixture
def flat(tmp_path: Path, picture: Picture, write_tar: WriteTar) -> Path:
    names = [f"ILSVRC2012_val_{n:08d}.JPEG" for n in (3, 1, 2)]
    return write_tar(tmp_path / "val.tar", {n: picture(i) for i, n in enumerate(names)})


@pytest.mark.parametrize(
    ("synsets", "truth"),
    [
        ("1 n02119789 kit fox\n2 n01440764 tench\n3 n01443537 goldfish\n", "3\n1\n2\n"),
        ('{"1": "n02119789", "2": "n01440764", "3": "n01443537"}', "3\n1\n2\n"),
        ('{"0": ["n01440764", "tench"], "1": ["n01443537", "g"], "2": ["n02119789", "k"]}', None),
        ("n01440764 tench\nn01443537 goldfish\nn02119789 kit fox\n", None),
    ],
)
def test_the_flat_tar_takes_its_labels_from_the_ground_truth(
    flat: Path, tmp_path: Path, synsets: str, truth: str | None
) -> None:
    (tmp_path / "synsets").write_text(synsets)
    (tmp_path / "truth.txt").write_text(truth or "n01443537\nn02119789\nn01440764\n")
    source = reader(
        kind="ilsvrc_tar",
        path=str(flat),
        synsets=str(tmp_path / "synsets"),
        ground_truth=str(tmp_path / "truth.txt"),
    )
    assert source.classes().ids == WNIDS
    labels = {key: row["label"] for key, row in rows(source).items()}
    assert labels == {
        f"ILSVRC2012_val_{n:08d}.JPEG": label for n, label in ((1, 1), (2, 2), (3, 0))
    }


@pytest.mark.parametrize("shape", [(2, 1), (1, 2), (2,)])
@pytest.mark.parametrize("kind", [int, float, np.uint16])
def test_the_documented_command_writes_synsets_from_the_devkit(
    tmp_path: Path, shape: tuple[int, ...], kind: type
) -> None:
    fields = ("ILSVRC2012_ID", "WNID", "words", "gloss")
    synsets = np.empty(2, [(name, object) for name in fields])
    synsets[0] = (kind(1), "n02119789", "kit fox, Vulpes macrotis", "small grey fox")
    synsets[1] = (kind(2), "n01440764", "tench", "freshwater fish")
    scipy.io.savemat(tmp_path / "meta.mat", {"synsets": synsets.reshape(shape)})
    docs = (Path(__file__).parents[3] / "docs/corpora.md").read_text()
    command = re.search(r'python -c "(import scipy.*?)" > synsets.txt', docs, re.DOTALL)
    assert command is not None
    ran = subprocess.run(
        [sys.executable, "-c", command[1]], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert ran.stdout == "1 n02119789 kit fox, Vulpes macrotis\n2 n01440764 tench\n"


def test_ground_truth_numbers_without_the_devkits_own_numbering_are_refused(
    flat: Path, tmp_path: Path
) -> None:
    (tmp_path / "synsets").write_text("n01440764 tench\nn01443537 goldfish\n")
    (tmp_path / "truth.txt").write_text("1\n2\n1\n")
    source = reader(
        kind="ilsvrc_tar",
        path=str(flat),
        synsets=str(tmp_path / "synsets"),
        ground_truth=str(tmp_path / "truth.txt"),
    )
    with pytest.raises(StageError, match="does not number its classes"):
        rows(source)


def test_a_flat_tar_given_as_the_nested_one_is_refused(flat: Path) -> None:
    with pytest.raises(StageError, match="for the flat validation tar give `ground_truth`"):
        reader(kind="ilsvrc_tar", path=str(flat)).units()


# -- WebDataset ------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["tar", "tar.gz"])
@pytest.mark.parametrize(("caption", "expected"), [("txt", "a cat"), ("json:alt", "ein Katze é")])
def test_webdataset_captions_come_from_the_chosen_field(
    tmp_path: Path, picture: Picture, write_tar: WriteTar, end: str, caption: str, expected: str
) -> None:
    text = json.dumps({"alt": "ein Katze é", "caption": "no"}, ensure_ascii=False).encode()
    for number, image in enumerate(("jpg", "png", "webp")):
        kind = {"jpg": "JPEG"}.get(image, image.upper())
        stem = f"{number:05d}0001"
        files = {f"{stem}.{image}": picture(number, kind), f"{stem}.json": text}
        write_tar(tmp_path / f"s/{number:05d}.{end}", files | {f"{stem}.txt": b"a cat"})
    source = reader(kind="webdataset", path=str(tmp_path / "s"), caption=caption)
    found = rows(source)
    assert list(found) == ["000000001", "000010001", "000020001"]
    assert [row["claims"] for row in found.values()] == ["jpeg", "png", "webp"]
    assert {row["caption"].decode() for row in found.values()} == {expected}  # type: ignore[attr-defined]
    assert [row["image"] for row in found.values()] == [
        picture(0),
        picture(1, "PNG"),
        picture(2, "WEBP"),
    ]


def test_webdataset_labels_and_keys_by_tar(
    tmp_path: Path, picture: Picture, write_tar: WriteTar
) -> None:
    for tar in ("a", "b"):
        files = {"x/1.jpg": picture(0), "x/1.cls": b"1", "x/2.jpg": picture(1), "x/2.cls": b"cat"}
        write_tar(tmp_path / f"{tar}.tar", files)
    source = reader(
        kind="webdataset",
        path=str(tmp_path),
        caption=None,
        label="cls",
        classes=["cat", "dog"],
        tar_in_key=True,
    )
    found = rows(source)
    assert {key: row["label"] for key, row in found.items()} == {
        "a.tar/x/1": 1,
        "a.tar/x/2": 0,
        "b.tar/x/1": 1,
        "b.tar/x/2": 0,
    }


# -- Parquet ---------------------------------------------------------------------------------------


def write_parquet(path: Path, columns: dict[str, object], **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, **options)
    return path


def test_hugging_faces_layout_is_read_with_its_own_class_names(
    tmp_path: Path, picture: Picture
) -> None:
    images = [{"bytes": picture(i), "path": f"{i}.jpg"} for i in range(6)]
    features = {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    metadata = json.dumps({"info": {"features": features}})
    for number in range(2):
        table = pa.table({"image": images[3 * number :][:3], "label": [0, 1, 1]})
        table = table.replace_schema_metadata({"huggingface": metadata})
        (tmp_path / "data").mkdir(exist_ok=True)
        pq.write_table(table, tmp_path / f"data/train-{number:05d}-of-00002.parquet")
    write_parquet(
        tmp_path / "data/test-00000-of-00001.parquet", {"image": images, "label": [0] * 6}
    )
    source = reader(kind="parquet", path=str(tmp_path), files="train-*.parquet", label="label")
    assert source.classes().names == ("cat", "dog")
    found = rows(source)
    assert next(iter(found)) == "data/train-00000-of-00002.parquet/0"
    assert [row["label"] for row in found.values()] == [0, 1, 1, 0, 1, 1]
    assert [row["image"] for row in found.values()] == [picture(i) for i in range(6)]
    assert {row["claims"] for row in found.values()} == {"jpeg"}


def test_a_row_number_counts_all_rows_of_the_file_for_any_selection_and_units(
    tmp_path: Path, picture: Picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = {
        "image": [picture(i % 7) for i in range(50)],
        "label": [i % 3 for i in range(50)],
        "domain": ["photo" if i % 2 else "sketch" for i in range(50)],
    }
    path = write_parquet(tmp_path / "pacs.parquet", columns, row_group_size=6)
    fields = {"kind": "parquet", "path": str(path), "label": "label"}
    whole = rows(reader(**fields))
    photos = rows(reader(**fields, where={"domain": "photo"}))
    assert photos == {k: v for k, v in whole.items() if int(k.rpartition("/")[2]) % 2}
    assert rows(reader(**fields, where={"domain": ["photo", "sketch"]})) == whole
    monkeypatch.setattr(parquet_module, "UNIT_BYTES", 1)
    monkeypatch.setattr(parquet_module, "BATCH_ROWS", 4)
    cut = reader(**fields)
    assert len(cut.units()) == 9
    assert rows(cut) == whole


def test_class_names_come_from_a_column(tmp_path: Path, picture: Picture) -> None:
    columns = {
        "image": [picture(0)] * 3,
        "label": [1, 0, 1],
        "name": ["b", "a", "b"],
        "id": [7, 8, 9],
    }
    path = write_parquet(tmp_path / "t.parquet", columns)
    fields = {"kind": "parquet", "path": str(path), "key": ["name", "id"]}
    source = reader(**fields, label="label", label_name="name")
    assert source.classes().names == ("a", "b")
    assert list(rows(source)) == ["b/7", "a/8", "b/9"]
    assert reader(**fields, label="label").classes().names == ("0", "1")
    text = reader(**fields, label="name")
    assert text.classes().names == ("a", "b")
    assert [row["label"] for row in rows(text).values()] == [1, 0, 1]


def test_two_names_for_one_label_are_refused(tmp_path: Path, picture: Picture) -> None:
    columns = {"image": [picture(0)] * 2, "label": [0, 0], "name": ["a", "b"]}
    path = write_parquet(tmp_path / "t.parquet", columns)
    with pytest.raises(StageError, match="do not give each class 0"):
        reader(kind="parquet", path=str(path), label="label", label_name="name").classes()


# -- tables ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "comma", "more"), [("t.csv", ",", {}), ("t.tsv", "\t", {"quoting": True})]
)
def test_tables_give_captions_by_path(
    tmp_path: Path, picture: Picture, name: str, comma: str, more: dict[str, object]
) -> None:
    (tmp_path / "images").mkdir()
    lines = [f"path{comma}caption"]
    for number in range(3):
        (tmp_path / f"images/{number}.jpg").write_bytes(picture(number))
        lines.append(f'images/{number}.jpg{comma}"a cat, no {number}\nagain"')
    (tmp_path / name).write_text("\n".join(lines))
    found = rows(reader(kind="table", path=str(tmp_path / name), caption="caption", **more))
    assert list(found) == [f"images/{number}.jpg" for number in range(3)]
    assert [row["caption"] for row in found.values()] == [
        f"a cat, no {number}\nagain".encode() for number in range(3)
    ]
    assert [row["image"] for row in found.values()] == [picture(number) for number in range(3)]


def table(path: Path, text: str, **fields: object) -> Reader:
    """A reader of a table with this text."""
    path.write_text(text)
    return reader(**({"kind": "table", "path": str(path), "caption": "caption"} | fields))


def test_a_long_caption_is_not_a_stray_quote(tmp_path: Path, picture: Picture) -> None:
    long = "a cat, " * 30_000
    (tmp_path / "0.jpg").write_bytes(picture(0))
    found = rows(table(tmp_path / "t.csv", f'path,caption\n0.jpg,"{long}"\n'))
    assert found["0.jpg"]["caption"] == long.encode()


@pytest.mark.parametrize(("name", "more"), [("t.tsv", {}), ("t.csv", {"quoting": False})])
def test_quotes_have_no_meaning_in_a_table_without_quoting(
    tmp_path: Path, name: str, more: dict[str, object]
) -> None:
    captions = ['"stray', "plain", '"stray again', 'five" tall', '"whole"']
    comma = "\t" if name.endswith("tsv") else ","
    lines = [f"path{comma}caption", *(f"{n}.jpg{comma}{text}" for n, text in enumerate(captions))]
    found = rows(table(tmp_path / name, "\n".join(lines), **more))
    assert [row["caption"] for row in found.values()] == [text.encode() for text in captions]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('0.jpg,"stray\n1.jpg,plain\n2.jpg,plain\n', 2),  # never closed
        ('0.jpg,plain\n1.jpg,"stray\n2.jpg,plain\n3.jpg,"stray\n', 3),  # closed within a field
        ('0.jpg,plain\n1.jpg,"two\nlines"\n2.jpg,"Bob" the dog\n', 5),
        ('0.jpg,plain\n"1.jpg,plain\n2.jpg",plain\n', 3),  # a path of two lines
    ],
)
def test_a_stray_quote_never_swallows_rows_silently(tmp_path: Path, text: str, line: int) -> None:
    source = table(tmp_path / "t.csv", f"path,caption\n{text}")
    with pytest.raises(StageError, match=rf"row that begins in line {line} has a stray quote"):
        source.units()


def test_a_quoted_table_is_read_as_rfc_4180_says(tmp_path: Path) -> None:
    text = (
        '\ufeffpath,caption\r\n0.jpg,"a ""big"" dog, black\r\nand white"\r\n\r\n1.jpg,5" tall\r\n'
    )
    found = rows(table(tmp_path / "t.csv", text))
    assert [row["caption"] for row in found.values()] == [
        b'a "big" dog, black\r\nand white',
        b'5" tall',
    ]


def test_a_table_that_cannot_be_read_is_one_sentence_on_one_line(tmp_path: Path) -> None:
    text = "path\tcaption\n0.jpg\tone\n1.jpg\ta" + 50 * "\tlong and wrong" + "\n"
    with pytest.raises(StageError, match="Expected 2 columns, got 52") as caught:
        table(tmp_path / "t.tsv", text).units()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    assert "set `quoting: true`" in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "caption", "key"),
    [
        ({"label": "caption"}, "a cat", "a.jpg"),
        ({"label": "path", "caption": "path"}, "a.jpg", "a.jpg"),
        ({"key": "caption"}, "a cat", "a cat"),
        ({"label": "path", "key": "path", "classes": ["a.jpg"]}, "a cat", "a.jpg"),
    ],
)
def test_a_column_of_a_table_may_have_several_roles(
    tmp_path: Path, picture: Picture, fields: dict[str, object], caption: str, key: str
) -> None:
    (tmp_path / "a.jpg").write_bytes(picture(0))
    source = table(tmp_path / "t.csv", "path,caption\na.jpg,a cat\n", **fields)
    expected = (caption if "label" in fields and "key" not in fields else "a.jpg",)
    assert source.classes().names == (expected if "label" in fields else ())
    ((found, row),) = rows(source).items()
    assert (found, row["caption"], row["image"]) == (key, caption.encode(), picture(0))
    assert row["label"] == (0 if "label" in fields else None)
    json.dumps(source.classes().ids)


def test_tables_give_labels_and_keys_of_their_own(tmp_path: Path, picture: Picture) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.jpg").write_bytes(picture(0))
    (tmp_path / "t.csv").write_text("a.jpg,dog,k1\n./a.jpg,cat,k2\n")
    source = reader(
        kind="table",
        path=str(tmp_path / "t.csv"),
        root=str(tmp_path / "images"),
        columns=["file", "what", "id"],
        image="file",
        label="what",
        key="id",
    )
    assert source.classes().names == ("cat", "dog")
    assert {key: row["label"] for key, row in rows(source).items()} == {"k1": 1, "k2": 0}
    assert all(row["image"] == picture(0) for row in rows(source).values())


def test_small_files_of_an_object_store_are_requested_together_and_come_in_order(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = reader(kind="imagefolder", path=str(tree))
    expected = rows(source)
    monkeypatch.setattr(Folder, "is_local", False)
    assert rows(source) == expected


# -- what cannot be read ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "imagefolder"},
        {"kind": "ilsvrc_tar"},
        {"kind": "webdataset"},
        {"kind": "parquet", "label": "label"},
        {"kind": "table", "caption": "caption"},
    ],
)
def test_a_path_that_does_not_exist_is_one_sentence(
    tmp_path: Path, fields: dict[str, object]
) -> None:
    with pytest.raises(StageError, match="does not exist; correct the reader's path"):
        reader(**fields, path=str(tmp_path / "nothing")).units()


def test_a_missing_column_is_an_error_that_names_the_present_ones(
    tmp_path: Path, picture: Picture
) -> None:
    path = write_parquet(tmp_path / "t.parquet", {"image": [picture(0)], "lab": [0]})
    with pytest.raises(StageError, match="no column 'label'; it has image, lab"):
        reader(kind="parquet", path=str(path), label="label").units()
    (tmp_path / "t.csv").write_text("path,text\n")
    with pytest.raises(StageError, match="'caption'; its first line gives the columns path, text"):
        reader(kind="table", path=str(tmp_path / "t.csv"), caption="caption").units()


def test_a_truncated_source_is_an_error(
    tmp_path: Path, picture: Picture, write_tar: WriteTar
) -> None:
    tar = write_tar(tmp_path / "0.tar", {"1.jpg": picture(0), "1.txt": b"a cat"})
    tar.write_bytes(tar.read_bytes()[:700])
    with pytest.raises(StageError, match=r"0\.tar ends before its end mark"):
        rows(reader(kind="webdataset", path=str(tmp_path)))
    path = write_parquet(tmp_path / "t.parquet", {"image": [picture(0)], "label": [0]})
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(StageError, match="is not a Parquet file, or is damaged"):
        reader(kind="parquet", path=str(path), label="label").units()


def test_nothing_is_ever_unpacked(tmp_path: Path, picture: Picture) -> None:
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for name in ("../up.jpg", "/abs.jpg", "ok.jpg"):
            info = tarfile.TarInfo(name)
            info.size = len(picture(0))
            tar.addfile(info, io.BytesIO(picture(0)))
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    before = sorted(tmp_path.parent.rglob("*"))
    found = rows(reader(kind="webdataset", path=str(tmp_path)))
    assert sorted(tmp_path.parent.rglob("*")) == before
    assert {key: row["fault"] for key, row in found.items()} == {
        "../up": "unsafe_path",
        "/abs": "unsafe_path",
        "ok": None,
        "link": "link",
    }
    assert not found["link"]["image"]


def test_a_row_without_a_label_makes_no_class(tmp_path: Path, picture: Picture) -> None:
    labels = ["cat", None, "dog", "cat"]
    table = pa.table({"image": [picture(seed) for seed in range(4)], "label": labels})
    pq.write_table(table, tmp_path / "t.parquet")
    found = reader(kind="parquet", path=str(tmp_path), label="label")
    assert found.classes().names == ("cat", "dog")


SCANNED = {"kind": "parquet", "label": "label"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image": "label"}, "t.parquet: column 'label', the reader's `image`, holds int64"),
        ({"caption": "label"}, "the reader's `caption`, holds int64 instead of text"),
        ({"caption": "list"}, "the reader's `caption`, holds list<element: string> instead of"),
        ({"key": ["list"]}, "the reader's `key`, holds list<element: string> instead of text or"),
        ({"label": "list"}, "the reader's `label`, holds list<element: string> instead of integ"),
        ({"label": "half"}, "column 'half' holds more than whole numbers .*1.5"),
        ({"label": "nan"}, "column 'nan' holds more than whole numbers .*nan"),
        ({"label": "half", "classes": ["a", "b"]}, "column 'half' holds more than whole numbers"),
        ({"label_name": "nmae"}, "no column 'nmae'; it has image, label"),
        ({"where": {"small": 300}}, "'small' holds int8, but 300 in `where` is not one"),
        ({"where": {"label": "sketch"}}, "'label' holds int64, but 'sketch' in `where` is not one"),
        ({"where": {"label": [0, "x"]}}, "'label' holds int64, but 'x' in `where` is not one"),
        ({"where": {"list": "x"}}, "'list' holds list<element: string>, but 'x' in `where`"),
        ({"key": ["bytes"]}, "column 'bytes' holds more than text"),
    ],
)
def test_a_column_of_another_kind_than_its_role_is_one_sentence(
    tmp_path: Path, picture: Picture, fields: dict[str, object], message: str
) -> None:
    columns = {
        "image": [picture(n) for n in range(3)],
        "label": [0, 1, 1],
        "list": [["a"], ["b", "c"], []],
        "half": [0.0, 1.5, 1.0],
        "nan": pa.array([0.0, float("nan"), 1.0]),
        "small": pa.array([0, 1, 1], pa.int8()),
        "bytes": pa.array([b"\xff"] * 3, pa.binary()),
    }
    path = write_parquet(tmp_path / "t.parquet", columns)
    source = reader(**(SCANNED | {"path": str(path)} | fields))
    with pytest.raises(StageError, match=message) as caught:
        _ = source.classes(), rows(source)
    assert "\n" not in str(caught.value)


def test_where_values_may_differ_in_type_and_the_column_may_be_a_dictionary(
    tmp_path: Path, picture: Picture
) -> None:
    columns = {
        "image": [picture(n) for n in range(3)],
        "label": [0, 1, 2],
        "domain": pa.array(["1", "photo", "x"]).dictionary_encode(),
    }
    path = write_parquet(tmp_path / "t.parquet", columns)
    source = reader(**SCANNED, path=str(path), where={"domain": [1, "photo"]})
    assert [row["label"] for row in rows(source).values()] == [0, 1]


@pytest.mark.parametrize("classes", [(), ("0", "1", "cat")])
def test_files_with_labels_of_different_types_are_refused_without_class_names(
    tmp_path: Path, picture: Picture, classes: tuple[str, ...]
) -> None:
    for name, labels in (("0", pa.nulls(2)), ("a", [0, 1]), ("b", ["cat", "1"])):
        columns = {"image": [picture(0)] * 2, "label": labels}
        write_parquet(tmp_path / f"{name}.parquet", columns)
    source = reader(**SCANNED, path=str(tmp_path), classes=classes)
    if classes:
        assert [row["label"] for row in rows(source).values()] == [None, None, 0, 1, 2, 1]
        return
    with pytest.raises(StageError, match=r"names in b\.parquet and numbers in a\.parquet"):
        source.classes()


@pytest.mark.parametrize(
    "metadata",
    [
        "{oops",
        "[1]",
        '{"info": {"features": [1]}}',
        '{"info": {"features": {"label": {"names": {"0": "cat"}}}}}',
        '{"info": {"features": {"label": {"names": "cat"}}}}',
        '{"info": {"features": {"label": {"names": ["cat", null]}}}}',
    ],
)
def test_odd_metadata_of_hugging_face_is_one_sentence(
    tmp_path: Path, picture: Picture, metadata: str
) -> None:
    table = pa.table({"image": [picture(0)], "label": [0]})
    pq.write_table(table.replace_schema_metadata({"huggingface": metadata}), tmp_path / "t.parquet")
    fields = SCANNED | {"path": str(tmp_path)}
    with pytest.raises(StageError, match=r"does not list the names of 'label'.*in `classes`"):
        reader(**fields).classes()
    assert reader(**fields, classes=["cat"]).classes().names == ("cat",)


def test_metadata_without_names_is_ignored(tmp_path: Path, picture: Picture) -> None:
    table = pa.table({"image": [picture(0)], "label": [0]})
    metadata = '{"info": {"features": {"label": {"dtype": "int64"}}}}'
    pq.write_table(table.replace_schema_metadata({"huggingface": metadata}), tmp_path / "t.parquet")
    assert reader(**SCANNED, path=str(tmp_path)).classes().names == ("0",)


@pytest.mark.parametrize("at", [4, 2000])
def test_parquet_that_is_damaged_inside_is_one_sentence(tmp_path: Path, at: int) -> None:
    images = [bytes([n % 7]) * 40 + bytes(range(n % 200)) for n in range(400)]
    path = write_parquet(tmp_path / "t.parquet", {"image": images, "label": [0, 1] * 200})
    data = bytearray(path.read_bytes())
    data[at : at + 60] = b"\xff" * 60
    path.write_bytes(data)
    with pytest.raises(StageError, match=r"t\.parquet is not a Parquet file, or is damaged"):
        rows(reader(**SCANNED, path=str(path), classes=["a", "b"]))


@pytest.mark.parametrize("name", ["0.tar.gz", "t.csv.gz"])
@pytest.mark.parametrize("fault", ["truncated", "damaged", "no gzip"])
def test_a_compressed_source_that_is_damaged_is_one_sentence(
    tmp_path: Path, write_tar: WriteTar, name: str, fault: str
) -> None:
    noise = np.random.default_rng(0).bytes(200_000)
    if name.endswith("tar.gz"):
        write_tar(tmp_path / name, {"1.jpg": noise, "1.txt": b"a cat"})
        source = reader(kind="webdataset", path=str(tmp_path))
    else:
        lines = "".join(f"{n}.jpg,{noise[n : n + 20].hex()}\n" for n in range(5_000))
        (tmp_path / name).write_bytes(gzip.compress(f"path,caption\n{lines}".encode()))
        source = reader(kind="table", path=str(tmp_path / name), caption="caption")
    data = (tmp_path / name).read_bytes()
    middle = len(data) // 2
    damaged = {
        "truncated": data[:middle],
        "damaged": data[:middle] + b"\xff" * 64 + data[middle + 64 :],
        "no gzip": gzip.decompress(data),
    }
    (tmp_path / name).write_bytes(damaged[fault])
    with pytest.raises(StageError, match=rf"{name} is not a gzip file, or is damaged .*download"):
        rows(source)


def test_a_folder_given_for_a_file_is_one_sentence(tree: Path, flat: Path, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="tree is a folder; name the tar itself"):
        reader(kind="ilsvrc_tar", path=str(tree)).units()
    with pytest.raises(StageError, match="tree is a folder; name a file in it"):
        reader(kind="imagefolder", path=str(tree), class_names=str(tree)).classes()
    fields = {"kind": "ilsvrc_tar", "path": str(flat), "ground_truth": str(tree)}
    with pytest.raises(StageError, match="tree is a folder; name a file in it"):
        reader(**fields, synsets=str(tree)).classes()


def test_synsets_that_name_a_class_twice_are_refused(flat: Path, tmp_path: Path) -> None:
    (tmp_path / "synsets").write_text("n01440764 tench\nn01440764 goldfish\n")
    (tmp_path / "truth.txt").write_text("n01440764\n")
    fields = {"kind": "ilsvrc_tar", "path": str(flat)}
    fields |= {
        n: str(tmp_path / f) for n, f in (("synsets", "synsets"), ("ground_truth", "truth.txt"))
    }
    with pytest.raises(StageError, match="synsets has n01440764 twice"):
        reader(**fields).classes()
