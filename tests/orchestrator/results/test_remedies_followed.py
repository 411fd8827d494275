"""What a message about reports and comparisons tells its user to do works when it is done."""

import shutil
from pathlib import Path

import pyarrow as pa
import pytest
from markupsafe import Markup

from commands import Run
from followed import SMALL, Case, Cases, also, put, say
from orchestrator.errors import UserError
from orchestrator.results.derived import refuse_counted_twice

CASES = Cases()
case = CASES.case
PAGE = "comparison/comparison.html\n"
RUN = "pretrain/digits/symmetric/resnet-small/noise"


def two(case: Case) -> None:
    """Two sweeps, a and b, that can be compared."""
    case.store("a")
    case.store("b", "tuning.epochs=9")


@case(r"are for the report of one sweep; leave them out", say("report a b"), PAGE)
def tables_of_two_sweeps(case: Case) -> None:
    two(case)
    case.say("report a b --tex")


@case(r"are the same sweep; name two", say("report a b"), PAGE)
def a_sweep_beside_itself(case: Case) -> None:
    two(case)
    case.say("report a a")


@case(
    r"\(last-sweep\.yaml is missing\); name the experiment FILE, and the store with --storage",
    say("report small.yaml b --storage a"),
    PAGE,
)
def a_store_that_forgot_its_sweep(case: Case) -> None:
    two(case)
    shutil.move(case.folder / "a/last-sweep.yaml", case.folder / "small.yaml")
    case.say("report a b")


@case(r"is neither a store .* nor an experiment; name one of them", say("report a b"), PAGE)
def a_folder_that_is_no_store(case: Case) -> None:
    two(case)
    case.write("c/f")
    case.say("report c b")


@case(
    r"has no finished step in \S+/a; run a sweep first",
    lambda case, found: case.store("a") and None,
    PAGE,
)
def a_sweep_that_has_not_run(case: Case) -> None:
    store = case.store("b")
    shutil.copy(store.root.local_path() / "last-sweep.yaml", case.folder / "small.yaml")
    case.say("report small.yaml b --storage a")


@case(r"no task in common .*; name two sweeps that share a task", say("report a b"), PAGE)
def two_sweeps_of_other_tasks(case: Case) -> None:
    two(case)
    case.store("c", "tasks=[digits-parity]")
    case.say("report a c")


@case(r"level in common on digits; name two sweeps that share both", say("report a b"), PAGE)
def two_sweeps_of_other_methods(case: Case) -> None:
    two(case)
    case.store("c", "tuning.methods={mlp: {head: paper, space: {lr: 0.01}}}")
    case.say("report a c")


@case(r"has no finished cell .*; sweep it to the end", lambda c, _: c.store("c") and None, PAGE)
def a_sweep_that_was_stopped(case: Case) -> None:
    two(case)
    case.store("c")
    shutil.rmtree(case.folder / "c/tune")
    case.say("report a c")


@case(r"has no finished step; run a sweep first", lambda c, _: c.store() and None, "report.html")
def a_report_before_a_sweep(case: Case) -> None:
    sets = " ".join(f"--set '{one}'" for one in SMALL)
    case.say(f"report --noise 0,10 --seeds 0 {sets}")


@case(
    r"--out f/x cannot be written .*; name another folder", say("report --out o"), "o/report.html"
)
def a_report_that_cannot_be_copied(case: Case) -> None:
    case.store()
    case.write("f")
    case.say("report --out f/x")


@case(r"did you mean (?P<meant>\S+?=0)( or .*)?\?", put(1), "differ only in noise")
def a_mistyped_address(case: Case) -> None:
    case.store()
    case.say(f"diff {RUN.replace('small', 'smal')}=0 {RUN}=10")


@case(r"name another with (?P<meant>--storage)", also("{meant} a"), "differ only in noise")
def addresses_of_another_store(case: Case) -> None:
    case.store("a")
    case.say(f"diff {RUN}=0 {RUN}=10")


@case(
    r"no step in common; name two steps of a kind",
    say(f"diff {RUN}=0/seed=0 {RUN}=10/seed=0"),
    "differ only in noise",
)
def folders_of_other_kinds(case: Case) -> None:
    case.store()
    case.say("diff corpus pretrain")


CASES["folders_of_other_kinds, as folders"] = (
    folders_of_other_kinds,
    r"or two folders with the same steps below them",
    say(f"diff {RUN}=0 {RUN}=10"),
    "differ only in noise",
)


@pytest.mark.parametrize("way", ["take one out", "correct where its data comes from"])
def test_a_test_that_is_counted_twice_is_taken_out_or_corrected(way: str) -> None:
    columns = {"domain": "id", "trained_on": None, "method": "lp", "test_digest": "d"}
    one, two = ({**columns, "task": task} for task in ("svhn", "patches"))

    def checked(*rows: dict[str, str | None]) -> None:
        table = pa.Table.from_pylist(list(rows))
        refuse_counted_twice(table, [0.0] * len(rows), [0] * len(rows))

    with pytest.raises(UserError, match=rf"an average counts a task once; .*{way}"):
        checked(one, two)
    checked(*([one] if way == "take one out" else [one, {**two, "test_digest": "e"}]))


@pytest.mark.parametrize("name", CASES)
def test_a_remedy_works_when_it_is_followed(
    name: str, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("analysis.report.side_by_side._figures", lambda _: [Markup()] * 2)
    CASES.check(name, tmp_path, run)
