"""What the sweep last started on a store was of: `status`, `report` and `sync` need not be told.

The composed experiment, a file that `sweep` itself takes: what the command line changed is in it,
its paths are absolute, and a tracking server that is only reached with a password is left out
(the store is read by many; `MLFLOW_TRACKING_URI` names it).
"""

from __future__ import annotations

from typing import Any

from jobs.storage.folder import Folder
from orchestrator.experiment.model import Experiment
from orchestrator.store.provenance import redact

NAME = "last-sweep.yaml"


def remember(experiment: Experiment, root: Folder) -> None:
    """Put the experiment at the store's root, in the place of the one before."""
    uri = experiment.tracking.uri
    changed: dict[str, Any] = {"storage": root.uri}
    if uri and redact(uri) != uri:
        changed["tracking"] = experiment.tracking.model_copy(update={"uri": None})
    everywhere = experiment.with_absolute_paths().model_copy(update=changed)
    root.write_bytes(NAME, written(everywhere).encode())


def recall(root: Folder) -> str | None:
    """The text of that experiment; None on a store that saw no sweep."""
    try:
        return root.read_bytes(NAME).decode()
    except FileNotFoundError:
        return None


def written(experiment: Experiment) -> str:
    """An experiment as YAML, defaults filled in, without passwords and tokens."""
    import yaml

    return redact(yaml.safe_dump(experiment.model_dump(mode="json"), sort_keys=False))
