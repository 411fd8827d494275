"""Features of a corpus that tasks only test on, and the parts that are added to them later.

Real plans, stores and executors; the stage that the tests write encodes a part as its name.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from jobs.contract import Hooks, Outcome, Work
from jobs.features.spec import FeaturesStep
from jobs.storage.folder import Folder
from orchestrator.errors import StoreError
from orchestrator.experiment import load
from orchestrator.plan import build
from orchestrator.plan.assess import assess
from orchestrator.plan.counting import samples_of
from orchestrator.plan.plan import Plan
from orchestrator.plan.states import StepState
from orchestrator.run.executor import Executor
from orchestrator.run.progress import Lines
from orchestrator.step.step import KINDS
from orchestrator.store import register
from orchestrator.store.lease import Leases
from orchestrator.store.store import Store

CORPUS = "{name: far, reader: {kind: digits}, parts: {train: 0.5, validation: 0.25, test: 0.25}}"
FAR = "features/digits/symmetric/resnet-small/noise=0/seed=0/far"
RUNS: Counter[str] = Counter()


def stage(works: Sequence[Work], hooks: Hooks) -> None:
    for work in works:
        RUNS[work.address] += 1
        counts = {}
        if isinstance(work.spec, FeaturesStep):
            for part in work.spec.wanted:
                work.output.write_bytes(f"features-{part}.parquet", part.encode())
                counts |= {f"rows_{part}": 100, "dim": 8, "rows_truncated": 1}
        elif work.address.startswith("corpus/"):
            counts = {"rows_train": 900, "rows_validation": 450, "rows_test": 450}
        for folder in work.inputs.values():
            assert folder.exists("manifest.json"), "an input was not committed"
        hooks.done(work.address, Outcome(counts))


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    RUNS.clear()
    head = f"title: Far\ncorpus: {CORPUS}\n"
    (tmp_path / "far.yaml").write_text(f"name: far\ndomain: ood\ntrained_on: digits\n{head}")
    (tmp_path / "near.yaml").write_text(f"name: near\ndomain: id\n{head}")
    return tmp_path


def planned(tasks: Path, *names: str) -> Plan:
    words = [f"tasks=[{', '.join(names)}]", "tuning.fractions=[100]"]
    words.append("tuning.methods={lp: {head: linear, space: {lr: 0.1}}}")
    return build.build(load.load(noise="0", seeds="0", overrides=words, task_folders=[str(tasks)]))


def sweep(plan: Plan, store: Store) -> set[str]:
    """Run what is left; return the addresses of the steps that ran."""
    store.prepare()
    done = [a for a, s in assess(plan, store).items() if s.state is StepState.DONE]
    progress = Lines(dict.fromkeys(KINDS, 99), {}, interval=60)
    stages = dict.fromkeys(KINDS, f"{__name__}:stage")
    before = Counter(RUNS)
    ended = Executor(plan, store, done=done, progress=progress, stages=stages).run()
    assert all(result.state.finished for result in ended.values()), ended
    return set(RUNS - before)


def test_the_training_part_is_added_when_a_task_trains_on_it(tasks: Path) -> None:
    """1,797 images and their views were encoded for 462 that an OOD task tests on."""
    store = Store(Folder.of(tasks / "store"))
    only, both = planned(tasks, "digits", "far"), planned(tasks, "digits", "far", "near")
    assert all(both.steps[a].fingerprint == step.fingerprint for a, step in only.steps.items())
    step = both.steps[FAR]
    assert samples_of(only, [only.steps[FAR]], assess(only, store)) == 449
    sweep(only, store)
    folder = store.output(FAR)
    assert [name for name, _ in folder.files()] == ["features-test.parquet", "manifest.json"]
    tested = folder.stamp("features-test.parquet")

    left = assess(both, store)
    assert left[FAR].state is StepState.MISSING
    assert left[FAR].reason == "has no train and validation part yet"
    cells = [a for a in only.steps if a.startswith("tune/")]
    assert {left[a].state for a in cells} == {StepState.DONE}
    assert samples_of(both, [step], left) == 900 * 3 + 450  # two views
    ran = sweep(both, store)
    assert ran == {FAR} | (both.steps.keys() - only.steps.keys())

    manifest = store.manifest(FAR)
    assert manifest is not None
    assert folder.stamp("features-test.parquet") == tested
    assert manifest.counts == {
        **dict.fromkeys(("rows_train", "rows_validation", "rows_test"), 100),
        "dim": 8,
        "rows_truncated": 2,
    }
    assert sorted(manifest.files) == [
        f"features-{p}.parquet" for p in ("test", "train", "validation")
    ]
    for plan in (only, both):
        assert {found.state for found in assess(plan, store).values()} == {StepState.DONE}
        assert sweep(plan, store) == set()


def test_cells_that_read_the_test_part_are_done_again_when_it_changes(tasks: Path) -> None:
    store = Store(Folder.of(tasks / "store"))
    only, both = planned(tasks, "digits", "far"), planned(tasks, "digits", "far", "near")
    sweep(only, store)
    sweep(both, store)
    manifest = store.manifest(FAR)
    assert manifest is not None
    output = store.begin(both.steps[FAR]).output
    for name in manifest.files:
        output.write_bytes(name, b"another" if "test" in name else b"as before")
    store.commit(both.steps[FAR], Outcome(manifest.counts), {}, manifest.read)
    found = assess(only, store)
    drifted = {a for a, one in found.items() if one.state is StepState.DRIFT}
    assert drifted == {a for a, step in only.steps.items() if FAR in step.inputs.values()}


def test_two_sweeps_at_once_want_the_same_parts(tasks: Path) -> None:
    """One that adds parts would replace the manifest that the other one reads."""
    root = Folder.of(tasks / "store")
    first, second = Leases(root), Leases(root)
    register.enter(root, first, planned(tasks, "digits", "far").steps)
    with pytest.raises(StoreError, match=r'encoded: \["test"\] -> \["train", "validation", "test"'):
        register.enter(root, second, planned(tasks, "digits", "far", "near").steps)
    for leases in (first, second):
        leases.close()
