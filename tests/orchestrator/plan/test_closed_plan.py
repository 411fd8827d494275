"""A plan keeps its tasks: task files may change or disappear while a sweep runs."""

import shutil
from pathlib import Path

import pytest

import synthetic
from jobs.storage.folder import Folder
from jobs.tasks.registry import SHIPPED
from orchestrator.errors import UserError
from orchestrator.experiment import load
from orchestrator.plan import build
from orchestrator.plan.plan import Plan
from orchestrator.results import collect
from orchestrator.run import sweep
from orchestrator.store.store import Store


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """A folder with a task of the user's own."""
    folder = tmp_path / "my-tasks"
    folder.mkdir()
    (shipped,) = SHIPPED.rglob("digits-parity.yaml")
    own = shipped.read_text().replace("digits-parity", "own-parity")
    (folder / "own-parity.yaml").write_text(own)
    return folder


def planned(tasks: Path) -> Plan:
    sets = ["tasks=[digits, own-parity]", "tuning.fractions=[100]", "tracking.enabled=false"]
    return build.build(load.load(noise="0", seeds="0", overrides=sets, task_folders=[str(tasks)]))


@pytest.mark.parametrize("change", ["removed", "changed", "broken"])
def test_a_task_file_that_changes_during_a_sweep_costs_no_report(
    change: str, tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("signal.signal", lambda *handler: None)  # this process keeps its own
    made = planned(tasks)
    store = Store(Folder.of(tmp_path / "store"))
    synthetic.fill(made, store)
    before = collect.collect(made, store)
    file = tasks / "own-parity.yaml"
    if change == "removed":
        shutil.rmtree(tasks)
    elif change == "changed":
        file.write_text(file.read_text().replace("own-parity", "another"))
    else:
        file.write_text("name: [")
    with pytest.raises(UserError):
        planned(tasks)  # the file is indeed no longer what the plan was made from
    ending = sweep.run(made, store)
    assert ending.complete
    assert ending.report is not None
    assert ending.report.complete
    after = collect.collect(made, store)
    assert after.question == before.question
    assert "own-parity" in after.question.id_tasks
    assert after.spectra.equals(before.spectra)


def test_a_part_of_a_plan_has_its_tasks(tasks: Path) -> None:
    made = planned(tasks)
    assert [task.name for task in made.tasks] == ["digits", "own-parity"]
    assert made.only("corpus").tasks == made.tasks
