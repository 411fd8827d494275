"""What a message about extensions, and about what a sweep lacks, tells its user to do works."""

import hashlib
import re
import shlex
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from commands import Run
from followed import Case, Cases, also
from jobs.contract import Outcome
from jobs.storage.folder import Folder
from orchestrator.errors import UserError
from orchestrator.experiment.model import Experiment
from orchestrator.plan import build
from orchestrator.plan.paid import check_prices, purchases
from orchestrator.plan.plan import Plan
from orchestrator.store.store import Store
from tests.jobs.text.models import put_corpus, table, texts
from tests.orchestrator.plan.test_extensions import MINE

CASES = Cases()
case = CASES.case
HEADS = MINE + "def of_text(text): ...\n"
TEXT = """name: mine
tasks: [digits]
extensions: [mine.py]
encoders: [{kind: extension, name: e, model: mine:small, model_options: {width: 2}}]
tuning: {methods: {m: {head: mine:Mine, space: {lr: 0.1, strength: 0.5}}}}
"""
MEANT = r"did you mean (?P<meant>\w+)\?"


def fault(name: str, right: str, wrong: str, remedy: str, mended: str = "") -> None:
    """Add a case: `wrong` stands for `right`; `mended` is written for it, else `right`.

    "<meant>" in `mended` is what the message gives.
    """

    def make(case: Case) -> None:
        assert right in TEXT
        case.write("mine.py", HEADS)
        case.write("mine.yaml", TEXT.replace(right, wrong))
        case.say("plan mine.yaml")

    def follow(case: Case, found: re.Match[str]) -> None:
        new = mended.replace("<meant>", found.groupdict().get("meant") or "")
        case.write("mine.yaml", TEXT.replace(right, new or right))

    CASES[name] = (make, remedy, follow, "mine in")


fault("a mistyped extension", "mine:Mine", "mnie:Mine", MEANT, "<meant>:Mine")
fault(
    "an extension that is not listed",
    "[mine.py]",
    "[]",
    r"add (?P<meant>\S+) to `extensions`",
    "[<meant>]",
)
fault("a mistyped class", "mine:Mine", "mine:Mien", MEANT, "mine:<meant>")
fault("an extension that does not exist", "[mine.py]", "[other.py]", "correct the path")
fault("a method without lr", "lr: 0.1, ", "", "lacks lr, .*; give it$")
fault("a method without its own", ", strength: 0.5", "", "lacks strength, .* declares; give it$")
fault("a mistyped hyper-parameter", "strength: 0.5", "strenth: 0.5", MEANT, "<meant>: 0.5")
fault("a value out of range", "strength: 0.5", "strength: 2", "declares it .*; stay within that$")
fault(
    "a half where wholes are",
    "strength: 0.5",
    "strength: 0.5, top: 1.5",
    "use randint, choice or one number",
    "strength: 0.5, top: {randint: [1, 3]}",
)
fault(
    "a loss that takes the encoder",
    "mine:Mine, space: {lr: 0.1, strength: 0.5}",
    "mine:Trains, space: {lr: 0.1}",
    "set (?P<meant>adapt: ft)$",
    "mine:Trains, <meant>, space: {lr: 0.1}",
)
fault(
    "a head that trains no encoder",
    "{head: mine:Mine",
    "{adapt: ft, head: mine:Mine",
    "is a head on frozen features; leave out adapt$",
)
fault(
    "steps of a solved head",
    "mine:Mine, space: {lr: 0.1, strength: 0.5}",
    "mine:Solved, space: {lr: 0.1}",
    "leave lr out$",
    "mine:Solved",
)
fault(
    "an encoder of texts for images",
    "mine:small, model_options: {width: 2}",
    "mine:of_text",
    "reads images; name another function$",
)
fault("a mistyped option", "width: 2", "widht: 2", MEANT, "<meant>: 2")
fault(
    "an encoder without its option",
    ", model_options: {width: 2}",
    "",
    "lacks width, which mine:small needs; give it$",
)


def extension(case: Case, name: str) -> None:
    case.write(name, HEADS)
    case.say(f"plan --extension {name}")


@case(
    r"(?P<meant>mine\.py), line 2: .*; correct the file",
    lambda c, _: c.write("mine.py", HEADS),
    "mine in",
)
def a_file_that_is_no_python(case: Case) -> None:
    case.write("mine.py", "\nclass Mine(:\n")
    case.write("mine.yaml", TEXT)
    case.say("plan mine.yaml")


@case(
    r"mine\.py defines Mine in lines .*; rename one",
    lambda c, _: c.write("mine.py", HEADS),
    "mine in",
)
def two_classes_of_a_name(case: Case) -> None:
    a_file_that_is_no_python(case)
    case.write("mine.py", HEADS + "\nclass Mine: ...\n")


@case(
    r"(?P<meant>my-own\.py): .*; rename the file",
    lambda case, _: extension(case, "my_own.py"),
    "demo in",
)
def a_file_with_a_dash(case: Case) -> None:
    extension(case, "my-own.py")


@case(
    r"is in the result store .*; give a file of your own",
    lambda case, _: extension(case, "m.py"),
    "demo in",
)
def a_file_in_a_store(case: Case) -> None:
    case.write("s/store.json", "{}")
    extension(case, "s/mine.py")


CLAIM = '''
def mine_beats_lp(results):
    """Mine beats the probe.

    Source: a hypothesis
    """
    return results.methods("mlp", "lp")
'''


def claim(case: Case, found: str) -> None:
    case.write("mine.py", CLAIM.replace('results.methods("mlp", "lp")', found))
    case.say("plan --extension mine.py --claims")


@case(
    r"mine:mine_beats_lp returns Comparison; return a list of comparisons$",
    lambda case, _: claim(case, 'results.methods("mlp", "lp")'),
    "mine-beats-lp",
)
def a_claim_of_one_comparison(case: Case) -> None:
    claim(case, 'results.methods("mlp", "lp")[0]')


@case(
    r"returns a list with a list in it; return a list of comparisons alone$",
    lambda case, _: claim(case, 'results.methods("mlp", "lp") + results.noise("lp", [10])'),
    "mine-beats-lp",
)
def a_claim_of_two_lists(case: Case) -> None:
    claim(case, '[results.methods("mlp", "lp"), results.noise("lp", [10])]')


# -- what an encoder behind an API costs -----------------------------------------------------------

ADA = {
    "kind": "api",
    "name": "ada",
    "base_url": "https://api.example/v1",
    "model": "text-embedding-ada-002",
    "tokens": "characters",
    "price_per_million": 1e4,
}


def paid(most: float, *tasks: str) -> Plan:
    lp = {"lp": {"head": "linear", "space": {"lr": 0.01}}}
    given = {"name": "mine", "encoders": [{**ADA, "max_price": most}], "tasks": list(tasks)}
    return build.build(Experiment.model_validate({**given, "tuning": {"methods": lp}}))


@pytest.mark.parametrize("way", ["raise max_price", "ask for fewer tasks"])
def test_a_plan_may_cost_more_or_has_fewer_tasks(way: str, tmp_path: Path) -> None:
    store, tasks = Store(Folder.of(tmp_path)), ("remarks-films", "remarks-kitchen")
    store.prepare()
    plan = paid(1, *tasks)
    for number, step in enumerate(plan.of_kind("corpus")):
        rows = table(texts(60, seed=number))
        parts = {"train": rows[:40], "validation": rows[40:50], "test": rows[50:]}
        put_corpus(store.begin(step).output, parts)
        store.commit(step, Outcome(), {})
    done = [step.address for step in plan.of_kind("corpus")]
    (one,) = purchases(paid(1, tasks[0]), store, done)
    (both,) = purchases(plan, store, done)
    assert one.left.price is not None
    assert both.left.price is not None
    most = round((one.left.price + both.left.price) / 2)
    with pytest.raises(UserError, match=f"than max_price {most}; .*{way}.*; nothing was asked for"):
        check_prices(paid(most, *tasks), store, done)
    check_prices(paid(2 * most, *tasks) if "raise" in way else paid(most, tasks[0]), store, done)


# -- what a sweep from here would lack -------------------------------------------------------------


def given(case: Case) -> None:
    vectors = list(np.eye(60, 4, dtype=np.float32))
    columns = {"key": [f"k{n}" for n in range(60)], "vector": vectors}
    rows = pa.table({**columns, "label": ["cat", "dog"] * 30})
    pq.write_table(rows, case.folder / "g.parquet")


@case(r"g\.parquet does not exist; correct the path", lambda case, _: given(case), "features-g in")
def given_features_that_are_not_here(case: Case) -> None:
    case.say("plan --features g.parquet")


def weights(more: str = "") -> str:
    fields = f"kind: file, name: e, model: resnet18, file: w.pth{more}"
    return f"--set 'encoders=[{{{fields}}}]'"


NOT_HERE = weights(f", sha256: {hashlib.sha256().hexdigest()}")  # of an empty file


@case(r"w\.pth does not exist; correct the path", lambda c, _: c.write("w.pth"), "demo in")
def weights_that_are_not_here(case: Case) -> None:
    case.say(f"plan {weights()}")


@case(
    r"or give its sha256 to plan without the file",
    lambda c, _: c.say(f"plan {NOT_HERE}"),
    "demo in",
)
def weights_that_are_planned_without_the_file(case: Case) -> None:
    case.say(f"plan {weights()}")


LACKS = "A sweep from here lacks:"
LACKING: dict[str, tuple[str, str, str, str]] = {  # words, the remedy, and what follows it
    "weights": (NOT_HERE, r"does not exist here; put it there", NOT_HERE, "w.pth"),
    "data": ("--set 'tasks=[cifar10]'", "or remove the task", "--set 'tasks=[digits]'", ""),
    "a storage": ("--storage f/s", r"name a folder .* with --storage", "--storage s", ""),
    "a server": (
        "--set tracking.uri=http://127.0.0.1:1",
        r"start it, or name another server with --set tracking\.uri=URI",
        "--set tracking.uri=sqlite:///m.db",
        "",
    ),
}


@pytest.mark.parametrize("name", LACKING)
def test_what_a_sweep_would_lack_is_here_when_the_remedy_is_followed(
    name: str, tmp_path: Path, run: Run
) -> None:
    words, remedy, followed, file = LACKING[name]
    case = Case(tmp_path)
    case.write("f")
    _, message = run(tmp_path, "plan", *shlex.split(words))
    assert re.search(f"{LACKS} .*{remedy}", " ".join(message.split())), message
    if file:
        case.write(file)
    code, output = run(tmp_path, "plan", *shlex.split(followed))
    assert code == 0
    assert LACKS not in output


def test_given_features_that_a_sweep_would_lack_are_put_there(tmp_path: Path, run: Run) -> None:
    case, file = Case(tmp_path), tmp_path / "g.parquet"
    given(case)
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    away = file.rename(tmp_path / "away")
    encoder = (
        f"{{kind: features, name: f, files: {{digits: g.parquet}}, sha256: {{digits: {sha256}}}}}"
    )
    words = ["plan", "--set", f"encoders=[{encoder}]", "--set", "tasks=[digits]"]
    _, message = run(tmp_path, *words)
    found = re.search(r"reads (?P<path>\S+), which does not exist here; put it there", message)
    assert found is not None, message
    away.rename(found["path"])
    code, output = run(tmp_path, *words)
    assert code == 0
    assert LACKS not in output


@case(
    r"features/encoder/r18/digits/noise=0/seed=0/digits would be inside another .*; rename it$",
    also("--set pretrain.recipe.name=small"),
    "demo in",
)
def a_recipe_with_the_name_of_a_task(case: Case) -> None:
    names = "--set corpus.name=encoder --set noise.name=r18 --set pretrain.recipe.name=digits"
    encoder = "--set 'encoders=[{kind: timm, name: r18, model: resnet18}]'"
    case.say(f"plan --noise 0 --seeds 0 {names} {encoder}")


@pytest.mark.parametrize("name", CASES)
def test_a_remedy_works_when_it_is_followed(name: str, tmp_path: Path, run: Run) -> None:
    CASES.check(name, tmp_path, run)
