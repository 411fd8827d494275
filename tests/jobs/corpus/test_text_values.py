"""Values of texts' sources: each means the same in every format, or is counted as a bad row."""

import gzip
import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobs.contract import StageError
from jobs.corpus import build as building
from jobs.corpus.readers import Classes, reader_of
from jobs.corpus.readers.csv_file import CsvFile
from jobs.corpus.readers.texts import Texts
from jobs.corpus.spec import Corpus

QUICK = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))


def corpus(path: Path, kind: str, **reader: Any) -> Corpus:
    own = {"kind": kind, "path": str(path), "fields": {}} | reader
    return Corpus.model_validate({"name": "c", "modality": "text", "reader": own})


def read(path: Path, kind: str, **reader: Any) -> tuple[Classes, list[dict[str, Any]]]:
    """The classes, and every row that the reader gives."""
    source = reader_of(corpus(path, kind, **reader).reader)
    tables = [rows for unit in source.units() for rows in source.read(unit, Counter())]
    return source.classes(), [row for rows in tables for row in rows.to_pylist()]


def jsonl(path: Path, rows: Sequence[dict[str, Any] | str]) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def table(path: Path, labels: Sequence[Any]) -> Path:
    rows = [f"t{n},{label}\n" for n, label in enumerate(labels)]
    path.write_text("text,label\n" + "".join(rows))
    return path


def parquet(path: Path, labels: Any, names: list[Any] | None = None, **columns: Any) -> Path:
    made = pa.table({"text": [f"t{n}" for n in range(len(labels))], "label": labels} | columns)
    if names is not None:
        info = {"info": {"features": {"label": {"names": names}}}}
        made = made.replace_schema_metadata({"huggingface": json.dumps(info)})
    path.parent.mkdir(exist_ok=True)
    pq.write_table(made, path)
    return path


def of(found: tuple[Classes, list[dict[str, Any]]]) -> list[Any]:
    """Each row's class by name, else why it has none."""
    classes, rows = found
    names = {**dict(enumerate(classes.ids)), -1: "unknown", None: "none"}
    return [row["fault"] or names[row["label"]] for row in rows]


values = st.one_of(
    st.integers(-3, 10**20),
    st.floats(),
    st.booleans(),
    st.text(max_size=3),
    st.lists(st.integers(), max_size=1),
    st.just({"a": 1}),
    st.sampled_from(["\ud800", "0", "1.0", "a\0", "\ufeffa"]),
)


@given(values)
@QUICK
def test_a_json_label_is_a_text_or_a_whole_number_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, value: object
) -> None:
    path = jsonl(tmp_path_factory.mktemp("j") / "s.jsonl", [{"text": "x", "label": value}])
    _, (row,) = read(path, "jsonl", label_names=["a", "b"])
    whole = not isinstance(value, bool) and (
        isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    )
    if whole and value in (0, 1):
        assert (row["label"], row["fault"]) == (value, None)
    elif not (isinstance(value, str) or whole):
        assert row["fault"] == "label_unknown"
    elif value not in ("0", "1", "1.0", "a", "b") and str(value).strip():
        assert row["label"] in (-1, None)


NO_CLASS = [math.nan, math.inf, -math.inf, 1e30]


@pytest.mark.parametrize("odd", [*NO_CLASS, 2.5])
def test_a_number_that_is_no_class_is_none_in_every_format(tmp_path: Path, odd: float) -> None:
    labels = [0.0, odd, 1.0]
    rows = [{"text": f"t{n}", "label": label} for n, label in enumerate(labels)]
    found = {
        "jsonl": of(read(jsonl(tmp_path / "s.jsonl", rows), "jsonl")),
        "parquet": of(read(parquet(tmp_path / "s.parquet", pa.array(labels)), "parquet")),
    }
    if odd in NO_CLASS[1:] or math.isnan(odd):  # in a table, `2.5` is a word
        text = ["0", "9" * 30 if odd == 1e30 else odd, "1"]
        found["table"] = of(read(table(tmp_path / "s.csv", text), "table"))
    for kind, (first, other, last) in found.items():
        assert (first, last) == ("0", "1"), kind
        assert other in ("label_unknown", "unknown"), kind


@given(st.lists(st.integers(-1, 2), min_size=1, max_size=6))
@QUICK
def test_whole_numbers_and_those_left_out_are_the_same_in_every_format(
    tmp_path_factory: pytest.TempPathFactory, labels: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("n")
    rows = [{"text": f"t{n}", "label": float(label)} for n, label in enumerate(labels)]
    settled: dict[str, Any] = {"unlabelled": [-1], "label_names": ["a", "b", "c"]}
    wanted = ["abc"[label] for label in labels if label >= 0]
    assert of(read(jsonl(folder / "s.jsonl", rows), "jsonl", **settled)) == wanted
    assert of(read(table(folder / "s.csv", [f"{n}.0" for n in labels]), "table", **settled)) == (
        wanted
    )
    column = pa.array(labels, pa.float64())
    assert of(read(parquet(folder / "s.parquet", column), "parquet", **settled)) == wanted


@pytest.mark.parametrize("value", [3, "3", 3.0, "3.0"])
def test_where_compares_values_and_never_their_spelling(tmp_path: Path, value: object) -> None:
    rows = [
        {"text": str(n), "label": "a", "d": d}
        for n, d in enumerate([value, None, [3], {"3": 3}, 4, "None"])
    ]
    path = jsonl(tmp_path / "s.jsonl", rows)
    for wanted, kept in ((3, ["0"]), ("3", ["0"]), ("None", ["5"]), ("[3]", [])):
        found = read(path, "jsonl", where={"d": wanted}, label_names=["a"])[1]
        assert [row["text"].decode() for row in found] == kept
    column = [str(value), "4"]
    table(tmp_path / "s.csv", [f"a,{d}" for d in column])
    (tmp_path / "s.csv").write_text(
        (tmp_path / "s.csv").read_text().replace("text,label", "text,label,d")
    )
    assert len(read(tmp_path / "s.csv", "table", where={"d": 3}, label_names=["a"])[1]) == 1


BROKEN: dict[str, tuple[str, str]] = {
    "a label twice": ('{"text": "x", "label": "a", "label": "b"}', "broken_json"),
    "a text twice": ('{"text": "x", "text": "y", "label": "a"}', "broken_json"),
    "an array": ("[1]", "broken_json"),
    "a half character": ('{"text": "x", "label": "\\ud800"}', "label_unknown"),
    "nested": ('{"text":' * 50_000, "broken_json"),
    "digits": ('{"text": "x", "label": ' + "9" * 5_000 + "}", "broken_json"),
    "too long": ('{"text": "' + "x" * (16 << 20) + '", "label": "a"}', "too_large"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_bad_line_is_one_row_and_named_by_its_number(what: str, tmp_path: Path) -> None:
    line, reason = BROKEN[what]
    good = {"text": "x", "label": "a"}
    path = jsonl(tmp_path / "s.jsonl", [good, "", "  ", line, {"text": "y", "label": "b"}])
    _, rows = read(path, "jsonl")
    assert [row["fault"] for row in rows] == [None, reason, None]
    assert "line 4" in f"{rows[1]['key']} {rows[1]['detail']}"


def test_a_key_is_a_text_or_a_whole_number(tmp_path: Path) -> None:
    keys: list[Any] = ["k", 7, True, 1.5, None, ["k"], "\ud800"]
    rows = [{"text": f"t{n}", "label": "a", "id": key} for n, key in enumerate(keys)]
    _, found = read(jsonl(tmp_path / "s.jsonl", rows), "jsonl", key=["id"])
    assert [row["key"] for row in found] == ["k", "7", *[None] * 5]


@pytest.mark.parametrize("content", [bytes(4 << 20), '{"text": 1}\n'.encode("utf-16")])
def test_lines_that_are_no_utf_8_text_are_refused_at_once(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "s.jsonl"
    path.write_bytes(content)
    with pytest.raises(StageError, match="probably UTF-16; convert it"):
        read(path, "jsonl")


def test_a_line_without_an_end_is_read_in_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl.gz"
    path.write_bytes(gzip.compress(b"x" * (60 << 20) + b'\n{"text": "x", "label": "a"}\n'))
    _, rows = read(path, "jsonl")
    assert [row["fault"] for row in rows] == ["too_large", None]


NAMES: dict[str, tuple[list[Any], str]] = {
    "twice": (["a", "a"], "two classes called 'a'"),
    "blank": (["a", " "], "does not list the names"),
    "a truth value": ([True, "a"], "does not list the names"),
    "half a character": (["a", "\ud800"], "does not list the names"),
}


@pytest.mark.parametrize("what", NAMES)
def test_metadata_with_names_of_no_use_is_refused(what: str, tmp_path: Path) -> None:
    names, sentence = NAMES[what]
    with pytest.raises(StageError, match=sentence):
        read(parquet(tmp_path / "s.parquet", [0, 1], names), "parquet")


def test_names_are_those_of_the_first_file_that_has_some(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    parquet(folder / "a.parquet", pa.nulls(1))
    parquet(folder / "b.parquet", [0, 1], ["no", "yes"])
    parquet(folder / "c.parquet", [0, 1, 2], ["yes", "no", "no idea"])
    found = read(folder, "parquet")
    assert of(found) == ["none", "no", "yes", "yes", "no", "unknown"]
    assert found[0].ids == ("no", "yes")
    parquet(folder / "b.parquet", ["no"])
    parquet(folder / "c.parquet", [0])
    with pytest.raises(StageError, match=r"holds names in b\.parquet and numbers in c\."):
        read(folder, "parquet")


def test_a_label_that_is_left_out_is_no_class(tmp_path: Path) -> None:
    path = parquet(tmp_path / "s.parquet", [0, 2, 1, -1], ["no", "yes", "none"])
    found = read(path, "parquet", unlabelled=["none", -1])
    assert (found[0].ids, of(found)) == (("no", "yes"), ["no", "yes"])
    with pytest.raises(StageError, match=r"`unlabelled` lists 2, .* list the name, 'none'"):
        read(path, "parquet", unlabelled=[2])
    with pytest.raises(StageError, match="label_names and unlabelled both list 'b'"):
        read(table(tmp_path / "s.csv", "ab"), "table", label_names=["a", "b"], unlabelled=["b"])


TWICE = pa.Table.from_arrays([pa.array(["x"]), pa.array(["y"])] * 2, names=["text", "label"] * 2)


def test_two_columns_with_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    path.write_text("text,label,text\nx,a,y\n")
    with pytest.raises(StageError, match="2 columns called 'text'; rename all but one"):
        read(path, "table")
    pq.write_table(TWICE, tmp_path / "s.parquet")
    with pytest.raises(StageError, match="2 columns called 'text'; rename all but one"):
        read(tmp_path / "s.parquet", "parquet")


@pytest.mark.parametrize("role", ["key", "where"])
def test_bytes_that_are_no_text_are_refused(tmp_path: Path, role: str) -> None:
    path = parquet(tmp_path / "s.parquet", ["a"], id=[b"\xff"])
    settled: dict[str, Any] = {"key": ["id"]} if role == "key" else {"where": {"id": "x"}}
    with pytest.raises(StageError, match="column 'id' holds more than text"):
        read(path, "parquet", **settled)


@pytest.mark.parametrize("unseen", ["\ufeff", "\0", "\u200b", " "])
def test_names_that_differ_in_what_nobody_sees_are_refused(tmp_path: Path, unseen: str) -> None:
    rows = [{"text": "x", "label": "a"}, {"text": "y", "label": f"{unseen}a"}]
    path = jsonl(tmp_path / "s.jsonl", rows)
    with pytest.raises(StageError, match="or list the names in `label_names`"):
        read(path, "jsonl")


READERS: dict[str, Callable[[Path], object]] = {
    "jsonl": lambda folder: [
        jsonl(folder / f"{n}.jsonl", [{"text": f"t{n}", "label": "ab"[n % 2], "id": n}])
        for n in range(5)
    ],
    "table": lambda folder: [
        (folder / f"{n}.csv").write_text(f"text,label,id\nt{n},{'ab'[n % 2]},{n}\n")
        for n in range(5)
    ],
    "parquet": lambda folder: [
        parquet(folder / f"{n}.parquet", ["ab"[n % 2]], id=[n]) for n in range(5)
    ],
}


@pytest.mark.parametrize("kind", READERS)
def test_labels_are_read_once_to_know_the_classes_whatever_the_number_of_files(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    READERS[kind](tmp_path)
    one = corpus(tmp_path, kind, key=["id"])
    found = building.survey(one)
    assert len(found.pieces) == 5
    monkeypatch.setattr(Texts, "_label_texts", lambda _: pytest.fail("labels are read again"))
    rows = [
        row
        for piece in found.pieces
        for rows in reader_of(one.reader, found.own[piece.source]).read(piece.unit, Counter())
        for row in rows.to_pylist()
    ]
    assert [row["label"] for row in rows] == [0, 1, 0, 1, 0]


def test_a_delimiter_is_no_line_break() -> None:
    for bad in ('"', "\n"):
        with pytest.raises(ValueError, match="give another delimiter"):
            corpus(Path("x"), "table", delimiter=bad)
    assert CsvFile("x", "s.csv", delimiter=";").quoted
