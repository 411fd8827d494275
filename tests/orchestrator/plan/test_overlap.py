"""What a plan compares, what waits for it, and what `overlap` changes in a step's identity."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from jobs.contract import Hooks, Outcome, StageError, Work
from jobs.storage.folder import Folder
from orchestrator.experiment import load
from orchestrator.plan import build
from orchestrator.plan.assess import look
from orchestrator.plan.plan import Plan
from orchestrator.plan.states import StepState
from orchestrator.run.executor import Executor
from orchestrator.run.progress import Lines
from orchestrator.step.step import KINDS
from orchestrator.store.store import Store

REFUSED: set[str] = set()
BEGUN: list[str] = []
ID, ROTATED, BLURRED = (
    f"overlap/pretrain/digits/{task}/limit=1"
    for task in ("digits", "digits-rotated", "digits-blurred")
)


def stage(works: Sequence[Work], hooks: Hooks) -> None:
    for work in works:
        BEGUN.append(work.address)
        refused = StageError("test images are trained on")
        hooks.done(work.address, refused if work.address in REFUSED else Outcome())


def planned(*overrides: str) -> Plan:
    tasks = "tasks=[digits, digits-rotated, digits-blurred]"
    small = [tasks, "tuning.fractions=[100]", *overrides]
    return build.build(load.load(noise="0", seeds="0", overrides=small))


def execute(plan: Plan, root: Path, *refused: str) -> dict[str, StepState]:
    BEGUN.clear()
    REFUSED.clear()
    REFUSED.update(refused)
    store = Store(Folder.of(root))
    store.prepare()
    stages = dict.fromkeys(KINDS, f"{__name__}:stage")
    progress = Lines(dict.fromkeys(KINDS, 100), {}, interval=60)
    results = Executor(plan, store, done=(), progress=progress, stages=stages).run()
    shown = look(plan, store)  # as `status` tells it afterwards
    assert {a: s.state for a, s in shown.items()} == {a: s.state for a, s in results.items()}
    return {address: status.state for address, status in results.items()}


def of_task(plan: Plan, task: str) -> set[str]:
    return {s.address for s in plan.of_kind("tune") if s.labels["task"] == task}


def test_each_task_is_compared_with_what_its_cells_are_trained_on() -> None:
    plan = planned("encoders=[{name: mine, kind: timm, model: resnet18}]")
    compared = {s.address: dict(s.inputs) for s in plan.of_kind("overlap")}
    hashes = "hashes/digits"
    assert compared[ROTATED] == {"test": hashes, "training": hashes, "pretraining": hashes}
    assert compared["overlap/encoder/digits-rotated/limit=1"] == {
        "test": hashes,
        "training": hashes,
    }
    assert len(plan.of_kind("hashes")) == 1
    for cell in plan.of_kind("tune"):
        of = "encoder" if "encoder" in cell.labels else "pretrain/digits"
        assert cell.after == (f"overlap/{of}/{cell.labels['task']}/limit=1",)


def test_a_refused_task_is_blocked_alone(tmp_path: Path) -> None:
    plan = planned()
    found = execute(plan, tmp_path, ROTATED)
    features = {s.address for s in plan.of_kind("features") if "rotated" in s.address}
    blocked = {address for address, state in found.items() if state is StepState.BLOCKED}
    assert blocked == of_task(plan, "digits-rotated") | features
    assert found[ROTATED] is StepState.FAILED
    trained = next(address for address in BEGUN if address.startswith("pretrain/"))
    assert {ID, ROTATED, BLURRED} <= set(BEGUN[: BEGUN.index(trained)])


def test_nothing_is_trained_or_encoded_when_every_task_is_refused(tmp_path: Path) -> None:
    execute(planned(), tmp_path, ID, ROTATED, BLURRED)
    assert {address.partition("/")[0] for address in BEGUN} == {
        "corpus",
        "hashes",
        "overlap",
        "noise",
    }


@pytest.mark.parametrize("choice", ["allow", "drop"])
def test_only_drop_changes_the_identity_of_cells(choice: str) -> None:
    refuse, other = planned().steps, planned(f"overlap={choice}").steps
    changed = {
        address
        for address, step in other.items()
        if address in refuse and refuse[address].fingerprint != step.fingerprint
    }
    cells = {address for address in other if address.startswith("tune/")}
    assert changed == (cells if choice == "drop" else set())
    assert "overlap/pretrain/digits/digits/limit=100" in other
    assert {len(step.after) for a, step in other.items() if a in cells} == {1}


def test_given_features_are_not_compared(tmp_path: Path) -> None:
    import pyarrow as pa

    rows = {"key": list("abcdef"), "vector": [[0.0, 1.0]] * 6, "label": [0, 1] * 3}
    Folder.of(tmp_path).write_table("given.parquet", pa.table(rows))
    given = f"encoders=[{{name: api, kind: features, files: {{digits: {tmp_path}/given.parquet}}}}]"
    plan = build.build(
        load.load(
            noise="0", seeds="0", overrides=[given, "tasks=[digits]", "tuning.fractions=[100]"]
        )
    )
    cells = [s for s in plan.of_kind("tune") if s.labels.get("encoder") == "api"]
    assert cells
    assert {cell.after for cell in cells} == {()}
