"""Reads the results of a finished sweep, from a store or by its experiment file.

Takes the name of a store or of an experiment, gives its plan, its store and the tables of its
finished steps. Writes nothing: no report, no registration of claims. For notebooks, and for what
shows two sweeps together.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from analysis.readout import Readout
from jobs.storage.folder import Folder
from orchestrator import STORAGE
from orchestrator.errors import UserError
from orchestrator.experiment import last_sweep, load
from orchestrator.experiment.registered import history
from orchestrator.plan import build
from orchestrator.plan.plan import Plan
from orchestrator.results.tables import FinishedSteps
from orchestrator.store.store import Store


@dataclass(frozen=True)
class Results:
    """A sweep's plan and store, and the tables of its finished steps."""

    plan: Plan
    store: Store
    finished: FinishedSteps
    readout: Readout


def read(
    name: str = STORAGE,
    *,
    storage: str | None = None,
    task_folders: Sequence[str] = (),
    data: str | None = None,
) -> Results:
    """The results of a store's last sweep, or of an experiment.

    `name` is the folder or URI of a store, or else an experiment file or bundled name, whose store
    is `storage` (none: the file's own). `task_folders` and `data` are for an experiment file, as on
    the command line. Raises UserError where there is no such store or file, and where no step is
    finished.
    """
    root = Folder.of(name)
    with Store(root).reading():
        is_store = root.exists("store.json")
    text = last_sweep.recall(root) if is_store else None
    if is_store and text is None:
        raise UserError(
            f"{name} does not remember which experiment it has ({last_sweep.NAME} is missing); "
            f"name the experiment FILE, and the store with --storage"
        )
    if not is_store and not Path(name).is_file() and name not in load.bundled():
        raise UserError(
            f"{name} is neither a store (a folder or bucket with store.json) nor an experiment; "
            f"name one of them"
        )
    overrides = [
        f"{field}={json.dumps(value)}"
        for field, value in (("storage", name if is_store else storage), ("data", data))
        if value is not None
    ]
    source = f"{name}/{last_sweep.NAME}" if is_store else name
    experiment = load.load(source, text=text, overrides=overrides, task_folders=task_folders)
    plan, store = build.build(experiment), Store(Folder.of(experiment.storage))
    with store.reading():
        finished = FinishedSteps(plan, store)
    if not finished.records:
        raise UserError(
            f"{experiment.name} has no finished step in {store.root.uri}; run a sweep first"
        )
    claims = history(store.root, experiment.name)
    return Results(plan, store, finished, finished.readout({}, (), claims))
