"""The settings of a corpus in an experiment file."""

import pytest
from pydantic import ValidationError

from jobs.corpus.spec import Corpus

PARQUET = {"kind": "parquet", "path": "/data/a.parquet", "label": "label"}
TABLE = {"kind": "table", "path": "/data/a.csv", "label": "label"}
TARS = {"kind": "webdataset", "path": "/data", "label": "cls"}


def corpus(reader: object = PARQUET, **fields: object) -> Corpus:
    return Corpus.model_validate({"name": "c", "reader": reader} | fields)


def test_the_path_of_the_data_does_not_affect_identity_and_other_settings_do() -> None:
    one = corpus(max_bad_share=0.1)
    assert corpus(PARQUET | {"path": "s3://bucket/a"}).semantic() == one.semantic()
    changes: list[Corpus] = [
        corpus(PARQUET | {"version": "2"}),
        corpus(PARQUET | {"where": {"domain": "photo"}}),
        corpus(PARQUET | {"key": ["id"]}),
        corpus(shuffle="none"),
        corpus(verify="full"),
        corpus(shard_mb=1),
        corpus(parts={"train": 0.8, "validation": 0.2, "test": PARQUET}),
    ]
    assert all(changed.semantic() != one.semantic() for changed in changes)


def test_the_path_of_a_parts_own_source_does_not_affect_identity() -> None:
    def parts(path: str) -> dict[str, object]:
        return {"train": 0.8, "validation": 0.2, "test": PARQUET | {"path": path}}

    assert corpus(parts=parts("/a")).semantic() == corpus(parts=parts("/b")).semantic()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"parts": {"train": 0.9}}, "must sum to 1, not 1.3"),
        ({"parts": {"train": 0.9, "validation": 0.2, "test": PARQUET}}, "must sum to 1, not 1.1"),
        ({"parts": {"train": 0.5, "validation": PARQUET, "test": PARQUET}}, "train must sum to 1"),
        ({"reader": PARQUET | {"kind": "parkett"}}, "parkett"),
        ({"reader": PARQUET | {"labels": "x"}}, "labels"),
        ({"reader": {"kind": "parquet", "path": "/a"}}, "nothing to learn from"),
        ({"reader": {"kind": "table", "path": "/a"}}, "nothing to learn from"),
        ({"reader": {"kind": "webdataset", "path": "/a", "caption": None}}, "nothing to learn"),
        ({"reader": {"kind": "webdataset", "path": "/a", "label": "cls"}}, "go together"),
        ({"reader": {"kind": "ilsvrc_tar", "path": "/a", "ground_truth": "/b"}}, "synsets"),
        ({"reader": {"kind": "imagefolder"}}, "path"),
        ({"reader": PARQUET | {"classes": ["a", "b", "a"]}}, "two classes are called 'a'"),
        ({"reader": TABLE | {"classes": ["a", "a"]}}, "two classes are called 'a'"),
        ({"reader": TARS | {"classes": ["a", "a"]}}, "two classes are called 'a'"),
    ],
)
def test_impossible_settings_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        corpus(**fields)  # type: ignore[arg-type]
