"""Noise of an extension is nested, exact and independent of rows, and audited like all noise."""

import random
from pathlib import Path

import pytest

from jobs.contract import Outcome, StageError, Work
from jobs.extensions import declared
from jobs.extensions.spec import Extension, Part
from jobs.noise.audit import Auditor
from jobs.noise.derive import derive
from jobs.noise.job import build_levels
from jobs.noise.own import check
from jobs.noise.spec import NoiseStep
from jobs.storage.folder import Folder
from tests.jobs.noise.conftest import Write

MINE = '''
import numpy as np

def confuse(keys, labels, classes, seed):
    """Cats and dogs change with each other, and no fox does."""
    thresholds = np.random.default_rng(seed).random(len(keys))
    thresholds[labels == classes.index("fox")] = np.nan
    return thresholds, np.where(labels == 0, 1, 0)

def shout(keys, captions, classes, seed):
    order = np.random.default_rng(seed).random(len(keys))
    return order, [caption.upper() for caption in captions]

def outside(keys, labels, classes, seed):
    return np.zeros(len(keys)), labels + 1

def short(keys, labels, classes, seed):
    return np.zeros(3), labels

def breaks(keys, labels, classes, seed):
    return keys / 2

def words(keys, labels, classes, seed):
    return keys, labels

def huge(keys, labels, classes, seed):
    return np.zeros(len(keys)), [2**70] * len(keys)

def leaves(keys, labels, classes, seed):
    raise SystemExit(0)

def truths(keys, labels, classes, seed):
    return np.zeros(len(keys)), labels == 0

def blank(keys, captions, classes, seed):
    return np.zeros(len(keys)), [" "] * len(keys)

def one_text(keys, captions, classes, seed):
    return np.zeros(len(keys)), "x" * len(keys)

def by_key(keys, captions, classes, seed):
    return np.zeros(len(keys)), dict(zip(keys, captions))

def unordered(keys, captions, classes, seed):
    return np.zeros(len(keys)), {f"{key} {caption}" for key, caption in zip(keys, captions)}

def lazy(keys, captions, classes, seed):
    return np.zeros(len(keys)), (caption[::-1] for caption in captions)

def forgets_its_seed(keys, labels, classes, seed):
    return np.random.random(len(keys)), (labels + 1) % len(classes)
'''
EXTENSION = Extension.of("mine", MINE)
CLASSES = ("cat", "dog", "fox")
KEYS = [f"k{i:03d}" for i in range(300)]
LABELS = [i % 3 for i in range(300)]
CAPTIONS = [f"caption {i % 50}" for i in range(300)]


def step(function: str, level: float = 20, kind: str = "extension", **fields: object) -> NoiseStep:
    noise = {"name": "n", "kind": kind, "levels": [level], "function": f"mine:{function}"}
    noise |= {"source": EXTENSION, **fields}
    return NoiseStep.model_validate({"corpus": "c", "noise": noise, "level": level})


def changes(folder: Folder, spec: NoiseStep, level: float) -> dict[str, object]:
    table = derive(spec.noise, folder).levels.changed(level)
    return {row["key"]: row["noisy"] for row in table.to_pylist()}


@pytest.mark.parametrize(
    ("function", "kind"), [("confuse", "extension"), ("shout", "caption_extension")]
)
def test_levels_are_nested_exact_independent_of_rows_and_sound(
    corpus: Write, tmp_path: Path, function: str, kind: str
) -> None:
    folder = corpus(KEYS, LABELS, CAPTIONS, classes=CLASSES)
    order = random.Random(0).sample(range(300), 300)
    mixed = corpus(
        [KEYS[i] for i in order],
        [LABELS[i] for i in order],
        [CAPTIONS[i] for i in order],
        classes=CLASSES,
        shard=17,
        folder="mixed",
    )
    spec = step(function, kind=kind)
    five, twenty = changes(folder, spec, 5), changes(folder, spec, 20)
    assert (len(five), len(twenty)) == (15, 60)
    assert five.items() <= twenty.items()
    assert changes(mixed, spec, 20) == twenty
    other = step(function, kind=kind, seed=1)
    assert changes(folder, other, 20).keys() != twenty.keys()
    output = Folder.of(tmp_path / "noise")
    (outcome,) = build_levels([Work("a", "f", spec, {"corpus": folder}, output, output)])
    assert isinstance(outcome, Outcome)
    assert Auditor(spec.noise, folder).audit(output).sound
    assert output.read_bytes("extension/mine.py").decode() == MINE


def test_what_cannot_change_is_counted_and_too_high_a_level_refused(corpus: Write) -> None:
    folder = corpus(KEYS, LABELS, CAPTIONS, classes=CLASSES)
    plan = derive(step("confuse").noise, folder).levels
    assert plan.counts == {"rows_not_changeable": 100}
    assert {row["clean"] for row in plan.changed(66).to_pylist()} == {0, 1}
    with pytest.raises(StageError, match=r"only 200 can change; give a level of at most 66\.66"):
        plan.changed(70)
    cats = step("confuse", classes=["cat"], of="subset")
    assert len(changes(folder, cats, 50)) == 50


@pytest.mark.parametrize(
    ("function", "fault"),
    [
        ("outside", "label 3 is outside 0..2"),
        ("short", r"its thresholds have the shape \(3,\), not \(300,\)"),
        ("breaks", r"^mine\.py, line 21: TypeError: unsupported operand"),
        ("words", "its thresholds are not numbers; return one for each key"),
        ("huge", "its labels are not 300 whole numbers"),
        ("truths", "its labels are not 300 whole numbers"),
        ("leaves", r"^mine\.py, line 30: SystemExit: 0$"),
    ],
)
def test_a_fault_of_the_function_is_one_sentence(corpus: Write, function: str, fault: str) -> None:
    folder = corpus(KEYS, LABELS, CAPTIONS, classes=CLASSES)
    with pytest.raises(StageError, match=fault):
        derive(step(function).noise, folder)


def test_no_row_gets_a_caption_that_no_corpus_has_or_a_class_without_a_row(corpus: Write) -> None:
    folder = corpus(KEYS, LABELS, CAPTIONS, classes=CLASSES)
    with pytest.raises(StageError, match="its captions are not 300 texts"):
        derive(step("blank", kind="caption_extension").noise, folder)
    empty = corpus(KEYS, [0, 2] * 150, CAPTIONS, classes=CLASSES, folder="without dogs")
    with pytest.raises(StageError, match="the class 'dog', which has no training row"):
        derive(step("confuse").noise, empty)


@pytest.mark.parametrize(
    ("function", "what"), [("one_text", "a str"), ("by_key", "a dict"), ("unordered", "a set")]
)
def test_captions_are_a_list_of_texts(corpus: Write, function: str, what: str) -> None:
    """The letters of one text, the keys of a mapping and a set's members are texts as well."""
    folder = corpus(KEYS, LABELS, CAPTIONS, classes=CLASSES)
    with pytest.raises(StageError, match=f"its captions are {what}; return a list of 300 texts"):
        derive(step(function, kind="caption_extension").noise, folder)
    assert len(changes(folder, step("lazy", kind="caption_extension"), 20)) == 60


def test_the_check_finds_a_function_that_forgets_its_seed() -> None:
    parts = declared.parts(EXTENSION)
    assert "nested and exact" in check(Part(EXTENSION, "shout"), parts["shout"])
    name = "forgets_its_seed"
    with pytest.raises(StageError, match="other noise when it is called again"):
        check(Part(EXTENSION, name), parts[name])


def test_the_source_bears_identity_and_its_text_does_not() -> None:
    spec = step("confuse")
    assert spec.semantic()["noise"]["source"] == {"mine": EXTENSION.sha256}
