"""What a message about methods, search spaces and a task's rows tells its user to do works."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from jobs.contract import StageError
from jobs.tasks.spec import Task
from jobs.tuning.class_mapping import ClassMapping
from jobs.tuning.frozen.zero_shot import class_words
from jobs.tuning.rows import Samples, TaskClasses, plain_rows, training_rows
from jobs.tuning.spec import Tuning
from jobs.validation import in_words
from tests.jobs.tuning.blobs import CLASSES, id_task, ood_task, step
from tests.jobs.tuning.test_target import TASK as NUMBERS

LR = {"loguniform": [1e-3, 1e-1]}
DROP = object()
Settings = dict[str, Any]
SPECS: dict[str, tuple[Settings, str, Settings]] = {}


def methods(**given: Settings) -> Settings:
    return {"methods": given}


def lp(lr: object, **space: object) -> Settings:
    return methods(lp={"head": "linear", "space": {"lr": lr, **space}})


def spec(name: str, given: Settings, remedy: str, changes: Settings) -> None:
    """Add a case: a tuning section, what stands in its message, and which fields that changes.

    A value may be the name of a group of the message, as in "<meant>".
    """
    SPECS[name] = (given, remedy, changes)


FT = {"head": "linear", "adapt": "ft", "space": {"lr": 0.01}}
PAPER = {"head": "paper", "space": {"lr": 0.01, "mse": 1}}
MEANT = r"did you mean (?P<meant>\w+)\?"
spec("no lr", lp(None), r"needs lr .*; give lr$", {"methods.lp.space.lr": 0.1})
spec("an l2", lp(0.1, l2=1), r"takes no l2; leave out l2$", {"methods.lp.space.l2": DROP})
spec(
    "l2 for lr",
    lp(None, l2=1),
    r"takes no l2; give lr and leave out l2$",
    {"methods.lp.space.l2": DROP, "methods.lp.space.lr": 0.1},
)
spec(
    "steps of a solved head",
    methods(lp={"head": "ridge", "space": {"l2": 1, "lr": 0.1}}),
    r"l2 alone; leave out lr$",
    {"methods.lp.space.lr": DROP},
)
spec(
    "a solved head without a penalty",
    methods(lp={"head": "lbfgs"}),
    r"l2 alone; give l2$",
    {"methods.lp.space": {"l2": LR}},
)
spec(
    "a space of words",
    methods(lp={"head": "zero_shot", "space": {"lr": 1}}),
    r"nothing to search; leave out space$",
    {"methods.lp.space": DROP},
)
spec(
    "two layers on a trained encoder",
    methods(lp={**FT, "head": "paper"}),
    r"not paper; use head: (?P<meant>\w+)$",
    {"methods.lp.head": "<meant>"},
)
spec(
    "consistency with a trained encoder",
    methods(lp={**FT, "space": {"lr": 0.1, "mse": 1}}),
    r"leave out mse$",
    {"methods.lp.space.mse": DROP},
)
for field, value in (("encoder_lr", 0.5), ("encoder_mode", "train")):
    spec(
        f"an {field} of a frozen encoder",
        methods(lp={"head": "linear", "space": {"lr": 1}, field: value}),
        f"{field} belongs to adapt: lora or ft; leave it out$",
        {f"methods.lp.{field}": DROP},
    )
for field, value, head in (
    ("residual", False, "paper"),
    ("residual_scale", 0.1, "paper"),
    ("classifier_init", "kaiming_uniform", "lbfgs"),
    ("views", 1, "ridge"),
):
    space = {"l2": 1} if head in ("ridge", "lbfgs") else {"lr": 1}
    spec(
        f"a {field} of {head}",
        methods(lp={"head": head, "space": space, field: value}),
        f"{field} belongs to .*; leave it out$",
        {f"methods.lp.{field}": DROP},
    )
for field, value in (("search", "optuna"), ("patience", 2)):
    spec(
        f"{field} of a trained encoder",
        {**methods(lp=lp(0.1)["methods"]["lp"], ft=FT), field: value},
        f"{field}.* does not support that; leave it out",
        {field: DROP},
    )
    spec(
        f"{field} of a trained encoder, apart",
        {**methods(lp=lp(0.1)["methods"]["lp"], ft=FT), field: value},
        "or put (?P<meant>ft) in an experiment of its own",
        {"methods.ft": DROP},
    )
spec(
    "nothing to list in a grid",
    {"search": "grid", **lp(LR), "configurations": 2},
    r"give grid: \[\.\.\.\] or one value$",
    {"methods.lp.space.lr": {"grid": [0.1, 0.2]}},
)
spec(
    "a grid of another size",
    {"search": "grid", **lp({"grid": [1, 2]}), "configurations": 3},
    r"has (?P<points>\d+) combinations .*; make them equal",
    {"configurations": "<points>"},
)
spec(
    "a control that is another method",
    methods(nm=PAPER, **{"nm-control": FT}),
    "nm-control is the name of the control of nm .*; rename it",
    {"methods.nm-control": DROP, "methods.other": FT},
)
spec(
    "a GPU's precision without one",
    {**lp(LR), "precision": "tf32"},
    "set gpus, or use float32",
    {"gpus": 1},
)
spec(
    "how to draw no noise",
    {**lp(LR), "label_noise_classes": "all"},
    r"give label_noise a level above 0",
    {"label_noise": [10]},
)
spec(
    "a mistyped domain",
    lp({"logunifrm": [0.1, 1]}),
    MEANT,
    {"methods.lp.space.lr": {"loguniform": [0.1, 1]}},
)
spec("a domain of nobody", lp({"x": 1, "y": 2}), "or give a number", {"methods.lp.space.lr": 0.1})
spec(
    "values in a list",
    lp([0.1, 1]),
    r"is written as (?P<meant>choice): \[\.\.\.\]",
    {"methods.lp.space.lr": {"choice": [0.1, 1]}},
)
for domain, wrong, right in (
    ("loguniform", [0, 1], [0.1, 1]),
    ("uniform", [1, 0], [0, 1]),
    ("randint", [3, 3], [3, 4]),
    ("quniform", [0, 1, 2], [0, 1, 0.5]),
):
    spec(
        f"a {domain} of nothing",
        lp(0.1, weight_decay={domain: wrong}),
        r"needs (0 < )?low < high",
        {"methods.lp.space.weight_decay": {domain: right}},
    )
spec(
    "a learning rate of zero",
    lp({"uniform": [0, 1]}),
    r"lr spans \[0, 1\]; it must be above 0",
    {"methods.lp.space.lr": {"uniform": [0.01, 1]}},
)
spec(
    "a step that does not fit",
    lp(0.1, weight_decay={"quniform": [0, 1, 0.3]}),
    r"high must be a multiple of q, for example (?P<high>[\d.]+)$",
    {"methods.lp.space.weight_decay.quniform.1": "<high>"},
)
spec(
    "a mistyped head",
    methods(lp={"head": "papr", "space": {"lr": 1}}),
    MEANT,
    {"methods.lp.head": "<meant>"},
)
spec(
    "an extension's head without its file",
    methods(lp={"head": "shrink", "space": {"lr": 1}}),
    "or an extension's, as in (?P<meant>[\\w:]+)",
    {"methods.lp.head": "<meant>"},
)
spec(
    "a blank template",
    methods(lp={"head": "zero_shot", "templates": ["a photo"]}),
    r"\{\}",
    {"methods.lp.templates": ["a photo of a {}"]},
)


def change(settings: Any, path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for name in parents:
        settings = settings[int(name) if isinstance(settings, list) else name]
    if value is DROP:
        del settings[last]
    else:
        settings[int(last) if isinstance(settings, list) else last] = value


@pytest.mark.parametrize("name", SPECS)
def test_a_remedy_of_a_tuning_section_works(name: str) -> None:
    given, remedy, changes = SPECS[name]
    with pytest.raises(ValidationError) as caught:
        Tuning.model_validate(given)
    message = in_words(caught.value.errors()[0])
    found = re.search(remedy, message)
    assert found is not None, message
    followed = copy.deepcopy(given)
    for path, value in changes.items():
        group = re.fullmatch("<(.*)>", value) if isinstance(value, str) else None
        text = found[group[1]] if group else value
        change(followed, path, float(text) if group and text[0].isdigit() else text)
    Tuning.model_validate(followed)


# -- what a cell finds in its rows -----------------------------------------------------------------


def samples(labels: list[float] | list[int]) -> Samples:
    kind = np.float64 if isinstance(labels[0], float) else np.int64
    return Samples(pa.array([f"k{n}" for n in range(len(labels))]), np.array(labels, kind))


def train(task: Task, labels: list[int] | list[float], percent: float = 100) -> Any:
    classes = TaskClasses.of(task, CLASSES)
    return training_rows(samples(labels), classes, task, percent=percent, seed=0).labels.tolist()


def of(**classes: tuple[int | str, ...]) -> Task:
    return id_task(classes=classes)


SPELLED = id_task(classes={"no": ("no", "0x"), "yes": ("yes",)}, corpus=None, source="features")
MAP = ClassMapping.of
Step = Callable[[], Any]
ROWS: Mapping[str, tuple[Step, str, Step, Any]] = {
    "a label of two classes": (
        lambda: TaskClasses.of(of(a=(0, 1), b=("one", 2)), CLASSES),
        "label 1 counts as two classes; remove it from classes.b or",
        lambda: TaskClasses.of(of(a=(0, 1), b=(2,)), CLASSES).index_of.tolist(),
        [0, 0, 1, -1],
    ),
    "a number of two classes": (
        lambda: of(a=(0, 1), b=(1, 2)),
        "1 counts as two of classes; keep it in one of them",
        lambda: len(of(a=(0, 1), b=(2,)).classes or ()),
        2,
    ),
    "a label beyond the last": (
        lambda: TaskClasses.of(of(a=(0,), b=(9,)), CLASSES),
        "has labels 0 to 3",
        lambda: TaskClasses.of(of(a=(0,), b=(3,)), CLASSES).index_of.tolist(),
        [0, -1, -1, 1],
    ),
    "a task of one class": (
        lambda: train(of(a=(0,)), [0, 1, 2, 3]),
        "has 1 class; give it at least two",
        lambda: train(of(a=(0,), b=(1,)), [0, 1, 2, 3]),
        [0, 1],
    ),
    "a class without training rows": (
        lambda: train(of(a=(0,), b=(1,), c=(2,)), [0, 1, 3]),
        "class c has no row .*; leave it out of `classes`",
        lambda: train(of(a=(0,), b=(1,)), [0, 1, 3]),
        [0, 1],
    ),
    "a class without training rows, which gets one": (
        lambda: train(of(a=(0,), b=(1,), c=(2,)), [0, 1, 3]),
        "or give the corpus a larger training part",
        lambda: train(of(a=(0,), b=(1,), c=(2,)), [0, 1, 3, 2]),
        [0, 1, 2],
    ),
    "a part without the task's classes": (
        lambda: plain_rows(samples([3, 3]), TaskClasses.of(of(a=(0,), b=(1,)), CLASSES), id_task()),
        "no row with a label of its classes; check `classes`",
        lambda: train(of(a=(0,), b=(3,)), [0, 3]),
        [0, 1],
    ),
    "numbers that are all equal": (
        lambda: train(NUMBERS, [1.0] * 99 + [2.0], 1),
        r"fraction 1 % .* all have the target 1; use a larger fraction",
        lambda: len(train(NUMBERS, [1.0] * 99 + [2.0], 100)),
        100,
    ),
    "a part of one number": (
        lambda: plain_rows(samples([1.0]), TaskClasses.of(NUMBERS, ()), NUMBERS),
        "a correlation needs two; add rows to the part",
        lambda: plain_rows(
            samples([1.0, 2.0]), TaskClasses.of(NUMBERS, ()), NUMBERS
        ).labels.tolist(),
        [1.0, 2.0],
    ),
    "labels that are numbers": (
        lambda: TaskClasses.of(SPELLED, ("0", "1")),
        "name the classes in the order of their numbers",
        lambda: TaskClasses.of(SPELLED, ("no", "yes")).index_of.tolist(),
        [0, 1],
    ),
    "labels that are spelled otherwise": (
        lambda: TaskClasses.of(SPELLED, ("nein", "yes")),
        r"accepted labels are no \(no, 0x\); yes \(yes\); correct the labels",
        lambda: TaskClasses.of(SPELLED, ("yes", "0x")).index_of.tolist(),
        [1, 0],
    ),
    "an output that the heads lack": (
        lambda: MAP(ood_task(), ("one", "ein"), CLASSES),
        "have zero, one, two, three; use their names in `classes`",
        lambda: MAP(ood_task(), ("one", "two"), CLASSES).outputs.tolist(),
        [1, 2],
    ),
    "an answer that the heads lack": (
        lambda: MAP(ood_task(answers={"a": ("ein",)}), ("a",), CLASSES),
        "have zero, one, two, three; use their names in .*`answers`",
        lambda: MAP(ood_task(answers={"a": ("one",)}), ("a",), CLASSES).outputs.tolist(),
        [1],
    ),
    "an output of two classes": (
        lambda: MAP(ood_task(), ("x",), ("x", "x")),
        "two classes of blobs-id are called so; give each of them a name of its own",
        lambda: MAP(ood_task(), ("x",), ("x", "y")).outputs.tolist(),
        [0],
    ),
    "a class without an answer": (
        lambda: MAP(ood_task(answers={"a": ("one",)}), ("a", "b"), CLASSES),
        "class b has no output; add it to `answers`",
        lambda: MAP(ood_task(answers={"a": ("one",), "b": ("two",)}), ("a", "b"), CLASSES).count,
        2,
    ),
    "a class without an answer, left out": (
        lambda: MAP(ood_task(answers={"a": ("one",)}), ("a", "b"), CLASSES),
        "or leave it out of `classes`",
        lambda: MAP(ood_task(answers={"a": ("one",)}), ("a",), CLASSES).count,
        1,
    ),
    "ids in place of words": (
        lambda: class_words(["n01440764", "n01443537"]),
        "give the task class names in words",
        lambda: class_words(["tench", "gold_fish"]),
        ["tench", "gold fish"],
    ),
    "logistic regression of a number": (
        lambda: step(task=NUMBERS, method_name="lr", method={"head": "lbfgs", "space": {"l2": 1}}),
        "needs classes, but task years predicts a number; use ridge",
        lambda: (
            step(
                task=NUMBERS, method_name="r", method={"head": "ridge", "space": {"l2": 1}}
            ).method.head
        ),
        "ridge",
    ),
    "label noise of a number": (
        lambda: step(task=NUMBERS, label_noise=10),
        "label_noise 10 replaces labels .*; put one of the two in an experiment of its own",
        lambda: step(task=NUMBERS).label_noise,
        0,
    ),
    "an encoder of a frozen method": (
        lambda: step(encoder={"views": {}}),
        r"`encoder` goes with .*, and leave it out for others",
        lambda: step().encoder,
        None,
    ),
}


@pytest.mark.parametrize("name", ROWS)
def test_a_remedy_of_a_task_works(name: str) -> None:
    refused, remedy, followed, wanted = ROWS[name]
    with pytest.raises((StageError, ValueError), match=remedy):
        refused()
    found = followed()
    assert found == wanted
