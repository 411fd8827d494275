"""Promises of `nml-orch report A B`: averages of two sweeps, and a difference paired by seed."""

import csv
import re
from pathlib import Path

import pytest
from scipy import stats

import synthetic
from commands import Run
from jobs.storage.folder import Folder
from orchestrator.experiment import last_sweep, load
from orchestrator.plan import build
from orchestrator.results.read import read
from orchestrator.store.store import Store

METHODS = (
    "tuning.methods={lp: {head: linear, space: {lr: 0.01}}, mlp: {head: paper, space: {lr: 0.01}}}"
)


def finished(folder: Path, *overrides: str, noise: str = "0,20", seeds: str = "0,1,2") -> None:
    """A store as a sweep would leave it."""
    given = ["tuning.fractions=[100]", METHODS, *overrides]
    experiment = load.load(noise=noise, seeds=seeds, overrides=given)
    store = Store(Folder.of(folder))
    synthetic.fill(build.build(experiment), store)
    last_sweep.remember(experiment, store.root)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two stores, a and b. b has another recipe, one task less, a level and a replicate more."""
    folder = tmp_path_factory.mktemp("two")
    finished(folder / "a", "tasks=[digits, digits-parity, digits-rotated]", "claims=[sve-moves]")
    other = ("tasks=[digits, digits-rotated]", "pretrain.recipe.name=longer", "tuning.epochs=9")
    finished(folder / "b", *other, noise="0,20,30", seeds="0,1,2,3")
    return folder


def files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def page(folder: Path, run: Run) -> str:
    before = files(folder)
    code, output = run(folder, "report", "a", "b")
    assert code == 0, output
    assert output.endswith("comparison/comparison.html\n")
    made = {"comparison.html", "comparison.csv"}
    assert {path.name for path in files(folder) - before} == made  # and the stores stay as they are
    return (folder / "comparison/comparison.html").read_text()


def scores(folder: Path, store: str, level: float) -> dict[int, float]:
    """Seed -> LP's mean over the ID tasks that both have: digits."""
    rows = read(str(folder / store)).readout.cells.to_pylist()
    return {
        row["pretrain_seed"]: row["test_metric"]
        for row in rows
        if (row["task"], row["method"], row["noise"]) == ("digits", "lp", level)
    }


@pytest.mark.usefixtures("page")
def test_means_are_of_shared_tasks_and_differences_are_paired_by_seed(folder: Path) -> None:
    with (folder / "comparison/comparison.csv").open() as file:
        rows = {(r["domain"], r["method"], float(r["noise"])): r for r in csv.DictReader(file)}
    row = rows["id", "lp", 20.0]
    ours, theirs = scores(folder, "a", 20.0), scores(folder, "b", 20.0)
    assert float(row["mean_a"]) == pytest.approx(sum(ours.values()) / 3)
    assert float(row["mean_b"]) == pytest.approx(sum(theirs.values()) / 4)
    paired = [theirs[seed] - ours[seed] for seed in ours]
    expected = stats.ttest_1samp(paired, 0).confidence_interval(0.95)
    assert float(row["difference"]) == pytest.approx(sum(paired) / 3)
    assert float(row["difference_low"]) == pytest.approx(expected.low)
    assert float(row["difference_high"]) == pytest.approx(expected.high)
    assert (row["seeds_a"], row["seeds_b"], row["paired_seeds"]) == ("3", "4", "3")
    alone = rows["id", "lp", 30.0]
    assert (alone["mean_a"], alone["difference"]) == ("", "")


def test_the_page_has_both_answers_claims_and_every_differing_field(page: str) -> None:
    assert len(re.findall('class="answer">Against clean pre-training', page)) == 2
    assert "left out: digits-parity" in page
    for field, first, second in (
        ("pretrain.recipe.name", "resnet-small", "longer"),
        ("tuning.epochs", "8", "9"),
        ("noise.levels", "[0.0, 20.0]", "[0.0, 20.0, 30.0]"),
    ):
        cells = re.compile(f"<td>{re.escape(field)}</td>\\s*<td>{re.escape(first)}</td>\\s*<td>")
        found = cells.search(page)
        assert found, field
        assert page[found.end() :].startswith(second)
    assert "SVE of in-domain features rises with noise" in page
    assert not re.search(r'(?:src|href)="(?!#)', page)  # it loads nothing


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("a", "a"), "are the same sweep"),
        (("a", "nowhere"), "nowhere is neither a store"),
        (("a", "c"), "no task in common"),
        (("a", "forgetful"), "does not remember which experiment it has"),
        (("a", "b", "--tex"), "leave them out"),
        (("a", "b", "--out", "a/store.json/x"), "cannot be written"),
        (("a", "b", "c"), "one FILE"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence(
    words: tuple[str, ...], complaint: str, folder: Path, run: Run
) -> None:
    if "c" in words and not (folder / "c").exists():
        finished(folder / "c", "tasks=[digits-magnitude]")
    if "forgetful" in words:
        Store(Folder.of(folder / "forgetful")).prepare()
    code, output = run(folder, "report", *words)
    assert code == 2, output
    assert complaint in output.splitlines()[-1]
