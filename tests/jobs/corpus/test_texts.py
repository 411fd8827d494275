"""Corpora of texts: every row counted, every label linked by its name."""

import gzip
import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobs.contract import StageError
from jobs.corpus.preview import preview
from jobs.corpus.readers import reader_of
from jobs.corpus.shards import Index, read_part
from jobs.corpus.spec import Corpus
from jobs.storage.folder import Folder

Build = Callable[[Corpus, Path], tuple[Folder, Any]]

WORDS = ["red", "green", "blue", "grey", "pink", "gold"]


def corpus(path: Path, kind: str = "parquet", **reader: Any) -> Corpus:
    """All rows of a source in the training part."""
    parts = {"train": 1.0, "validation": 0, "test": 0}
    own = {"kind": kind, "path": str(path), "fields": {}} | reader
    fields = {"name": "c", "modality": "text", "reader": own, "parts": parts, "max_bad_share": 1}
    return Corpus.model_validate(fields | {"shuffle": "none"})


def parquet(path: Path, columns: Mapping[str, Any], names: list[str] | None = None) -> Path:
    """A file as Hugging Face writes it; `names`: of its label."""
    table = pa.table(dict(columns))
    if names is not None:
        info = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return path


def rows_of(output: Folder, part: str = "train") -> list[dict[str, Any]]:
    return read_part(output, part, ["key", "text", "pair", "label"]).to_pylist()


def test_a_row_of_a_hub_file_becomes_a_text_with_the_class_that_its_metadata_names(
    tmp_path: Path, build: Build
) -> None:
    source = parquet(
        tmp_path / "train.parquet",
        {"sentence": ["fine", "bad", "dull"], "label": [1, 0, 0], "idx": [7, 8, 9]},
        ["negative", "positive"],
    )
    fields = {"text": "sentence", "label": "label"}
    output, outcome = build(corpus(source, fields=fields, key=["idx"]), tmp_path / "o")
    assert Index.read(output).classes == ("negative", "positive")
    assert rows_of(output) == [
        {"key": "7", "text": "fine", "pair": None, "label": 1},
        {"key": "8", "text": "bad", "pair": None, "label": 0},
        {"key": "9", "text": "dull", "pair": None, "label": 0},
    ]
    assert outcome.counts["rows_train"] == 3


def test_two_files_with_their_classes_in_other_orders_are_read_by_name(
    tmp_path: Path, build: Build
) -> None:
    folder = tmp_path / "data"
    parquet(folder / "a.parquet", {"text": ["x", "y"], "label": [0, 1]}, ["no", "yes"])
    parquet(folder / "b.parquet", {"text": ["u", "v"], "label": [0, 1]}, ["yes", "no"])
    output, _ = build(corpus(folder), tmp_path / "o")
    assert {row["text"]: row["label"] for row in rows_of(output)} == {
        "x": 0,
        "y": 1,
        "u": 1,
        "v": 0,
    }


SST2 = "sentence\tlabel\na \"quoted film\t1\nit's dull\t0\n"
COLA = "gj04\t1\t\tThey slept.\ngj05\t0\t*\tThey sleep him.\n"
SNLI = [
    {"gold_label": "neutral", "sentence1": "a", "sentence2": "b", "pairID": "p1"},
    {"gold_label": "-", "sentence1": "c", "sentence2": "d", "pairID": "p2"},
    {"gold_label": "entailment", "sentence1": "e", "sentence2": "f", "pairID": "p3"},
]
SCITAIL = "Ice melts.\tWater was ice.\tentails\nIron rusts.\tIron floats.\tneutral\n"


def test_glues_tables_are_read_in_place(tmp_path: Path, build: Build) -> None:
    sst2, cola = tmp_path / "sst2.tsv", tmp_path / "cola.tsv"
    sst2.write_text(SST2)
    cola.write_text(COLA)
    names = {"fields": {"text": "sentence"}, "label_names": ["negative", "positive"]}
    output, _ = build(corpus(sst2, "table", **names), tmp_path / "a")
    assert [(r["text"], r["label"]) for r in rows_of(output)] == [
        ('a "quoted film', 1),
        ("it's dull", 0),
    ]
    columns = ["source", "acceptable", "mark", "sentence"]
    fields = {"text": "sentence", "label": "acceptable"}
    settled = {"fields": fields, "columns": columns, "label_names": ["unacceptable", "acceptable"]}
    output, _ = build(corpus(cola, "table", **settled), tmp_path / "b")
    assert [(r["text"], r["label"]) for r in rows_of(output)] == [
        ("They slept.", 1),
        ("They sleep him.", 0),
    ]


def test_snli_and_scitail_are_read_in_place(tmp_path: Path, build: Build) -> None:
    snli, scitail = tmp_path / "snli.jsonl.gz", tmp_path / "scitail.tsv"
    snli.write_bytes(gzip.compress("\n".join(map(json.dumps, SNLI)).encode()))
    scitail.write_text(SCITAIL)
    fields = {"text": "sentence1", "pair": "sentence2", "label": "gold_label"}
    settled = {"fields": fields, "key": ["pairID"], "unlabelled": ["-"]}
    output, outcome = build(corpus(snli, "jsonl", **settled), tmp_path / "a")
    assert Index.read(output).classes == ("entailment", "neutral")
    assert [(r["key"], r["pair"], r["label"]) for r in rows_of(output)] == [
        ("p1", "b", 1),
        ("p3", "f", 0),
    ]
    assert outcome.counts["note_unlabelled"] == 1
    columns = ["premise", "hypothesis", "label"]
    fields = {"text": "premise", "pair": "hypothesis"}
    output, _ = build(corpus(scitail, "table", fields=fields, columns=columns), tmp_path / "b")
    assert [r["label"] for r in rows_of(output)] == [0, 1]
    assert Index.read(output).classes == ("entails", "neutral")


def test_numbers_are_kept_as_numbers(tmp_path: Path, build: Build) -> None:
    source = parquet(tmp_path / "s.parquet", {"text": WORDS[:3], "label": [0.5, 5.0, 2.75]})
    output, outcome = build(corpus(source, labels="numbers"), tmp_path / "o")
    assert [row["label"] for row in rows_of(output)] == [0.5, 5.0, 2.75]
    assert Index.read(output).classes == ()
    table = tmp_path / "t.csv"
    table.write_text("text,label\na,1.5\nb,nan\nc,many\nd,\n")
    output, outcome = build(corpus(table, "table", labels="numbers"), tmp_path / "p")
    assert [row["label"] for row in rows_of(output)] == [1.5]
    assert outcome.counts["bad_label_not_a_number"] == 2
    assert outcome.counts["bad_no_label"] == 1


def test_equal_texts_are_kept_with_keys_of_their_own_and_counted(
    tmp_path: Path, build: Build
) -> None:
    columns = {"text": ["x", "y", "x", "x"], "label": ["a", "a", "a", "b"]}
    output, outcome = build(corpus(parquet(tmp_path / "s.parquet", columns)), tmp_path / "o")
    keys = [row["key"] for row in rows_of(output)]
    assert len(set(keys)) == 4
    assert keys[2] == f"{keys[0]}-2"
    assert keys[3] == f"{keys[0]}-3"
    assert outcome.counts["note_equal_rows"] == 2
    assert outcome.counts["note_equal_rows_other_label"] == 1


def test_a_key_is_a_function_of_the_texts_alone(tmp_path: Path, build: Build) -> None:
    one = parquet(tmp_path / "a.parquet", {"text": WORDS, "label": list("abcabc")})
    two = tmp_path / "b.tsv"
    pairs = zip(reversed(WORDS), "cbacba", strict=True)
    two.write_text("text\tlabel\n" + "".join(f"{word}\t{label}\n" for word, label in pairs))
    found = [
        {row["text"]: row["key"] for row in rows_of(build(corpus(path, kind), tmp_path / kind)[0])}
        for path, kind in ((one, "parquet"), (two, "table"))
    ]
    assert found[0] == found[1]
    assert "a\0b" not in found[0]


BAD = {
    "no_text": {"text": None, "label": "a"},
    "empty_text": {"text": "  ", "label": "a"},
    "text_with_nul": {"text": "a\0b", "label": "a"},
    "text_too_long": {"text": "x" * (1 << 20) + "x", "label": "a"},
    "text_not_text": {"text": ["x"], "label": "a"},
    "no_label": {"text": "x", "label": None},
    "label_unknown": {"text": "x", "label": "c"},
    "no_pair": {"text": "x", "pair": None, "label": "a"},
    "empty_pair": {"text": "x", "pair": "", "label": "a"},
    "pair_not_text": {"text": "x", "pair": {"y": 1}, "label": "a"},
}


@pytest.mark.parametrize("reason", BAD)
def test_a_bad_row_is_counted_with_its_reason(reason: str, tmp_path: Path, build: Build) -> None:
    good = {"text": "fine", "label": "a"} | ({"pair": "p"} if "pair" in reason else {})
    rows = [good, BAD[reason], good | {"text": "good", "label": "b"}]
    path = tmp_path / "s.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    fields = {"pair": "pair"} if "pair" in reason else {}
    output, outcome = build(
        corpus(path, "jsonl", fields=fields, label_names=["a", "b"]), tmp_path / "o"
    )
    assert len(rows_of(output)) == 2
    assert outcome.counts[f"bad_{reason}"] == 1
    assert outcome.counts["rows_read"] == 3


@pytest.mark.parametrize("label", [[1], {"a": 1}, True, False, 0.5])
def test_a_label_that_is_neither_name_nor_whole_number_is_unknown(
    label: object, tmp_path: Path, build: Build
) -> None:
    rows = [{"text": "x", "label": "a"}, {"text": "y", "label": label}]
    path = tmp_path / "s.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settled = {"label_names": ["a"]}
    _, outcome = build(corpus(path, "jsonl", **settled), tmp_path / "o")
    assert outcome.counts["bad_label_unknown"] == 1


def test_lines_that_are_no_objects_are_counted(tmp_path: Path, build: Build) -> None:
    path = tmp_path / "s.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "x", "label": "a"}\r\n[1]\r\nno json\r\n"\xff"\r\n\r\n')
    _, outcome = build(corpus(path, "jsonl"), tmp_path / "o")
    assert outcome.counts["rows_train"] == 1, "after a byte order mark"
    assert outcome.counts["bad_broken_json"] == 2
    assert outcome.counts["bad_text_not_utf8"] == 1


def test_a_table_with_a_mark_and_windows_line_ends_is_read(tmp_path: Path, build: Build) -> None:
    path = tmp_path / "s.csv"
    path.write_bytes(b'\xef\xbb\xbftext,label\r\n"one, two",a\r\n\xff,b\r\nthree,b\r\n')
    output, outcome = build(corpus(path, "table"), tmp_path / "o")
    assert [row["text"] for row in rows_of(output)] == ["one, two", "three"]
    assert outcome.counts["bad_text_not_utf8"] == 1


def test_a_row_with_another_number_of_fields_is_counted(tmp_path: Path, build: Build) -> None:
    path = tmp_path / "s.tsv"
    path.write_text("text\tlabel\nx\ta\ny\nz\tb\tc\nw\tb\n")
    output, outcome = build(corpus(path, "table"), tmp_path / "o")
    assert [row["text"] for row in rows_of(output)] == ["x", "w"]
    assert outcome.counts["bad_wrong_number_of_fields"] == 2


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "another column": ({"fields": {"text": "sentence"}}, "has no column 'sentence'"),
    "minus one": ({"fields": {"label": "minus"}}, "list it in `unlabelled`"),
    "a list as text": ({"fields": {"text": "lists"}}, "the reader's `text`, holds list"),
    "names in another order": (
        {"label_names": ["yes", "no"]},
        "its metadata names the classes no, yes, and label_names yes, no",
    ),
}


@pytest.mark.parametrize("what", FAULTS)
def test_a_fault_of_the_settings_is_one_sentence(what: str, tmp_path: Path) -> None:
    settled, sentence = FAULTS[what]
    columns = {"text": ["x", "y"], "label": [0, 1], "minus": [-1, 0], "lists": [["x"], ["y"]]}
    source = parquet(tmp_path / "s.parquet", columns, ["no", "yes"])
    with pytest.raises(StageError, match=sentence):
        preview(corpus(source, **settled))


def test_a_header_that_is_missing_is_said(tmp_path: Path) -> None:
    path = tmp_path / "s.tsv"
    path.write_text(SCITAIL)
    with pytest.raises(StageError, match="its first line gives the columns Ice melts"):
        preview(corpus(path, "table"))


def test_where_keeps_the_rows_of_one_domain(tmp_path: Path, build: Build) -> None:
    columns = {"text": WORDS, "label": list("aabbab"), "domain": ["u", "v"] * 3}
    source = parquet(tmp_path / "s.parquet", columns)
    output, _ = build(corpus(source, where={"domain": "v"}, label_names=["a", "b"]), tmp_path / "o")
    assert [row["text"] for row in rows_of(output)] == WORDS[1::2]


def test_the_modality_must_fit_the_reader() -> None:
    image = {"kind": "parquet", "path": "x", "label": "label"}
    with pytest.raises(ValueError, match="give it `fields`"):
        Corpus.model_validate({"name": "c", "modality": "text", "reader": image})
    text = {"kind": "parquet", "path": "x", "fields": {}}
    with pytest.raises(ValueError, match="set modality: text"):
        Corpus.model_validate({"name": "c", "reader": text})
    with pytest.raises(ValueError, match="`kind` must be digits"):
        Corpus.model_validate({"name": "c", "reader": {"kind": "tsv"}})


def test_the_preview_shows_both_texts_and_the_class(tmp_path: Path) -> None:
    columns = {"text": ["a man sleeps"], "pair": ["nobody sleeps"], "label": ["no"], "id": [1]}
    source = parquet(tmp_path / "s.parquet", columns)
    found = preview(corpus(source, fields={"pair": "pair"}, key=["id"]))
    assert found.rows == ("1: class no, 'a man sleeps', 'nobody sleeps'",)


texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8)


@given(rows=st.lists(st.tuples(texts.filter(str.strip), st.sampled_from(["a", "b"])), min_size=1))
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_text_comes_out_as_it_went_in(
    rows: list[tuple[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("texts")
    path = folder / "s.jsonl"
    path.write_text("".join(json.dumps({"text": t, "label": v}) + "\n" for t, v in rows))
    reader = reader_of(corpus(path, "jsonl", label_names=["a", "b"]).reader)
    notes: Counter[str] = Counter()
    found = [
        row
        for unit in reader.units()
        for rows in reader.read(unit, notes)
        for row in rows.to_pylist()
    ]
    assert [(row["text"].decode(), "ab"[row["label"]]) for row in found] == rows
    assert len({row["key"] for row in found}) == len(rows)
    assert notes["equal_rows"] == len(rows) - len({text for text, _ in rows})
