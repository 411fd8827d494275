"""The executor, through real plans and real stores, with stages that the tests write."""

import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from commands import PATIENCE
from jobs.contract import Hooks, Outcome, StageError, Work
from jobs.storage.folder import Folder
from orchestrator.errors import DriftError
from orchestrator.experiment import load
from orchestrator.plan import build
from orchestrator.plan.assess import assess, refuse_drift
from orchestrator.plan.plan import Plan
from orchestrator.plan.states import StepState, StepStatus
from orchestrator.results.tables import FinishedSteps
from orchestrator.run import executor
from orchestrator.run.executor import Executor
from orchestrator.run.progress import Lines
from orchestrator.step.step import KINDS
from orchestrator.store.store import Store

RUNS: Counter[str] = Counter()
TROUBLE: dict[str, list[BaseException]] = {}


def stage(works: Sequence[Work], hooks: Hooks) -> None:
    for work in works:
        RUNS[work.address] += 1
        for folder in work.inputs.values():
            assert folder.exists("manifest.json"), "an input was not committed"
        if TROUBLE.get(work.address):
            hooks.done(work.address, TROUBLE[work.address].pop())
            continue
        work.output.write_bytes("made.txt", work.address.encode())
        hooks.done(work.address, Outcome({"rows": 1}, {"metric": 1.0}))


def silent_stage(works: Sequence[Work], hooks: Hooks) -> None:
    """Reports nothing."""


def slow_stage(works: Sequence[Work], hooks: Hooks) -> None:
    time.sleep(0.3)
    stage(works, hooks)


def lingering_stage(works: Sequence[Work], hooks: Hooks) -> None:
    """Still ends its workers when all steps are reported."""
    stage(works, hooks)
    time.sleep(1)


STAGES = dict.fromkeys(KINDS, f"{__name__}:stage")


@pytest.fixture(autouse=True)
def _clean() -> None:
    RUNS.clear()
    TROUBLE.clear()


@pytest.fixture
def small() -> Plan:
    return build.build(load.load(noise="0,10", seeds="0", overrides=["tuning.fractions=[100]"]))


def execute(small: Plan, root: Path, stages: dict[str, str] = STAGES) -> dict[str, StepStatus]:
    store = Store(Folder.of(root))
    store.prepare()
    done = [a for a, s in assess(small, store).items() if s.state is StepState.DONE]
    progress = Lines(dict.fromkeys(KINDS, 1000), {}, interval=60)
    return Executor(small, store, done=done, progress=progress, stages=stages).run()


def statuses(results: dict[str, StepStatus]) -> Counter[str]:
    return Counter(result.state.value for result in results.values())


def test_every_step_runs_once_after_its_inputs(small: Plan, tmp_path: Path) -> None:
    assert statuses(execute(small, tmp_path)) == {"done": len(small.steps)}
    assert Counter(list(small.steps)) == RUNS


def test_a_finished_step_never_runs_twice(small: Plan, tmp_path: Path) -> None:
    execute(small, tmp_path)
    assert statuses(execute(small, tmp_path)) == {"reused": len(small.steps)}
    assert max(RUNS.values()) == 1


def test_a_failure_blocks_only_the_steps_that_read_it(small: Plan, tmp_path: Path) -> None:
    broken = small.of_kind("pretrain")[0].address
    TROUBLE[broken] = [StageError("the loss is not finite")]
    results = execute(small, tmp_path)
    assert results[broken] == StepStatus(StepState.FAILED, "the loss is not finite")
    blocked = {a for a, r in results.items() if r.state is StepState.BLOCKED}
    assert blocked == {
        s.address
        for s in small.steps.values()
        if s.labels.get("noise") == 0 and s.kind in ("features", "tune")
    }
    assert statuses(execute(small, tmp_path))["done"] == len(blocked) + 1


def test_a_step_is_retried_after_a_failure_that_is_not_its_own(small: Plan, tmp_path: Path) -> None:
    shaky = small.of_kind("features")[0].address
    TROUBLE[shaky] = [ConnectionError("lost")]
    assert statuses(execute(small, tmp_path)) == {"done": len(small.steps)}
    assert RUNS[shaky] == 2


def test_a_step_that_keeps_failing_fails_with_its_reason(small: Plan, tmp_path: Path) -> None:
    shaky = small.of_kind("tune")[0].address
    TROUBLE[shaky] = [ConnectionError("lost")] * 9
    results = execute(small, tmp_path)
    assert results[shaky].reason == "ConnectionError: lost"
    scratch = Store(Folder.of(tmp_path)).scratch(small.steps[shaky])
    assert b"ConnectionError: lost" in scratch.read_bytes("error.txt")


def test_steps_that_a_stage_does_not_report_fail(small: Plan, tmp_path: Path) -> None:
    results = execute(small, tmp_path, {**STAGES, "tune": f"{__name__}:silent_stage"})
    cells = [results[step.address] for step in small.of_kind("tune")]
    assert all(cell.state in (StepState.FAILED, StepState.BLOCKED) for cell in cells)
    assert any("ended without reporting it" in cell.reason for cell in cells)


@pytest.mark.parametrize("failed", [False, True])
def test_no_stage_runs_after_a_run_has_ended(failed: bool, small: Plan, tmp_path: Path) -> None:
    if failed:
        TROUBLE.update({s.address: [StageError("no")] for s in small.of_kind("pretrain")})
    kind = "pretrain" if failed else "tune"
    execute(small, tmp_path, {**STAGES, kind: f"{__name__}:lingering_stage"})
    assert [t.name for t in threading.enumerate() if t.name.startswith("lane-")] == []


def test_two_drivers_on_one_store_share_the_work(small: Plan, tmp_path: Path) -> None:
    stages = {**STAGES, "corpus": f"{__name__}:slow_stage", "pretrain": f"{__name__}:slow_stage"}
    Store(Folder.of(tmp_path)).prepare()
    found: list[dict[str, StepStatus]] = []
    threads = [
        threading.Thread(target=lambda: found.append(execute(small, tmp_path, stages)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counter(list(small.steps)) == RUNS
    assert all(set(statuses(results)) <= {"done", "reused"} for results in found)
    assert len(found) == 2


def test_many_drivers_may_prepare_a_store_at_once(tmp_path: Path) -> None:
    store = Store(Folder.of(tmp_path))
    store.prepare()
    with ThreadPoolExecutor(8) as pool:
        for prepared in [pool.submit(store.prepare) for _ in range(100)]:
            prepared.result()
    assert [path.name for path in tmp_path.iterdir()] == ["store.json"]


def test_an_unfinished_folder_is_redone_from_empty(small: Plan, tmp_path: Path) -> None:
    step = small.of_kind("corpus")[0]
    Store(Folder.of(tmp_path)).output(step.address).write_bytes("half.txt", b"half")
    execute(small, tmp_path)
    manifest = Store(Folder.of(tmp_path)).manifest(step.address)
    assert manifest is not None
    assert set(manifest.files) == {"made.txt"}


def trickling_stage(works: Sequence[Work], hooks: Hooks) -> None:
    for work in works:
        stage([work], hooks)
        time.sleep(0.05)


def counting_stage(works: Sequence[Work], hooks: Hooks) -> None:
    BATCHES.append(len(works))
    stage(works, hooks)


BATCHES: list[int] = []


def test_steps_that_become_ready_one_by_one_go_to_their_stage_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor, "GATHER_SECONDS", PATIENCE)  # however slowly they become ready
    BATCHES.clear()
    many = build.build(load.load(noise="0,1,2,3,4,5", seeds="0", overrides=["tasks=[digits]"]))
    stages = {**STAGES, "noise": f"{__name__}:trickling_stage"}
    execute(many, tmp_path, {**stages, "pretrain": f"{__name__}:counting_stage"})
    assert BATCHES == [6]


def test_turns_are_limited_so_two_drivers_share_many_cells(
    small: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor, "TURN", 5)
    BATCHES.clear()
    stages = {**STAGES, "tune": f"{__name__}:counting_stage"}
    assert statuses(execute(small, tmp_path, stages)) == {"done": len(small.steps)}
    assert max(BATCHES) == 5
    assert sum(BATCHES) == len(small.of_kind("tune"))


def test_a_driver_leaves_an_index_of_what_it_committed(
    small: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute(small, tmp_path)

    def refuse(self: Store, address: str) -> None:
        raise AssertionError(f"the manifest of {address} was opened")

    monkeypatch.setattr(Store, "manifest", refuse)
    found = assess(small, Store(Folder.of(tmp_path)))
    assert {assessment.state for assessment in found.values()} == {StepState.DONE}


def test_all_later_steps_are_blocked_and_each_counts_once(small: Plan, tmp_path: Path) -> None:
    TROUBLE["corpus/digits"] = [StageError("no such file")]
    results = execute(small, tmp_path)
    assert statuses(results) == {"failed": 1, "blocked": len(small.steps) - 1}


IMPORTS: list[str] = []
SLOW_MODULE = """
import time
from test_executor_imports import IMPORTS, stage

IMPORTS.append("begin")
time.sleep(0.3)
IMPORTS.append("end")
"""


def test_no_two_lanes_import_their_stages_at_once(
    small: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two threads that import torch at once can end the driver."""
    monkeypatch.setitem(sys.modules, "test_executor_imports", sys.modules[__name__])
    monkeypatch.syspath_prepend(str(tmp_path))
    threads = []
    IMPORTS.clear()
    for name in ("first", "second"):
        (tmp_path / f"slow_{name}.py").write_text(SLOW_MODULE)
        stages = {**STAGES, "corpus": f"slow_{name}:stage"}
        threads.append(threading.Thread(target=execute, args=(small, tmp_path / name, stages)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert IMPORTS == ["begin", "end", "begin", "end"]


# -- done again, and done otherwise meanwhile ------------------------------------------------------


SALT = ""


def salted_stage(works: Sequence[Work], hooks: Hooks) -> None:
    """A stage whose results differ from one sweep to the next, as on some GPUs."""
    for work in works:
        RUNS[work.address] += 1
        work.output.write_bytes("made.txt", f"{work.address} {SALT}".encode())
        hooks.done(work.address, Outcome({"rows": 1}, {"metric": 1.0}))


def again(
    made: Plan, root: Path, redo: set[str], stages: dict[str, str] = STAGES
) -> dict[str, StepStatus]:
    store = Store(Folder.of(root))
    progress = Lines(dict.fromkeys(KINDS, 1000), {}, interval=60)
    done = [a for a, s in assess(made, store).items() if s.state is StepState.DONE]
    return Executor(made, store, done=done, progress=progress, redo=redo, stages=stages).run()


@pytest.mark.parametrize("kind", ["corpus", "noise", "pretrain", "features", "tune"])
def test_a_step_that_is_done_again_with_the_same_result_keeps_its_readers(
    kind: str, small: Plan, tmp_path: Path
) -> None:
    execute(small, tmp_path)
    RUNS.clear()
    redo = {small.of_kind(kind)[0].address}
    results = again(small, tmp_path, redo)
    assert set(RUNS) == redo
    assert {a for a, r in results.items() if r.state is StepState.DONE} == redo
    assert all(result.state.finished for result in results.values())


@pytest.mark.parametrize("kind", ["corpus", "noise", "pretrain", "features", "tune"])
def test_a_step_that_is_done_again_with_another_result_takes_its_readers_with_it(
    kind: str, small: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    salted = dict.fromkeys(KINDS, f"{__name__}:salted_stage")
    execute(small, tmp_path, salted)
    RUNS.clear()
    monkeypatch.setattr(sys.modules[__name__], "SALT", "other")
    redo = {small.of_kind(kind)[-1].address}
    results = again(small, tmp_path, redo, salted)
    assert set(RUNS) == small.readers(redo)
    assert max(RUNS.values()) == 1
    assert {a for a, r in results.items() if r.state is StepState.DONE} == small.readers(redo)


def other_settings(made: Plan) -> Plan:
    settings = ["tuning.fractions=[100]", "pretrain.recipe.schedule.epochs=7"]
    return build.build(load.load(noise="0,10", seeds="0", overrides=settings))


def test_what_another_sweep_has_done_with_other_settings_meanwhile_is_not_replaced(
    small: Plan, tmp_path: Path
) -> None:
    other = other_settings(small)
    execute(other, tmp_path)
    RUNS.clear()
    store = Store(Folder.of(tmp_path))
    done = [step.address for kind in ("corpus", "noise") for step in small.of_kind(kind)]
    progress = Lines(dict.fromkeys(KINDS, 1000), {}, interval=60)
    # As planned before the other sweep had done its first run.
    results = Executor(small, store, done=done, progress=progress, stages=STAGES).run()
    first = results[small.of_kind("pretrain")[0].address]
    assert first.state is StepState.FAILED
    assert "with other settings (recipe.schedule.epochs: 7 -> 15), and those stand" in first.reason
    assert not RUNS
    assert {s.state for s in assess(other, store).values()} == {StepState.DONE}


def test_an_input_that_was_done_otherwise_meanwhile_is_not_read(
    small: Plan, tmp_path: Path
) -> None:
    execute(other_settings(small), tmp_path)
    RUNS.clear()
    store = Store(Folder.of(tmp_path))
    done = [s.address for s in small.steps.values() if s.kind != "features" and s.kind != "tune"]
    for step in (*small.of_kind("features"), *small.of_kind("tune")):
        store.output(step.address).delete()
    progress = Lines(dict.fromkeys(KINDS, 1000), {}, interval=60)
    results = Executor(small, store, done=done, progress=progress, stages=STAGES).run()
    read = small.of_kind("features")[0]
    assert results[read.address].state is StepState.FAILED
    assert results[read.address].reason.startswith(
        f"{read.inputs['encoder']} was done again with other settings meanwhile"
    )
    assert not any(address.startswith(("features", "tune")) for address in RUNS)


def test_an_input_that_was_removed_meanwhile_is_said(small: Plan, tmp_path: Path) -> None:
    execute(small, tmp_path)
    store = Store(Folder.of(tmp_path))
    read = small.of_kind("features")[0]
    for address in (read.address, read.inputs["encoder"]):
        store.output(address).delete()
    done = [a for a in small.steps if a != read.address]
    progress = Lines(dict.fromkeys(KINDS, 1000), {}, interval=60)
    results = Executor(small, store, done=done, progress=progress, stages=STAGES).run()
    assert results[read.address].state is StepState.FAILED
    assert results[read.address].reason.startswith(
        f"{read.inputs['encoder']} is not finished any more"
    )


def test_readers_of_a_step_that_was_done_again_elsewhere_are_drift_and_redone_by_force(
    small: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after `corpus build --redo`, whose plan has no readers, or an interrupted sweep."""
    salted = dict.fromkeys(KINDS, f"{__name__}:salted_stage")
    execute(small, tmp_path, salted)
    RUNS.clear()
    monkeypatch.setattr(sys.modules[__name__], "SALT", "other")
    corpora = small.only("corpus")
    again(corpora, tmp_path, {"corpus/digits"}, salted)
    store = Store(Folder.of(tmp_path))
    found = assess(small, store)
    outdated = {a for a, s in found.items() if s.outdated == "corpus/digits"}
    assert outdated == {
        s.address for s in small.steps.values() if "corpus/digits" in s.inputs.values()
    }
    drifted = {a for a, s in found.items() if s.state is StepState.DRIFT}
    assert drifted == small.readers({"corpus/digits"}) - {"corpus/digits"}
    assert set(FinishedSteps(small, store).records) == small.steps.keys() - drifted
    reason = "read other files of corpus/digits than it has now"
    assert {found[a].reason for a in outdated} == {reason}
    more = f"{len(drifted) - len(outdated)} more read one of these"
    with pytest.raises(DriftError, match=f"(?s){reason}.*{more}.*Redo these steps with --force"):
        refuse_drift(found)
    RUNS.clear()
    results = again(small, tmp_path, outdated, salted)
    assert set(RUNS) == small.readers(outdated)
    assert all(result.state.finished for result in results.values())
    assert {s.state for s in assess(small, store).values()} == {StepState.DONE}


def measured_stage(works: Sequence[Work], hooks: Hooks) -> None:
    """Each work of a turn takes 0.02 seconds, and waits for those before it."""
    for work in works:
        time.sleep(0.02)
        hooks.done(work.address, Outcome(seconds=0.02))


def test_a_manifest_has_the_seconds_of_the_work_and_not_of_the_waiting(
    small: Plan, tmp_path: Path
) -> None:
    execute(small, tmp_path, {**STAGES, "tune": f"{__name__}:measured_stage"})
    store = Store(Folder.of(tmp_path))
    found = [store.manifest(step.address) for step in small.of_kind("tune")]
    assert len(found) > 10
    assert {one.provenance["seconds"] for one in found if one} == {0.02}
