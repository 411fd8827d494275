"""An extension's file: found, read without running it, run from its planned bytes."""

import os
from pathlib import Path

import pytest

from jobs.contract import StageError
from jobs.extensions import declared
from jobs.extensions.files import find
from jobs.extensions.load import blaming, load
from jobs.extensions.spec import Extension, Part

TEXT = '''
"""Made for a test."""

raise RuntimeError("a file that is only read is not run")

class Base:
    hyperparameters = {"strength": (0.0, None), "top": (1, 5, 2)}
    def forward(self, features): ...

class Mine(Base):
    """What it does.

    More of it.
    """
    def loss(self, batch): ...

class Solved(Base):
    hyperparameters = {}
    def prepare(self, features, targets, hyper): ...

class Helper: ...
def wrong(keys, labels, classes, seed): ...
def better(results): ...
def _private(results): ...
'''


def test_the_parts_of_a_file_are_known_without_running_it() -> None:
    found = declared.parts(Extension.of("mine", TEXT))
    assert {name: part.kind for name, part in found.items()} == {
        "Mine": "method",
        "Solved": "method",
        "wrong": "noise",
        "better": "claim",
    }
    mine, solved = found["Mine"], found["Solved"]
    assert (mine.summary, mine.trained, solved.trained) == ("What it does.", True, False)
    assert mine.ranges == {
        "strength": declared.Range(0.0, None),
        "top": declared.Range(1, 5, 2, whole=True),
    }
    assert solved.ranges == {}


@pytest.mark.parametrize(
    ("ranges", "fault"),
    [
        ("{'a': (2, 1)}", "(2, 1) ends before it begins"),
        ("{'a': 1}", "1 is no range"),
        ("{'a': ('low', 2)}", "('low', 2) is no range of numbers"),
        ("{'a': (0, 1, 3)}", "3 is outside (0, 1)"),
        ("dict(a=(0, 1))", "in other words"),
        ("{'a': (0, 1), 'a': (0, 9)}", "a name is given twice"),
        ("{1: (0, 1)}", "1 is no name"),
    ],
)
def test_a_faulty_range_is_told_with_its_line(ranges: str, fault: str) -> None:
    text = (
        f"class A:\n  hyperparameters = {ranges}\n  def forward(s, f): ...\n  def loss(s, b): ..."
    )
    with pytest.raises(StageError) as error:
        declared.parts(Extension.of("mine", text))
    assert str(error.value).startswith("mine.py, line 2: hyperparameters of A maps each name to")
    assert fault in str(error.value)


METHOD = "class {}({}):\n  def forward(s, f): ...\n  def loss(s, b): ...\n"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("def A(keys, seed): ...\n" + METHOD.format("A", ""), "defines A in lines 1 and 2; rename"),
        ("def A(input): ...\ndef A(results): ...\n", "defines A in lines 1 and 2; rename"),
        ("x = " + "-" * 200_000 + "1", "is nested too deeply"),
        ("x = " + "+".join(["1"] * 20_000), "is nested too deeply"),
    ],
)
def test_a_name_given_twice_and_deep_nesting_are_told(text: str, fault: str) -> None:
    with pytest.raises(StageError, match=fault):
        declared.parts(Extension.of("mine", text))


def test_classes_that_extend_each_other_have_an_end() -> None:
    text = METHOD.format("A", "B") + "class B(A): ...\n"
    assert declared.parts(Extension.of("mine", text)).keys() == {"A", "B"}


def test_a_file_that_is_no_text_is_refused_and_a_byte_order_mark_read(tmp_path: Path) -> None:
    for name in ("fifo", "folder", "zero", "latin"):
        path = tmp_path / f"{name}.py"
        match name:
            case "fifo":
                os.mkfifo(path)
            case "folder":
                path.mkdir()
            case "zero":
                path.symlink_to("/dev/zero")
            case _:
                path.write_bytes(b"# caf\xe9\n")
        with pytest.raises(StageError, match=rf"{name}\.py cannot be read as text in UTF-8 \("):
            find([str(path)])
    (tmp_path / "mark.py").write_bytes(b"\xef\xbb\xbfdef wrong(keys, seed): ...\n")
    assert declared.parts(find([str(tmp_path / "mark.py")])["mark"]).keys() == {"wrong"}


@pytest.mark.parametrize("text", ["raise SystemExit(0)", "import sys; sys.exit()", "exit(3)"])
def test_an_extension_that_ends_the_process_is_a_fault(text: str) -> None:
    with pytest.raises(StageError, match=r"^mine\.py, line 1: SystemExit: "):
        load(Part(Extension.of("mine", text), "A"))


def test_a_part_that_is_not_there_has_the_nearest_name() -> None:
    extension = Extension.of("mine", TEXT)
    with pytest.raises(StageError, match=r"mine\.py has no method Min; did you mean Mine\?"):
        declared.part(Part(extension, "Min"), "method")
    with pytest.raises(StageError, match=r"mine\.py has no claim Mine; it has better"):
        declared.part(Part(extension, "Mine"), "claim")
    with pytest.raises(StageError, match=r"mine\.py, line 2: .*; correct the file"):
        declared.parts(Extension.of("mine", "\ndef ("))


def test_what_runs_is_the_text_that_was_planned_and_an_error_names_its_line(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("value = 1\n\ndef broken():\n    return 1 / 0\n")
    extension = find([str(file)])["mine"]
    file.write_text("value = 2\n")
    assert load(Part(extension, "value")) == 1
    assert Extension.model_validate(extension.model_dump()) == extension
    with pytest.raises(ValueError, match="not the one that was planned"):
        Extension.model_validate({**extension.model_dump(), "text": "value = 3\n"})
    with (
        pytest.raises(StageError, match=r"^mine\.py, line 4: ZeroDivisionError: division by zero$"),
        blaming(extension),
    ):
        load(Part(extension, "broken"))()
    with pytest.raises(StageError, match=r"^other\.py, line 1: ModuleNotFoundError: No module"):
        load(Part(Extension.of("other", "import no_such_module"), "value"))


def test_code_comes_neither_from_a_store_nor_from_a_bucket(tmp_path: Path) -> None:
    (tmp_path / "tune").mkdir()
    (tmp_path / "store.json").write_text("{}")
    kept = tmp_path / "tune" / "mine.py"
    kept.write_text("")
    for named, fault in (
        (str(kept), "is in the result store"),
        ("s3://bucket/mine.py", "is in a bucket"),
        (str(tmp_path.parent / "no.py"), "does not exist"),
        (str(tmp_path.parent / "my-methods.py"), "rename the file"),
        ("shrinkage", "is no file, and no installed package brings it"),
    ):
        with pytest.raises(StageError, match=fault):
            find([named])


def install(site: Path, sources: Path) -> Path:
    """Install a package whose modules are in `sources`; return the module that its entry names."""
    (sources / "pack").mkdir(parents=True)
    (sources / "pack" / "__init__.py").write_text("raise RuntimeError('never imported')")
    info = site / "pack-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: pack\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[nml_orch.extensions]\nmine = pack.rivals_of_mine\n")
    return sources / "pack" / "rivals_of_mine.py"


@pytest.mark.parametrize("sources", ["site", "editable"])
def test_an_installed_package_brings_an_extension_by_its_entry_point(
    sources: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path / "site", tmp_path / sources).write_text("value = 5\n")
    for folder in ("site", sources):
        monkeypatch.syspath_prepend(str(tmp_path / folder))
    found = find(["mine"])
    assert load(Part(found["rivals_of_mine"], "value")) == 5
