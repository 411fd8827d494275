"""What a message about an experiment tells its user to do works when it is done.

Each case raises its message with some words of the command line; the remedy is read from the
message and followed; then the experiment is read and planned.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from commands import Run

Words = list[str]
Follow = Callable[[Words, re.Match[str], Path], None]
CASES: dict[str, tuple[Words, str, Follow]] = {}


def case(name: str, words: str | Sequence[str], remedy: str, follow: Follow) -> None:
    """Register a case: its words, what stands in its message, and how that is followed."""
    CASES[name] = (words.split() if isinstance(words, str) else list(words), remedy, follow)


def rename(words: Words, found: re.Match[str], folder: Path) -> None:
    """Follow "did you mean X?": write X in place of the last name of the last word's path."""
    path, equals, value = words[-1].partition("=")
    *above, _ = path.split(".")
    words[-1] = ".".join([*above, found["meant"]]) + equals + value


def replace_value(words: Words, found: re.Match[str], folder: Path) -> None:
    """Follow "did you mean X?" about a value, and "use X"."""
    words[-1] = f"{words[-1].partition('=')[0]}={found['meant']}"


def quote(words: Words, found: re.Match[str], folder: Path) -> None:
    path, _, value = words[-1].partition("=")
    words[-1] = f"{path}='{value}'"


def instead(words: Words, found: re.Match[str], folder: Path) -> None:
    """Write what the message gives in place of all words."""
    words[:] = found["meant"].split()


def give(words: Words, found: re.Match[str], folder: Path) -> None:
    """Write what the message gives in place of the last word."""
    words[-1] = found["meant"]


def without(words: Words, found: re.Match[str], folder: Path) -> None:
    """Leave out the options that the message names, with their values."""
    for name in re.findall("--[a-z]+", found["meant"]):
        at = words.index(name)
        del words[at : at + 2]


def more(template: str) -> Follow:
    """Set another field to what the message gives."""
    return lambda words, found, folder: words.extend(
        ["--set", template.format(**found.groupdict())]
    )


MEANT = r"did you mean (?P<meant>[^?)]+)\?"
case("a mistyped field", "--set tuning.epoch=3", MEANT, rename)
case("a mistyped field below", "--set pretrain.recipe.schedule.epoch=3", MEANT, rename)
case("a mistyped value", "--set overlap=alow", MEANT, replace_value)
case("a mistyped kind", "--set noise.kind=symetric", MEANT, replace_value)
case("a mistyped head", "--set tuning.methods.lp.head=liner", MEANT, replace_value)
case(
    "a mistyped task",
    ["--set", "tasks=[digit]"],
    MEANT,
    lambda words, found, _: words.__setitem__(-1, f"tasks=[{found['meant'].split(' or ')[0]}]"),
)
case("a mistyped experiment", "dmo", r"did you mean the bundled '(?P<meant>\w+)'", instead)
case(
    "a mistyped claim",
    ["--set", "claims=[id-lp-fals]"],
    r"`nml-orch (?P<meant>plan --claims)` lists all",
    instead,
)
case("levels without commas", "--noise 5 10", r"use commas: (?P<meant>.+)$", instead)
case(
    "levels with blanks",
    ["--noise", "5 10"],
    r"use commas: --noise (?P<meant>\S+)$",
    give,
)
case("seeds without commas", "--seeds 0 1", r"use commas: (?P<meant>.+)$", instead)
case(
    "levels as shares",
    ["--set", "noise.levels=[0, 0.05]"],
    r"or (?P<meant>0\.05%) if",
    lambda words, found, _: words.__setitem__(-1, f"noise.levels=[0, '{found['meant']}']"),
)
case(
    "levels that were shares",
    ["--set", "noise.levels=[0, 0.05]"],
    r"write (?P<meant>\d+) for",
    lambda words, found, _: words.__setitem__(-1, f"noise.levels=[0, {found['meant']}]"),
)
case("a number as a title", "--set title=5", "must be text; put it in (?P<meant>quotes)", quote)
case("true as a title", "--set title=true", "put it in (?P<meant>quotes) if it is a word", quote)
case("a date as a name", "--set name=2024-01-31", "put it in (?P<meant>quotes)", quote)
case("noise of captions", "--set noise.kind=caption_swap", r"use (?P<meant>\w+) or", replace_value)
case("half precision", "--set tuning.precision=tf32", r"or use (?P<meant>float32)", replace_value)
case(
    "views that do not exist",
    ["--set", "features.views.count=1", "--set", "tuning.methods.lp.views=3"],
    r"views is (?P<views>\d+), .* give at least as many",
    more("features.views.count={views}"),
)
case(
    "a task without the one it is trained on",
    ["--set", "tasks=[digits-rotated]"],
    r"is trained on (?P<meant>[\w-]+), which is not listed; add it",
    lambda words, found, _: words.__setitem__(-1, f"tasks=[{found['meant']}, digits-rotated]"),
)
case(
    "a grid without a grid search",
    ["--set", "tuning.methods={lp: {head: linear, space: {lr: {grid: [0.1, 0.01]}}}}"],
    r"as a grid, .* use (?P<meant>choice)",
    lambda words, found, _: words.__setitem__(-1, words[-1].replace("grid:", f"{found['meant']}:")),
)
case(
    "a corpus with nothing to train on",
    ["--set", "corpus.name=mine", "--set", "corpus.parts={train: 0, validation: 0.5, test: 0.5}"],
    r"(?P<meant>corpus\.parts\.train) is 0: .*; raise it",
    lambda words, found, _: words.__setitem__(
        -1, "corpus.parts={train: 0.5, validation: 0.25, test: 0.25}"
    ),
)
case(
    "an option of given features",
    ["--features", "f.parquet", "--noise", "0,5", "--seeds", "0"],
    r"leave out (?P<meant>--noise and --seeds)",
    without,
)
case(
    "a name of a file of features",
    ["--features", f"{'x' * 90}.parquet"],
    r"give one with (?P<meant>--task)",
    lambda words, found, _: words.extend([found["meant"], "mine"]),
)
case(
    "a task without features",
    ["--task", "mine"],
    r"it names the task of (?P<meant>--features) FILE; give that too",
    lambda words, found, _: words.extend([found["meant"], "f.parquet"]),
)
case(
    "two files at once",
    ["demo", "digits-clip"],
    r"one FILE is read at a time; leave the others out",
    lambda words, found, _: words.pop(),
)
case(
    "a path without a value",
    "--set noise.seed",
    r"as in (?P<meant>noise\.seed=1)",
    give,
)
case(
    "a path with a gap",
    "--set noise..seed=2",
    r"as in (?P<meant>noise\.seed=1)",
    give,
)
case(
    "a storage that is no folder",
    ["--storage", "f.parquet/store"],
    r"name .* with (?P<meant>--storage)",
    lambda words, found, _: words.__setitem__(-1, "store"),
)


def drop(words: Words, found: re.Match[str], folder: Path) -> None:
    """Follow "leave it out" and "remove it"."""
    del words[-2:]


def set_to(value: str) -> Follow:
    """Give the last field another value, where the message says what kind of value."""
    return lambda words, found, folder: words.__setitem__(
        -1, f"{words[-1].partition('=')[0]}={value}"
    )


for field, what, remedy in (
    (
        "tuning.methods.lp.rank=4",
        "a rank without lora",
        "rank belongs to adapt: lora; leave it out",
    ),
    ("tuning.methods.lp.space.l2=0.1", "a penalty of steps", "takes no l2"),
    ("tuning.methods.lp.space.mse=1", "an mse of a linear head", "leave out mse"),
    ("tuning.methods.lp.space.svd=1", "an svd of a linear head", "leave out mse, cov and svd"),
    ("tuning.methods.lp.space.scale=2", "a scale of nothing", "none is given; leave it out"),
    ("tuning.methods.lp.templates=['a {}']", "words for a linear head", "linear; remove them"),
    ("tuning.label_noise_classes=all", "classes of no noise", "or leave it out"),
    ("pretrain.recipe.bce_threshold=0.2", "a threshold of no loss", "remove it or set the loss"),
):
    case(what, ["--set", field], remedy, drop)
for field, what, remedy, value in (
    ("tuning.seeds=[0, 0]", "a tuning seed twice", "given twice; name each once", "[0]"),
    ("tuning.fractions=[10, 10]", "a fraction twice", "given twice; name each once", "[10]"),
    ("pretrain.seeds=[1, 1]", "a pre-training seed twice", "given twice; name each once", "[1]"),
    ("tasks=[digits, digits]", "a task twice", "named twice", "[digits]"),
    ("noise.levels=[0, 120]", "a level above all", "must be below 100", "[0, 90]"),
    ("tuning.fractions=[0]", "no rows", "must be above 0", "[1]"),
    (
        "storage=s3:/bucket",
        "a bucket with one slash",
        r"or \./s3:/bucket for a folder",
        "./s3:/bucket",
    ),
    ("storage=' '", "a blank storage", "is blank; give a folder", "store"),
    ("pretrain.recipe.schedule.warmup_epochs=999", "a long warm-up", "shorten it", "1"),
    ("pretrain.recipe.schedule.batch_size=100000", "a large batch", "lower it", "64"),
    ("tuning.epochs=9223372036854775808", "epochs for ever", r"give one below 2\^63", "10"),
    ("tuning.configurations=0", "no configuration", "must be at least 1", "1"),
    ("tuning.epochs=ten", "a word for a number", "must be a whole number", "10"),
    ("tuning.seeds=0", "a number for a list", r"must be a list, such as \[a, b\]", "[0]"),
    ("tracking.enabled=maybe", "a word for true", "must be true or false", "false"),
    ("features.views=3", "a number for fields", "must be fields with values", "{count: 3}"),
):
    case(what, ["--set", field], remedy, set_to(value))
case(
    "levels twice",
    "--noise 0,5,5",
    "given twice; name each level once",
    lambda w, m, _: w.__setitem__(-1, "0,5"),
)
case(
    "seeds twice",
    "--seeds 0,0",
    "given twice; name each once",
    lambda w, m, _: w.__setitem__(-1, "0"),
)
case(
    "words for levels",
    "--noise low",
    "give percentages such as (?P<meant>[0-9,]+)",
    give,
)
case(
    "halves of seeds",
    "--seeds 0.5",
    r"give e\.g\. (?P<meant>[0-9,]+)",
    give,
)
case(
    "halving what draws one by one",
    ["--set", "tuning.search=optuna", "--set", "tuning.halving={first: 1, eta: 3}"],
    "leave out halving",
    drop,
)
case(
    "fine-tuning in half precision",
    [
        "--set",
        "tuning.methods.ft={head: linear, adapt: ft, space: {lr: 0.001}}",
        "--set",
        "features.precision=float16",
    ],
    "use (?P<meant>bfloat16) or float32",
    replace_value,
)


def features(folder: Path, name: str) -> None:
    rows = 60
    vectors = list(np.random.default_rng(0).normal(size=(rows, 4)).astype(np.float32))
    columns = {"key": [f"k{n}" for n in range(rows)], "vector": vectors}
    pq.write_table(pa.table({**columns, "label": ["cat", "dog"] * 30}), folder / name)


@pytest.mark.parametrize("name", CASES)
def test_a_remedy_works_when_it_is_followed(name: str, tmp_path: Path, run: Run) -> None:
    words, remedy, follow = CASES[name]
    words = list(words)
    for file in {"f.parquet", *(word for word in words if word.endswith(".parquet"))}:
        features(tmp_path, file)
    code, message = run(tmp_path, "plan", *words)
    assert code == 2, message
    *_, sentence = message.strip().splitlines()
    found = re.search(remedy, sentence)
    assert found is not None, message
    follow(words, found, tmp_path)
    code, output = run(tmp_path, *([] if words[:1] == ["plan"] else ["plan"]), *words)
    assert code == 0, (words, output)
