"""Which test images have a copy among the training images: exact, rescaled, re-encoded, or none."""

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from jobs.contract import Outcome, StageError, Work
from jobs.corpus.form import IMAGES
from jobs.corpus.shards import Index, write_rows
from jobs.corpus.units import units_of
from jobs.images.likeness import MOST_BITS, alike, likeness, perceptual, thumbnails
from jobs.overlap.compare import FILE, compare, dropped
from jobs.overlap.hashes import finish, hash_unit
from jobs.overlap.match import Finder, Images
from jobs.overlap.spec import OverlapStep, limit_of
from jobs.storage.folder import Folder

Stored = Mapping[str, bytes]  # key -> encoded image


def photo(seed: int, side: int = 48) -> Image.Image:
    """A picture of smooth colours, as different from another seed's as two photographs."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3)).astype(np.uint8)
    return Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "PNG", **options: int) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def twice(image: Image.Image) -> Image.Image:
    return image.resize((2 * image.width, 2 * image.height), Image.Resampling.BICUBIC)


def hashed(
    folder: Path, *, train: Stored | None = None, test: Stored | None = None, **others: Stored
) -> Folder:
    """The hashes of a corpus with these images; labels count from 0 in each part."""
    corpus, output = Folder.of(folder / "corpus"), Folder.of(folder / "hashes")
    parts = {}
    for part, stored in {
        "train": train or {},
        "validation": others.get("validation", {}),
        "test": test or {},
    }.items():
        side = pa.array([1] * len(stored), pa.int32())
        rows = pa.table(
            {
                "key": pa.array(list(stored), pa.string()),
                "image": pa.array(list(stored.values()), pa.binary()),
                "label": pa.array(range(len(stored)), pa.int32()),
                "caption": pa.nulls(len(stored), pa.string()),
                "width": side,
                "height": side,
            }
        ).cast(IMAGES)
        parts[part] = (write_rows(corpus, f"{part}-00000.parquet", rows),) if stored else ()
    index = Index("made", ("zero", "one", "two"), parts)
    units = units_of(index, index.parts)
    for unit in units:
        hash_unit(unit, corpus, Folder.of(folder / "scratch"), index.form)
    finish(index, units, Folder.of(folder / "scratch"), output)
    return output


def compared(
    folder: Path, limit: int = limit_of("allow"), classes: object = None, **inputs: Folder
) -> Outcome:
    step = OverlapStep.model_validate(
        {"task": "birds", "head": "birds", "classes": classes, "limit": limit}
    )
    output, scratch = Folder.of(folder / "out"), Folder.of(folder / "scratch")
    return compare(Work("overlap/made", "0" * 64, step, inputs, output, scratch))


def found(folder: Path) -> list[tuple[str, ...]]:
    return [tuple(row.values()) for row in Folder.of(folder / "out").read_table(FILE).to_pylist()]


def test_each_kind_of_copy_is_found_and_others_are_not(tmp_path: Path) -> None:
    pictures = [photo(seed) for seed in range(20)]
    jpeg = encoded(pictures[1], "JPEG", quality=90)
    train = {
        "same": encoded(pictures[0]),
        "jpeg": jpeg,
        "re-encoded": encoded(pictures[2], "JPEG", quality=75),
        "larger": encoded(twice(pictures[3])),
        **{f"other-{n}": encoded(pictures[n]) for n in range(4, 12)},
    }
    test = {
        "a": encoded(pictures[0]),
        "b": encoded(Image.open(io.BytesIO(jpeg))),  # the same pixels in another format
        "c": encoded(pictures[2]),
        "d": encoded(pictures[3]),
        **{f"e-{n}": encoded(pictures[n]) for n in range(12, 20)},
    }
    hashes = hashed(tmp_path, train=train, test=test)
    outcome = compared(tmp_path, test=hashes, pretraining=hashes)
    assert found(tmp_path) == [
        ("a", "pretraining", "exact", "same"),
        ("b", "pretraining", "exact", "jpeg"),
        ("c", "pretraining", "near", "re-encoded"),
        ("d", "pretraining", "near", "larger"),
    ]
    counts = ("overlap", "exact_pretraining", "near_pretraining", "test_images")
    assert [outcome.counts[name] for name in counts] == [4, 2, 2, 12]
    assert outcome.metrics == {"overlap/percent": pytest.approx(100 * 4 / 12)}


def test_training_and_validation_rows_count_for_the_task_and_training_rows_for_pretraining(
    tmp_path: Path,
) -> None:
    test = {f"t{n}": encoded(photo(n)) for n in range(3)}
    hashes = hashed(
        tmp_path, train={"x": test["t0"]}, validation={"y": test["t1"], "z": test["t0"]}, test=test
    )
    outcome = compared(tmp_path, test=hashes, pretraining=hashes, training=hashes)
    assert found(tmp_path) == [
        ("t0", "pretraining", "exact", "x"),
        ("t0", "training", "exact", "x"),
        ("t1", "training", "exact", "y"),
    ]
    assert outcome.counts["overlap"] == 2  # an image counts once
    assert dropped(Folder.of(tmp_path / "out")).to_pylist() == ["t0", "t1"]


def test_rows_of_other_classes_are_not_compared(tmp_path: Path) -> None:
    stored = {f"t{n}": encoded(photo(n)) for n in range(3)}
    hashes = hashed(tmp_path, train=stored, test=stored)
    outcome = compared(tmp_path, classes={"odd": ["one"]}, test=hashes, pretraining=hashes)
    assert [row[0] for row in found(tmp_path)] == ["t1"]
    assert outcome.counts["test_images"] == 1
    compared(tmp_path, classes={"even": [0, 2]}, test=hashes, pretraining=hashes)
    assert [row[0] for row in found(tmp_path)] == ["t0", "t2"]


def test_more_than_the_limit_is_one_sentence_and_one_percent_is_not(tmp_path: Path) -> None:
    test = {f"t{n:03d}": encoded(photo(n, 8)) for n in range(100)}
    inputs = {"test": hashed(tmp_path / "test", test=test)}
    one = hashed(tmp_path / "one", train={"x": test["t000"]})
    outcome = compared(tmp_path, limit_of("refuse"), **inputs, pretraining=one)
    assert outcome.metrics == {"overlap/percent": 1.0}
    many = hashed(tmp_path / "many", train={f"x{n}": test[f"t{n:03d}"] for n in range(5)})
    with pytest.raises(StageError) as refused:
        compared(tmp_path, limit_of("refuse"), **inputs, pretraining=many)
    assert str(refused.value) == (
        "task birds: 5 of 100 test samples (5 %) are trained on: 5 in the pre-training samples "
        "(keys: t000, t001, t002); take the task out, correct its reader, or set overlap: drop "
        "(test without these samples) or overlap: allow (only count them)"
    )


def test_a_uniform_image_is_a_copy_of_an_equal_one_alone(tmp_path: Path) -> None:
    def flat(value: int) -> bytes:
        return encoded(Image.new("RGB", (32, 32), (value, value, value)))

    hashes = hashed(
        tmp_path,
        train={"white": flat(255), "grey": flat(128)},
        test={"a": flat(255), "b": flat(254)},
    )
    compared(tmp_path, test=hashes, pretraining=hashes)
    assert found(tmp_path) == [("a", "pretraining", "exact", "white")]


def test_a_damaged_image_is_counted_and_copies_nothing(tmp_path: Path) -> None:
    whole = encoded(photo(0))
    broken = whole[: len(whole) // 2]
    hashes = hashed(tmp_path, train={"x": broken, "y": whole}, test={"a": broken, "b": whole})
    outcome = compared(tmp_path, test=hashes, pretraining=hashes)
    assert found(tmp_path) == [("b", "pretraining", "exact", "y")]
    assert (outcome.counts["test_images"], outcome.counts["test_undecodable"]) == (2, 1)


def test_no_two_handwritten_digits_are_copies() -> None:
    grey = [
        Image.fromarray(np.rint(255 / 16 * one).astype(np.uint8)) for one in load_digits().images
    ]
    known = [likeness(encoded(image), "a digit") for image in grey]
    assert len({one.digest for one in known}) == len(known)
    small = np.stack([one.small for one in known])
    hashes, marks = perceptual(small), thumbnails(small)
    first, second = np.triu_indices(len(known), 1)
    near = np.bitwise_count(hashes[first] ^ hashes[second]) <= MOST_BITS
    assert near.any()  # the hash alone does not tell them apart
    assert not alike(marks[first[near]], marks[second[near]]).any()


def test_bands_find_every_pair_of_near_hashes_in_any_pieces() -> None:
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**63, 300, dtype=np.uint64)
    marks = rng.integers(0, 256, (300, 192)).astype(np.uint8)
    digests = rng.integers(0, 2**63, (300, 2), dtype=np.uint64)
    flips = np.array([sum(1 << int(b) for b in rng.choice(63, n % 7, False)) for n in range(300)])
    others = hashes ^ flips.astype(np.uint64)
    finder = Finder(Images(digests, hashes, marks))
    for piece in np.array_split(np.arange(300), 7):
        finder.add(Images(~digests[piece], others[piece], marks[piece]))
    wanted = np.where(np.arange(300) % 7 <= MOST_BITS, np.arange(300), -1)
    assert finder.near.tolist() == wanted.tolist()
    assert (finder.exact < 0).all()


def test_a_unit_of_a_rebuilt_shard_is_hashed_again(tmp_path: Path) -> None:
    before = hashed(tmp_path, train={"x": encoded(photo(0))}).read_table("hashes-train.parquet")
    again = hashed(tmp_path, train={"x": encoded(photo(0))}).read_table("hashes-train.parquet")
    other = hashed(tmp_path, train={"x": encoded(photo(1))}).read_table("hashes-train.parquet")
    assert before.equals(again)
    assert before["digest"] != other["digest"]
