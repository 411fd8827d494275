"""The task registry: shipped files, a user's folders, and faults in either."""

from pathlib import Path

import pytest

from jobs.tasks.registry import SHIPPED, TaskError, load, names

GOOD = """
name: {name}
title: Mine
domain: id
corpus: {{name: digits, reader: {{kind: digits}}}}
"""


def put(folder: Path, name: str, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.yaml").write_text(text)
    return folder


def test_every_shipped_file_can_be_loaded_by_its_name() -> None:
    files = {path.stem for path in SHIPPED.rglob("*.yaml")}
    assert set(names()) == files
    assert all(load(name).name == name for name in files)


def test_tasks_on_one_corpus_describe_it_alike() -> None:
    found = [corpus for name in names() if (corpus := load(name).corpus) is not None]
    by_name = {corpus.name: corpus for corpus in found}
    assert all(corpus == by_name[corpus.name] for corpus in found)


def test_a_folder_adds_tasks(tmp_path: Path) -> None:
    folder = put(tmp_path / "mine", "my-task", GOOD.format(name="my-task"))
    assert "my-task" in names([folder])
    assert load("my-task", [folder]).title == "Mine"
    assert "my-task" not in names()


def test_the_title_of_a_task_does_not_affect_its_identity() -> None:
    task = load("digits")
    assert task.model_copy(update={"title": "Other"}).semantic() == task.semantic()


def test_a_mistyped_name_is_an_error_that_names_the_nearest() -> None:
    with pytest.raises(TaskError, match="no task is named 'digit-rotated'; did you mean digits-r"):
        load("digit-rotated")
    with pytest.raises(TaskError, match="named 'qqq'; `nml-orch tasks list` lists them"):
        load("qqq")


def test_two_files_for_one_name_are_refused(tmp_path: Path) -> None:
    folder = put(tmp_path, "digits", GOOD.format(name="digits"))
    with pytest.raises(TaskError, match="two files describe task digits"):
        load("digits", [folder])


def test_a_folder_that_is_given_twice_adds_its_tasks_once(tmp_path: Path) -> None:
    folder = put(tmp_path / "mine", "my-task", GOOD.format(name="my-task"))
    (tmp_path / "link").symlink_to(folder)
    again = [folder, tmp_path / "mine/../mine", tmp_path / "link", tmp_path, SHIPPED]
    assert names(again) == names([folder])


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="nowhere does not exist"):
        names([tmp_path / "nowhere"])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("name: [", r"mine\.yaml: not valid YAML: line 1, column 8: "),
        ("- a\n- b\n", r"mine\.yaml: the file = .*: must be fields with values"),
        (
            GOOD.format(name="mine") + "colour: red\n",
            r"mine\.yaml: unknown field colour \(remove it; known here: answers, classes,",
        ),
        (GOOD.format(name="mine").replace("title: Mine", ""), r"mine\.yaml: title is missing"),
        (GOOD.format(name="mine").replace("kind: digits", "kind: x"), r"corpus\.reader: "),
        (GOOD.format(name="mine").replace("id", "ood", 1), r"task mine needs `trained_on`"),
        (GOOD.format(name="mine") + "metric: macro_f1\nmetric: f1\n", r"line .* given twice"),
        (GOOD.format(name="other"), r"mine\.yaml: name: 'other' is not the file's own name"),
    ],
)
def test_a_malformed_file_gets_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    folder = put(tmp_path, "mine", text)
    with pytest.raises(TaskError, match=sentence) as caught:
        load("mine", [folder])
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_text_gets_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TaskError, match="cannot be read as YAML text"):
        load("mine", [tmp_path])


def test_a_task_on_a_corpus_without_a_test_part_is_refused(tmp_path: Path) -> None:
    corpus = "{name: digits, reader: {kind: digits}, parts: {train: 0.8, validation: 0.2, test: 0}}"
    folder = put(tmp_path, "no-test", "name: no-test\ntitle: x\ndomain: id\ncorpus: " + corpus)
    with pytest.raises(TaskError, match=r"needs a test part.*corpus\.parts\.test"):
        load("no-test", [folder])


def test_subfolders_are_searched(tmp_path: Path) -> None:
    put(tmp_path / "mine", "deep", GOOD.format(name="deep"))
    assert load("deep", [tmp_path]).title == "Mine"


OOD = """
name: mine
title: Mine
domain: ood
trained_on: digits
corpus:
  name: other
  reader: {kind: imagefolder, path: x}
  parts: {train: 0, validation: 0, test: 1}
"""


def test_long_maps_are_in_tables_beside_the_file(tmp_path: Path) -> None:
    text = OOD + "classes: {file: kept.tsv}\nanswers: {file: maps/answers.tsv}\n"
    put(tmp_path, "mine", text)
    (tmp_path / "kept.tsv").write_text("# a comment\na\tx\ty\n\nb\n")
    (tmp_path / "maps").mkdir()
    (tmp_path / "maps" / "answers.tsv").write_text("a\t0\t1\nb\t2\n")
    task = load("mine", [tmp_path])
    assert task.classes == {"a": ("x", "y"), "b": ("b",)}
    assert task.answers == {"a": ("0", "1"), "b": ("2",)}
    (tmp_path / "kept.tsv").write_text("a\tx\nb\ty\n")
    assert load("mine", [tmp_path]).semantic() != task.semantic()  # the content is the identity


@pytest.mark.parametrize(
    ("table", "more", "sentence"),
    [
        (None, "", r"classes: kept\.tsv cannot be read"),
        ("# nothing\n", "", r"kept\.tsv names nothing"),
        ("a\tx\na\ty\n", "", r"kept\.tsv: a name begins two lines"),
        ("a\tx\nb\tx\n", "", "'x' counts as two of classes"),
        (
            "a\tx\n",
            "answers: {a: ['0'], b: ['1']}",
            "must name the same classes; only one names 'b'",
        ),
        ("a\tx\nb\n", "answers: {a: ['0'], b: ['0']}", "'0' counts as two of answers"),
        ("a\tx\n", "answers: {a: []}", "answers.a lists nothing"),
        ("a\tx\n", "answers: {}", "answers lists nothing; name the classes"),
        ("\tx\n", "", "classes has a class without a name"),
        ("a\tx\n", "metric: pearson", "metric pearson does not fit target class"),
        ("a\tx\n", "target: number", "metric accuracy does not fit target number"),
        ("a\nb\nc\n", "metric: accuracy_f1", "needs two classes, not 3"),
    ],
)
def test_an_invalid_map_gets_one_sentence(
    tmp_path: Path, table: str | None, more: str, sentence: str
) -> None:
    put(tmp_path, "mine", f"{OOD}classes: {{file: kept.tsv}}\n{more}\n")
    if table is not None:
        (tmp_path / "kept.tsv").write_text(table)
    with pytest.raises(TaskError, match=sentence) as caught:
        load("mine", [tmp_path])
    assert "\n" not in str(caught.value)


OOD = """
name: mine
title: Mine
domain: ood
trained_on: digits
corpus: {name: c, reader: {kind: digits}, parts: {train: 0, validation: 0, test: 1}}
"""


@pytest.mark.parametrize("other", ["Cat", "cat ", "CAT", "cat\\u200b", "\\uff43at"])
@pytest.mark.parametrize("field", ["classes", "answers"])
def test_classes_that_look_alike_are_refused(tmp_path: Path, field: str, other: str) -> None:
    text = GOOD.format(name="mine") if field == "classes" else OOD
    folder = put(tmp_path, "mine", f"{text}{field}: {{cat: ['1'], \"{other}\": ['2']}}\n")
    with pytest.raises(TaskError, match=r"differ only in blanks, .*; make them one class, or"):
        load("mine", [folder])
    put(tmp_path, "mine", f"{text}{field}: {{cat: ['1'], cats: ['2']}}\n")
    assert load("mine", [folder]).name == "mine"


@pytest.mark.parametrize("label", ["010", "1_0", "1:10", "0x10"])
def test_a_label_in_another_spelling_is_a_name(tmp_path: Path, label: str) -> None:
    """YAML 1.1 reads these as other numbers: 010 as 8."""
    folder = put(tmp_path, "mine", f"{GOOD.format(name='mine')}classes: {{a: [{label}], b: [2]}}\n")
    assert load("mine", [folder]).classes == {"a": (label,), "b": (2,)}


def test_a_fault_of_a_task_shows_the_value_and_not_the_whole_file(tmp_path: Path) -> None:
    folder = put(tmp_path, "mine", f"{GOOD.format(name='mine')}classes: {{cat: [1], Cat: [2]}}\n")
    with pytest.raises(TaskError) as caught:
        load("mine", [folder])
    assert "given" not in str(caught.value)
    put(tmp_path, "mine", f"{GOOD.format(name='mine')}classes: {{cat: [1.5]}}\n")
    with pytest.raises(TaskError, match=r"classes\.cat\.0 = 1\.5: must be a whole number"):
        load("mine", [folder])
