"""Given features become a features step's output, or are refused in one sentence."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.contract import Outcome, StageError, Work
from jobs.features import given
from jobs.features.given import import_features
from jobs.features.spec import GivenStep
from jobs.features.unit_table import schema
from jobs.storage.folder import Folder
from jobs.tuning.frozen.features import read_classes, read_part

ALL = ("train", "validation", "test")
DOCUMENT = Path(__file__).parents[3] / "docs/tasks.md"


def columns(rows: int = 200, dim: int = 6) -> dict[str, Any]:
    generator = np.random.default_rng(0)
    return {
        "key": [f"k{i}" for i in range(rows)],
        "vector": list(generator.normal(size=(rows, dim)).astype(np.float32)),
        "label": [("cat", "dog")[i % 2] for i in range(rows)],
    }


def work(root: Path, table: pa.Table, parts: tuple[str, ...] = ALL, **fields: Any) -> Work:
    root.mkdir(exist_ok=True)
    pq.write_table(table, root / "f.parquet")
    digest = Folder.of(root).sha256("f.parquet")
    step = GivenStep.model_validate(
        {"images": "t", "parts": parts, "file": str(root / "f.parquet"), "sha256": digest, **fields}
    )
    return Work("features/encoder/e/t", "f", step, {}, Folder.of(root / "o"), Folder.of(root / "s"))


def imported(root: Path, table: pa.Table, **fields: Any) -> tuple[Outcome, Folder]:
    one = work(root, table, **fields)
    return import_features(one), one.output


def stacked(table: pa.Table) -> Any:
    return np.stack(table["vector"].to_numpy())


def test_an_import_writes_what_extraction_writes(tmp_path: Path) -> None:
    outcome, output = imported(tmp_path, pa.table(columns()))
    counts = outcome.counts
    assert counts["dim"] == 6
    assert sum(counts[f"rows_{part}"] for part in ALL) == 200
    assert counts["rows_other_parts"] == 0
    assert counts["rows_train"] > counts["rows_test"] > counts["rows_validation"] > 0
    assert {"features/sve", "features/lsvr_raw"} <= set(outcome.metrics)
    assert read_classes(output) == ("cat", "dog")
    given = dict(zip(columns()["key"], columns()["vector"], strict=True))
    for part in ALL:
        table = output.read_table(f"features-{part}.parquet")
        assert table.schema.equals(schema("float32", 6))
        keys = table["key"].to_pylist()
        assert keys == sorted(keys)
        assert np.array_equal(np.stack([given[key] for key in keys]), stacked(table))
        opened = read_part(output, part)  # type: ignore[arg-type]
        assert opened.augmented == 0
        assert opened.labels.tolist() == [int(key[1:]) % 2 for key in keys]


def test_a_rows_part_depends_on_its_key_alone(tmp_path: Path) -> None:
    table = pa.table(columns())
    _, one = imported(tmp_path / "a", table)
    _, two = imported(tmp_path / "b", table.take(list(reversed(range(200)))))
    for part in ALL:
        name = f"features-{part}.parquet"
        assert one.read_bytes(name) == two.read_bytes(name)
    _, few = imported(tmp_path / "c", table.slice(0, 150))
    kept = set(few.read_table("features-test.parquet")["key"].to_pylist())
    assert kept <= set(one.read_table("features-test.parquet")["key"].to_pylist())


def test_the_files_split_is_kept_and_validation_taken_from_training_alone(
    tmp_path: Path,
) -> None:
    split = ["train" if i < 150 else "test" for i in range(200)]
    outcome, output = imported(tmp_path, pa.table({**columns(), "split": split}))
    assert outcome.counts["rows_test"] == 50
    assert 15 <= outcome.counts["rows_validation"] <= 45
    test = output.read_table("features-test.parquet")["key"].to_pylist()
    assert {int(key[1:]) for key in test} == set(range(150, 200))


def test_the_words_of_split_and_the_cuts_are_those_of_the_documents(tmp_path: Path) -> None:
    (told,) = re.findall(r"^- \*\*split\*\*: (.+?)\.", DOCUMENT.read_text(), re.M | re.S)
    words = re.findall(r"`([a-z]+)`", told.partition(", in small letters")[0])
    assert words == list(given._PART_NUMBERS)
    for word in words:
        split = [word if i < 50 else ("train", "test")[i % 2] for i in range(200)]
        outcome, _ = imported(tmp_path / word, pa.table({**columns(), "split": split}))
        assert sum(outcome.counts[f"rows_{part}"] for part in ALL) == 200
    with pytest.raises(StageError, match=r"'Train'; it must be train, training, .* or test"):
        imported(tmp_path, pa.table({**columns(), "split": ["Train"] * 200}))
    text = " ".join(DOCUMENT.read_text().split())
    assert "60 % train, 15 % validation, 25 % test" in text
    assert [f"{share:.0%}" for share in given.SHARES] == ["60%", "15%", "25%"]
    assert "20 % of the training rows become validation rows" in text
    assert given.VALIDATION_SHARE_OF_TRAIN == 0.2


def test_an_ood_test_is_every_row(tmp_path: Path) -> None:
    outcome, output = imported(tmp_path, pa.table(columns()), parts=("test",))
    assert outcome.counts == {"rows_test": 200, "dim": 6, "rows_other_parts": 0}
    assert not output.exists("features-train.parquet")


def test_other_columns_types_and_classes_are_named(tmp_path: Path) -> None:
    given = columns()
    table = pa.table(
        {
            "id": pa.array(range(200)),
            "ada": pa.array(given["vector"], pa.list_(pa.float64())),
            "y": pa.array([i % 2 for i in range(200)], pa.int8()),
        }
    )
    names = {"key": "id", "vector": "ada", "label": "y", "classes": ("no", "yes", "unseen")}
    _, output = imported(tmp_path, table, dtype="float16", **names)
    assert read_classes(output) == ("no", "yes", "unseen")
    assert output.read_table("features-test.parquet").schema.equals(schema("float16", 6))


@pytest.mark.parametrize("kind", [pa.float32(), pa.int8(), pa.decimal128(6, 2)])
def test_numbers_stay_numbers_where_the_task_predicts_one(
    tmp_path: Path, kind: pa.DataType
) -> None:
    labels = pa.array([i % 5 for i in range(200)], pa.int8()).cast(kind)
    _, output = imported(tmp_path, spoilt(label=labels), target="number")
    assert read_classes(output) == ()
    part = read_part(output, "test")
    assert part.labels.dtype == np.float64
    assert part.labels.tolist() == [int(key[1:]) % 5 for key in part.keys.to_pylist()]


@pytest.mark.parametrize(
    "kind",
    [
        pa.large_string(),
        pa.string_view(),
        pa.dictionary(pa.int32(), pa.string()),
        pa.dictionary(pa.int8(), pa.large_string(), ordered=True),
    ],
)
def test_names_of_classes_are_read_however_they_are_stored(
    tmp_path: Path, kind: pa.DataType
) -> None:
    _, output = imported(tmp_path, spoilt(label=pa.array(columns()["label"]).cast(kind)))
    assert read_classes(output) == ("cat", "dog")
    part = read_part(output, "test")
    assert part.labels.tolist() == [int(key[1:]) % 2 for key in part.keys.to_pylist()]


def test_validation_rows_taken_from_the_training_rows_leave_one_of_each_class(
    tmp_path: Path,
) -> None:
    one_shot = {"label": [f"c{i % 40:02d}" for i in range(200)]}
    splits = ["train"] * 60 + ["test"] * 140  # half the classes have one training row, others two
    _, output = imported(tmp_path, spoilt(**one_shot, split=splits))
    train, validation = (read_part(output, part) for part in ("train", "validation"))
    assert set(train.labels.tolist()) == set(range(40))
    assert 0 < len(validation.labels) == 60 - len(train.labels)


MISSING = pa.array([None] + [[1.0, 2.0]] * 199, pa.list_(pa.float32(), 2))  # of a fixed size


def spoilt(**changed: Any) -> pa.Table:
    return pa.table({**columns(), **changed})


@pytest.mark.parametrize(
    ("table", "fields", "message"),
    [
        (spoilt(), {"key": "id"}, "has no column 'id'; it has key, vector, label"),
        (spoilt(key=["same"] * 200), {}, r"1 keys are in several rows \(the first: same\)"),
        (spoilt(key=[None] + ["k"] * 199), {}, "1 rows have no key"),
        (spoilt(vector=[[1.0]] * 199 + [[1.0, 2.0]]), {}, r"different lengths \(1, 2\)"),
        (spoilt(vector=[[1.0, np.nan]] * 200), {}, r"as float32 in 200 rows .* out of the file$"),
        (spoilt(vector=MISSING), {}, "cannot be read .* leave their rows out"),
        (
            spoilt(vector=[[1e30]] * 200),
            {"dtype": "float16"},
            "or ask for float32",
        ),
        (spoilt(vector=["text"] * 200), {}, "is string, not a list of float"),
        (spoilt(label=[0.5] * 200), {}, "classes are integers or names"),
        (spoilt(), {"target": "number"}, "is string, but task t predicts a number"),
        (spoilt(label=[0.5] * 199 + [np.nan]), {"target": "number"}, r"not finite .* key k199"),
        (spoilt(label=[None] + [0.5] * 199), {"target": "number"}, "give each a number"),
        (spoilt(label=[-1] + [0] * 199), {}, r"holds -1 \(key k0\), outside 0 to 0"),
        (spoilt(), {"classes": ("cat",)}, "holds 'dog', which is none of classes.t"),
        (spoilt(split=["trian"] * 200), {}, "the split of 200 rows is 'trian'"),
        (spoilt(split=["train"] * 200), {}, "has no test rows for task t"),
        (spoilt(split=["train", *["test"] * 199]), {}, "has no validation rows .* mark some"),
        (pa.table(columns()).slice(0, 0), {}, "has no rows"),
    ],
)
def test_unusable_features_are_refused_in_one_sentence(
    tmp_path: Path, table: pa.Table, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(StageError, match=message):
        imported(tmp_path, table, **fields)


def test_a_file_other_than_the_planned_one_is_refused(tmp_path: Path) -> None:
    one = work(tmp_path, pa.table(columns()))
    pq.write_table(pa.table(columns(100)), tmp_path / "f.parquet")
    with pytest.raises(StageError, match="is not the file that was planned"):
        import_features(one)
    (tmp_path / "f.parquet").unlink()
    with pytest.raises(StageError, match="does not exist where this step runs"):
        import_features(one)


def test_a_file_that_is_no_parquet_is_refused(tmp_path: Path) -> None:
    one = work(tmp_path, pa.table(columns()))
    (tmp_path / "f.parquet").write_bytes(b"key,vector,label")
    sha256 = Folder.of(tmp_path).sha256("f.parquet")
    step = one.spec.model_copy(update={"sha256": sha256})
    with pytest.raises(StageError, match="is no Parquet file"):
        import_features(Work(one.address, "f", step, {}, one.output, one.scratch))
