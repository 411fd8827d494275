"""What the sweep last started on a store was of: `status`, `report` and `sync` need not be told.

The composed experiment, a file that `sweep` itself takes: what the command line changed is in it,
its paths are absolute, and a tracking server that is only reached with a password is left out
(the store is read by many; `MLFLOW_TRACKING_URI` names it).
"""

from __future__ import annotations

from typing import Any

from jobs.storage.folder import Folder
from orchestrator.experiment import Experiment
from orchestrator.provenance import redact

NAME = "last-sweep.yaml"


def remember(experiment: Experiment, root: Folder) -> None:
    """Put the experiment at the store's root, in the place of the one before."""
    from jobs.corpus import build
    from jobs.encoders import digests
    from jobs.noise import files

    uri = experiment.tracking.uri
    changed: dict[str, Any] = {
        "task_folders": tuple(Folder.of(folder).uri for folder in experiment.task_folders),
        "data": experiment.data and Folder.of(experiment.data).uri,
        "storage": root.uri,
        "corpus": experiment.corpus and build.rooted(experiment.corpus),
        "noise": experiment.noise and files.rooted(experiment.noise),
        "encoders": tuple(digests.rooted(encoder) for encoder in experiment.encoders),
    }
    if uri and redact(uri) != uri:
        changed["tracking"] = experiment.tracking.model_copy(update={"uri": None})
    root.write_bytes(NAME, written(experiment.model_copy(update=changed)).encode())


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
