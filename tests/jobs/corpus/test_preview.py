"""What a reader understood is shown before anything is built."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from commands import Run
from jobs.contract import StageError
from jobs.corpus import preview as previews
from jobs.corpus.preview import is_quick, preview
from jobs.corpus.spec import Corpus

Picture = Callable[..., bytes]


def source(**reader: object) -> Corpus:
    return Corpus.model_validate({"name": "c", "reader": reader})


@pytest.fixture
def path(tmp_path: Path, picture: Picture) -> Path:
    """Labels that begin at 1, the last image cut."""
    images = [picture(0), picture(1), picture(2)[:-40]]
    pq.write_table(pa.table({"image": images, "label": [1, 2, 2]}), tmp_path / "t.parquet")
    return tmp_path / "t.parquet"


def test_the_first_rows_and_the_rows_of_each_class_are_shown(path: Path) -> None:
    found = preview(source(kind="parquet", path=str(path), label="label", key_prefix="x/"))
    assert found.rows == (
        "x/t.parquet/0: 16 x 12, class 1",
        "x/t.parquet/1: 16 x 12, class 2",
        "x/t.parquet/2 (bad: truncated)",
    )
    assert found.counts == {1: 1, 2: 2}
    assert found.classes_in_words() == "3 classes (0, 1, 2), 1 without a row (0)"
    assert preview(source(kind="digits")).without_rows == []
    uncounted = preview(source(kind="parquet", path=str(path), label="label"), count=False)
    assert uncounted.classes_in_words() == "3 classes (0, 1, 2)"


@pytest.mark.parametrize(("ending", "quoted"), [("csv", ","), ("tsv", "\t")])
def test_the_rows_of_each_class_are_counted_in_a_table_and_in_folders(
    tmp_path: Path, picture: Picture, ending: str, quoted: str
) -> None:
    for name in ("cat/a.jpg", "dog/b.jpg", "dog/c.jpg"):
        (tmp_path / "r" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "r" / name).write_bytes(picture(0))
    lines = ["path,label", "cat/a.jpg,cat", "dog/b.jpg,dog", "dog/c.jpg,", "dog/c.jpg,cow"]
    table = tmp_path / f"r/t.{ending}"
    table.write_text("\n".join(lines).replace(",", quoted))
    folders = preview(source(kind="imagefolder", path=str(tmp_path / "r")))
    assert folders.counts == {0: 1, 1: 2}
    listed = source(kind="table", path=str(table), label="label", classes=["cat", "dog", "eel"])
    assert preview(listed).counts == {0: 1, 1: 1, -1: 1}
    assert preview(listed).without_rows == ["eel"]


def test_a_source_that_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="does not exist"):
        preview(source(kind="imagefolder", path=str(tmp_path / "gone")))


@pytest.mark.parametrize(
    ("kind", "name"), [("table", "t.csv"), ("jsonl", "t.jsonl"), ("parquet", "t.parquet")]
)
def test_large_files_that_would_be_read_whole_are_left_to_the_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, name: str
) -> None:
    (tmp_path / name).write_text("text,label\n")

    def texts(path: Path) -> Corpus:
        fields = {"text": "text", "label": "label"}
        reader = {"kind": kind, "path": str(path), "files": "t.*", "fields": fields}
        return Corpus.model_validate({"name": "c", "modality": "text", "reader": reader})

    assert is_quick(texts(tmp_path))
    monkeypatch.setattr(previews, "QUICK", 4)
    assert is_quick(texts(tmp_path)) == (kind == "parquet"), "its columns are read alone"
    assert is_quick(texts(tmp_path / "gone")), "`preview` gives the reason"


def test_plan_doctor_and_show_say_it(path: Path, tmp_path: Path, run: Run) -> None:
    reader = f"corpus.reader={{kind: parquet, path: {json.dumps(str(path))}, label: label}}"
    words = ("demo", "--set", reader, "--set", "corpus.name=mine")
    code, output = run(tmp_path, "plan", *words)
    assert code == 2, "a sweep would refuse the class without a row"
    assert "corpus/mine is not built; its source:" in output
    assert "t.parquet/0: 16 x 12, class 1" in output
    code, output = run(tmp_path, "doctor", "--no-ray", *words)
    assert code == 2
    assert "FAIL  corpus     corpus/mine: 3 classes (0, 1, 2), 1 without a row (0)" in output
    code, output = run(tmp_path, "corpus", "show", *words)
    assert code == 0
    assert "       2 rows  2" in output
    _, output = run(tmp_path, "corpus", "show", "--json", *words)
    found = json.loads(output)["corpus/mine"]
    assert [entry["rows"] for entry in found["classes"]] == [0, 1, 2]
    path.unlink()
    for verb in (("plan",), ("corpus", "show")):
        code, output = run(tmp_path, *verb, *words)
        assert code == 0
        assert f"{path} does not exist; correct the reader's path" in output
    code, output = run(tmp_path, "doctor", "--no-ray", *words)
    assert code == 2
    assert f"FAIL  corpus     {path} does not exist" in output
