"""The task registry: shipped files, folders of one's own, and mistakes in either."""

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


def test_every_shipped_task_loads_and_is_consistent() -> None:
    tasks = {name: load(name) for name in names()}
    assert len(tasks) == len(list(SHIPPED.glob("*.yaml"))) >= 7
    for task in tasks.values():
        if task.trained_on is not None:
            source = tasks[task.trained_on]
            assert source.domain == "id"
            assert (source.corpus, source.classes) == (task.corpus, task.classes)
        labels = [label for members in (task.classes or {}).values() for label in members]
        assert len(labels) == len(set(labels))


def test_tasks_on_one_corpus_describe_it_in_one_way() -> None:
    corpora = {load(name).corpus for name in names()}
    assert len({corpus.name for corpus in corpora}) == len(corpora)


def test_a_folder_adds_tasks(tmp_path: Path) -> None:
    folder = put(tmp_path / "mine", "my-task", GOOD.format(name="my-task"))
    assert "my-task" in names([folder])
    assert load("my-task", [folder]).title == "Mine"
    assert "my-task" not in names()


def test_a_mistyped_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(TaskError, match="no task is named 'digit-rotated'; did you mean digits-r"):
        load("digit-rotated")
    with pytest.raises(TaskError, match="known: digits, digits-blurred"):
        load("xyz")


def test_two_files_for_one_name_are_refused(tmp_path: Path) -> None:
    folder = put(tmp_path, "digits", GOOD.format(name="digits"))
    with pytest.raises(TaskError, match="two files describe task digits"):
        load("digits", [folder])


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="nowhere does not exist"):
        names([tmp_path / "nowhere"])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("name: [", r"mine\.yaml: line 1: "),
        ("- a\n- b\n", r"mine\.yaml: the whole file: "),
        (GOOD.format(name="mine") + "colour: red\n", r"mine\.yaml: colour: Extra inputs .*'red'"),
        (GOOD.format(name="mine").replace("title: Mine", ""), r"mine\.yaml: title: Field required"),
        (GOOD.format(name="mine").replace("kind: digits", "kind: x"), r"corpus\.reader: "),
        (GOOD.format(name="mine").replace("id", "ood", 1), r"must say which task it is `trained_"),
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
