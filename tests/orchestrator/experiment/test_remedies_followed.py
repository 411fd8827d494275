"""What a message about an experiment's sections tells its user to do works when it is done."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from commands import Run
from followed import Case, Cases, Follow, also, say

CASES = Cases()
COMMIT = "0123456789" * 4
PRETRAINED = "encoders: [{kind: timm, name: r18, model: resnet18}]\n"
LP = "tuning: {methods: {lp: {head: linear, space: {lr: 0.01}}}}\n"
BERT = "encoders: [{kind: transformers, name: t, model: org/x, revision: " + COMMIT + "}]\n"
MINE = f"name: mine\ntasks: [digits]\n{LP}"
GIVEN = "encoders: [{kind: features, name: f, files: {FILES}}]\n"


def lines(case: str, text: str, remedy: str, old: str, new: str, shows: str = "mine in") -> None:
    """Add a case of an experiment file; the remedy is followed by writing `new` for `old`."""

    def make(case: Case) -> None:
        features(case.folder)
        case.write("mine.yaml", text)
        case.say("plan mine.yaml -v")

    def follow(case: Case, found: object) -> None:
        assert old in text
        case.write("mine.yaml", text.replace(old, new))

    CASES[case] = (make, remedy, follow, shows)


def words(case: str, given: str, remedy: str, follow: Follow, shows: str = "demo in") -> None:
    """Add a case of a command line."""

    def make(case: Case) -> None:
        features(case.folder)
        case.say(f"plan {given}")

    CASES[case] = (make, remedy, follow, shows)


def features(folder: Path) -> None:
    vectors = list(np.eye(60, 4, dtype=np.float32))
    columns = {"key": [f"k{n}" for n in range(60)], "vector": vectors}
    pq.write_table(pa.table({**columns, "label": ["cat", "dog"] * 30}), folder / "f.parquet")


def given(**files: str) -> str:
    listed = ", ".join(f"{task.replace('_', '-')}: {file}" for task, file in files.items())
    return GIVEN.replace("FILES", listed)


# -- what stands in the file -----------------------------------------------------------------------

lines(
    "a missing field",
    MINE.replace(LP, "") + PRETRAINED,
    "is missing; give it",
    "tasks",
    LP + "tasks",
)
lines(
    "nothing to adapt",
    MINE,
    r"give all three, or `encoders`, or both",
    "tasks",
    PRETRAINED + "tasks",
)
lines(
    "noise that nothing trains on",
    MINE + PRETRAINED + "noise: {kind: symmetric, name: s, levels: [0]}\n",
    "on pretrained encoders alone none of them",
    "noise: {kind: symmetric, name: s, levels: [0]}\n",
    "",
)
lines(
    "claims without pre-training",
    MINE + PRETRAINED + "claims: [sve-moves]\n",
    "pre-trains nothing; leave claims out",
    "claims: [sve-moves]\n",
    "",
)
lines(
    "two encoders of a name",
    MINE + PRETRAINED.replace("]", ", {kind: timm, name: r18, model: resnet34}]"),
    "r18 named twice; give each encoder its own name",
    "r18, model: resnet34",
    "r34, model: resnet34",
    "encoder/r34",
)
lines(
    "an encoder of no kind",
    MINE + PRETRAINED.replace("kind: timm, ", ""),
    r"encoders\.0\.kind is missing; give it one$",
    "[{name",
    "[{kind: timm, name",
)
lines(
    "a tab",
    f"{MINE}{PRETRAINED}data:\n\tx\n",
    "a tab stands where only blanks may; use blanks",
    "\tx",
    "  x",
)
lines(
    "a value in percent signs",
    MINE + PRETRAINED + "title: %x\n",
    "put the value in quotes",
    "%x",
    "'%x'",
)
lines(
    "a second colon",
    MINE + PRETRAINED + "title: a: b\n",
    "put the value in quotes",
    "a: b",
    "'a: b'",
)
lines(
    "an open bracket",
    MINE.replace("[digits]", "[digits") + PRETRAINED,
    r"begins with \[ does not end with \]; close it",
    "[digits",
    "[digits]",
)
lines(
    "an open list of fields",
    MINE.replace("0.01}}}", "0.01}}") + PRETRAINED,
    r"do not end with \}; close them",
    "0.01}}",
    "0.01}}}",
)
lines(
    "a line without a colon",
    MINE + PRETRAINED + "title\n",
    "without a colon after its key; add it",
    "title",
    "title: x",
)
lines(
    "a line that is indented alone",
    MINE + PRETRAINED + "  title: x\n",
    "align it|or indent it",
    "  title",
    "title",
)
lines(
    "an open quotation",
    MINE + PRETRAINED + "title: 'x\n",
    "a quotation mark is not closed; close it",
    "'x",
    "'x'",
)
lines("a star", MINE + PRETRAINED + "title: *x\n", r"put a text with \* in quotes", "*x", "'*x'")
lines("a tag", MINE + PRETRAINED + "title: !x y\n", "give a plain value", "!x y", "y")
lines(
    "a second document",
    MINE + PRETRAINED + "---\nname: x\n",
    "keep one in a file",
    "---\nname: x\n",
    "",
)
lines(
    "a control character",
    MINE + PRETRAINED + "title: a\x07b\n",
    "a control character; remove it",
    "\x07",
    "",
)
lines(
    "an escaped NUL",
    MINE + PRETRAINED + 'title: "a\\0b"\n',
    r"NUL or half a character .*; remove it",
    "\\0",
    "",
)
lines(
    "a field of nobody",
    MINE + PRETRAINED + "wsdfgh: 1\n",
    r"unknown field wsdfgh \(remove it; known here",
    "wsdfgh: 1\n",
    "",
)
lines(
    "a kind that is missing",
    MINE + "encoders: [{name: r18, model: resnet18}]\n",
    "kind is missing; give it one",
    "{name",
    "{kind: timm, name",
)
lines(
    "a key that is a number",
    MINE + PRETRAINED + "tracking: {1: x}\n",
    "a key that is no text; put it in quotes",
    "1: x",
    "'enabled': false",
)

# -- given features --------------------------------------------------------------------------------

lines(
    "a branch in place of a commit",
    MINE.replace("[digits]", "[remarks-films]") + BERT.replace(COMMIT, "main"),
    r"revision = 'main': must be a commit: all 40 digits",
    "main",
    COMMIT,
    "encoder/t",
)
lines(
    "a file of an unlisted task",
    MINE + given(digits="f.parquet", digits_parity="f.parquet"),
    "not listed in tasks; .*add it to `tasks`",
    "[digits]",
    "[digits, digits-parity]",
    "digits-parity\n",
)
lines(
    "a file of a mistyped task",
    MINE + given(digis="f.parquet"),
    r"not listed in tasks; did you mean digits\?",
    "digis",
    "digits",
)
lines(
    "a task that no encoder reads",
    MINE.replace("[digits]", "[digits, remarks-films]") + PRETRAINED,
    "modality text, and no encoder of this experiment reads them; .* or take the task out",
    "[digits, remarks-films]",
    "[digits]",
)
lines(
    "an encoder that reads no task",
    MINE.replace("[digits]", "[remarks-films]")
    + PRETRAINED.replace(
        "]", ", {kind: transformers, name: t, model: org/x, revision: " + COMMIT + "}]"
    ),
    "r18 reads samples of modality image, and no task has any; .*, or take the encoder out",
    "{kind: timm, name: r18, model: resnet18}, ",
    "",
    "encoder/t",
)
lines(
    "an encoder that reads no listed task",
    MINE.replace("[digits]", "[remarks-films]")
    + PRETRAINED.replace(
        "]", ", {kind: transformers, name: t, model: org/x, revision: " + COMMIT + "}]"
    ),
    "no task has any; add such a task",
    "[remarks-films]",
    "[remarks-films, digits]",
    "encoder/r18",
)
words(
    "a task like another",
    "--features f.parquet --task digis",
    r"similar name \((?P<meant>digits)\b.*\); correct it",
    say("plan --features f.parquet --task {meant}"),
    "features-digits in",
)
words(
    "views of given features",
    "--features f.parquet --set features.views.count=2 --set tuning.methods.lp.views=2",
    "leave views out",
    say("plan --features f.parquet --set features.views.count=2"),
    "features-f in",
)

# -- methods and encoders --------------------------------------------------------------------------

FT = LP.replace("}}}}", "}}, ft: {head: linear, adapt: ft, space: {lr: 0.01}}}}")
lines(
    "fine-tuning of given features",
    MINE.replace(LP, FT) + given(digits="f.parquet"),
    "gives features alone; leave the method out",
    FT,
    LP,
)
ZERO = "tuning: {methods: {lp: {head: linear, space: {lr: 0.01}}, zs: {head: zero_shot}}}\n"
lines(
    "a zero-shot head without words",
    MINE.replace(LP, ZERO) + PRETRAINED,
    "is none; leave the method out",
    ZERO,
    LP,
)
MASKED = MINE.replace("[digits]", "[digits, camvid]") + PRETRAINED
RELABELLED = LP.replace("tuning: {", "tuning: {label_noise: [0, 10], ")
for case, tuning, remedy, old, new in (
    (
        "fine-tuning for masks",
        FT,
        "ft trains the encoder, and task camvid predicts a mask .*; leave the method out",
        FT,
        LP,
    ),
    (
        "fine-tuning beside masks",
        FT,
        "or put one of the two in an experiment of its own$",
        "[digits, camvid]",
        "[digits]",
    ),
    (
        "masks beside fine-tuning",
        FT,
        "or put one of the two in an experiment of its own$",
        MINE.replace(LP, FT).replace("[digits]", "[digits, camvid]"),
        MINE.replace("[digits]", "[camvid]"),
    ),
    (
        "label noise beside masks",
        RELABELLED,
        "label_noise 10 .* camvid predicts a mask; put one of the two in an experiment of its own$",
        "[digits, camvid]",
        "[digits]",
    ),
    (
        "masks beside label noise",
        RELABELLED,
        "label_noise 10 .* camvid predicts a mask; put one of the two in an experiment of its own$",
        MINE.replace(LP, RELABELLED).replace("[digits]", "[digits, camvid]"),
        MINE.replace("[digits]", "[camvid]"),
    ),
):
    lines(case, MASKED.replace(LP, tuning), remedy, old, new)
lines(
    "an extension's hyper-parameter of a linear head",
    MINE.replace("lr: 0.01", "lr: 0.01, own: {strength: 1}") + PRETRAINED,
    r"space\.strength is a hyper-parameter of an extension's; leave it out$",
    ", own: {strength: 1}",
    "",
)
API = "encoders: [{kind: api, name: a, base_url: 'http://h/v1', model: text-embedding-ada-002}]\n"
TEXT = MINE.replace("[digits]", "[remarks-films]")
lines(
    "fine-tuning behind an API",
    TEXT.replace(LP, FT) + API,
    "stays behind an API; leave the method out",
    FT,
    LP,
)
lines(
    "hidden tokens behind an API",
    TEXT + API + "features: {views: {count: 1, mask: 0.1}}\n",
    "leave the mask out",
    ", mask: 0.1",
    "",
)
VIEWS = "features: {views: {count: 2}}\n"
lines(
    "views of texts",
    TEXT.replace("lr: 0.01}", "lr: 0.01}, views: 2") + BERT + VIEWS,
    "set features.views.mask",
    "count: 2",
    "count: 2, mask: 0.1",
)
lines(
    "views of texts, without",
    TEXT.replace("lr: 0.01}", "lr: 0.01}, views: 2") + BERT + VIEWS,
    "or leave views out",
    ", views: 2",
    "",
)
words(
    "a claim that is named twice",
    "--noise 0,20 --set 'claims=[sve-moves, sve-moves]'",
    r"sve-moves named twice; name each claim once$",
    say("plan --noise 0,20 --set 'claims=[sve-moves]'"),
    "registers 1 claim",
)
words(
    "a claim that the levels do not test",
    "--noise 0,10 --set 'claims=[id-peaks-at-5-10]'",
    r"id-peaks-at-5-10 cannot be tested .*; it needs a clean level, one of at most 10 % and a heav",
    say("plan --noise 0,10,30 --set 'claims=[id-peaks-at-5-10]' -v"),
    "noise=30",
)
words(
    "an experiment of nobody",
    "xyzzy",
    r"give a YAML file or a name \(bundled: .*\b(?P<meant>digits-clip)\b",
    say("plan {meant}"),
    "digits-clip in",
)
words(
    "a file of features as an experiment",
    "f.parquet",
    r"f\.parquet: cannot be read as text .*; give a file in UTF-8$",
    say("plan --features f.parquet"),
    "features-f in",
)
words(
    "noise levels of pretrained encoders",
    "encoders-practical --noise 0 --seeds 1",
    r"pre-trains nothing; leave out --noise and --seeds, or give it corpus",
    say("plan encoders-practical"),
    "practical in",
)
lines(
    "a list for an experiment",
    "- a\n",
    r"must be a mapping of fields, such as `name: my-experiment`$",
    "- a\n",
    MINE + PRETRAINED,
)
words(
    "a corpus without validation rows",
    "--set corpus.name=mine --set 'corpus.parts={train: 0.75, validation: 0, test: 0.25}'",
    r"(?P<meant>corpus\.parts\.validation) is 0: .*; raise it, or give it a reader$",
    say("plan --set corpus.name=mine --set 'corpus.parts.train=0.6' --set '{meant}=0.15'"),
)
words(
    "a corpus without validation rows, which gets a reader",
    "--set corpus.name=mine --set 'corpus.parts={train: 0.75, validation: 0, test: 0.25}'",
    r"(?P<meant>corpus\.parts\.validation) is 0: .*; raise it, or give it a reader$",
    say(
        "plan --set corpus.name=mine --set corpus.parts.train=0.75 --set corpus.parts.test=0.25 "
        "--set '{meant}={{kind: imagefolder, path: v}}'"
    ),
)
words(
    "a field of a value",
    "--set name.folder=here",
    r"name is a value, it has no fields; leave out folder$",
    say("plan --set name=here"),
    "here in",
)
words(
    "a field deep below a value",
    "--set name.folder.name=here",
    r"--set name\.folder\.name: folder is below a value, .*; end the path before folder$",
    say("plan --set name=here"),
    "here in",
)
words(
    "a place in a list",
    "--set tasks.9=digits",
    r"9 must be an index from 0 to (?P<last>\d+)$",
    say("plan --set tasks.{last}=digits-noisy"),
)
words(
    "a level above all",
    "--noise 0,120",
    r"is outside 0 <= level < 100 percent; correct it$",
    say("plan --noise 0,90"),
)
words(
    "noise of captions for labels",
    "--set noise.kind=caption_swap",
    "use (?P<meant>symmetric)",
    say("plan --set noise.kind={meant}"),
)
words(
    "a corpus like a task's, but other",
    "--set corpus.rows_per_shard=100",
    "give one of the two another name",
    also("--set corpus.name=mine"),
    "demo in",
)
words(
    "a batch that a declared corpus does not fill",
    "--rows 50",
    "they do not fill a batch; lower it",
    also("--set pretrain.recipe.schedule.batch_size=32"),
)
words(
    "a server without http",
    "--set tracking.uri=localhost:5000",
    r"give one like (?P<meant>http://)HOST:5000",
    say("plan --set tracking.uri={meant}localhost:1"),
)
words(
    "a model of nobody",
    "--set pretrain.recipe.model=resnet_18 --set pretrain.recipe.model_options={}",
    r"did you mean (?P<meant>\w+)",
    say("plan --set pretrain.recipe.model={meant} --set pretrain.recipe.model_options={{}}"),
)


# -- tasks of one's own ----------------------------------------------------------------------------

TASK = "title: T\ndomain: {domain}\nsource: {source}\nmetric: {metric}\n"
OF_NAMES = TASK.format(domain="id", source="features", metric="accuracy")
OF_NUMBERS = TASK.format(domain="id", source="features", metric="pearson") + "target: number\n"
CLASSES = "classes: {cat: [cat], dog: [dog]}\n"
LATER = TASK.format(domain="ood", source="features", metric="accuracy") + "trained_on: first\n"
ENCODER = "{kind: features, name: f, files: {first: f.parquet}}"


def own_tasks(name: str, text: str, remedy: str, old: str, new: str, **tasks: str) -> None:
    """Add a case of an experiment with task files of its own, mended by `new` for `old`."""

    def make(case: Case) -> None:
        features(case.folder)
        for task, content in tasks.items():
            case.write(f"own/{task}.yaml", f"name: {task}\n{content}")
        case.write("mine.yaml", text)
        case.say("plan mine.yaml -v --tasks-path own")

    def follow(case: Case, found: object) -> None:
        assert old in text
        case.write("mine.yaml", text.replace(old, new))

    CASES[name] = (make, remedy, follow, "mine in")


FIRST = f"name: mine\ntasks: [first]\n{LP}encoders: [{ENCODER}]\n"
own_tasks(
    "a task whose features no encoder gives",
    FIRST.replace("[first]", "[first, second]"),
    r"second has given features, and no encoder .*; add its file to one$",
    "f.parquet}",
    "f.parquet, second: f.parquet}",
    first=OF_NAMES + CLASSES,
    second=OF_NAMES + CLASSES.replace("cat: [cat]", "kitten: [cat]"),
)
own_tasks(
    "classes of numbers",
    FIRST.replace("f.parquet}}", "f.parquet}, classes: {first: [cat, dog]}}"),
    r"files names first, which predicts a number; leave out its classes$",
    ", classes: {first: [cat, dog]}",
    "",
    first=OF_NUMBERS,
)
own_tasks(
    "a task without the file of the one it is trained on",
    FIRST.replace("[first]", "[first, later]").replace("{first: f", "{later: f"),
    r"files names later, which is trained on first; give that task's file as well$",
    "{later: f.parquet}",
    "{later: f.parquet, first: f.parquet}",
    first=OF_NAMES + CLASSES,
    later=LATER + CLASSES,
)
words(
    "a corpus of texts to pre-train on",
    "--set corpus.name=mine --set corpus.modality=text "
    "--set 'corpus.reader={kind: table, path: t.csv, fields: {}}'",
    r"pre-training reads images; give encoders that are trained elsewhere \(`encoders`\)",
    say("plan encoders-practical"),
    "practical in",
)


@CASES.case(
    r"corpus is missing; say which samples it has and how they are read$",
    lambda case, found: case.write("part.yaml", f"name: part\n{CORPUS}"),
    "is not built",
)
def noise_without_a_corpus(case: Case) -> None:
    case.write("part.yaml", "name: part\nnoise: {kind: symmetric, name: s, levels: [10]}\n")
    case.say("corpus show part.yaml")


CORPUS = "corpus: {name: digits, reader: {kind: digits}}\n"


@CASES.case(
    r"and .* test the same samples by the same labels, .*; take one out, or correct its reader$",
    lambda case, found: case.write("mine.yaml", TWINS.replace(", twin", "")),
    "mine in",
)
def two_tasks_that_test_the_same(case: Case) -> None:
    case.write("own/twin.yaml", f"name: twin\ntitle: T\ndomain: id\n{CORPUS}metric: accuracy\n")
    case.write("mine.yaml", TWINS)
    case.say("plan mine.yaml -v --tasks-path own")


TWINS = MINE.replace("[digits]", "[digits, twin]") + PRETRAINED


@pytest.mark.parametrize("name", CASES)
def test_a_remedy_works_when_it_is_followed(name: str, tmp_path: Path, run: Run) -> None:
    CASES.check(name, tmp_path, run)
