"""The experiment that was last started on a store: the default of `status`, `report` and `sync`.

It is a complete experiment file, which `sweep` accepts too. It has the changes of the command line
and absolute paths. A tracking server with a password in its URI is left out, because many read
the store (`MLFLOW_TRACKING_URI` names such a server).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jobs.extensions.spec import SUFFIX
from jobs.storage.folder import Folder
from orchestrator.errors import StoreError
from orchestrator.experiment import shares
from orchestrator.experiment.model import Experiment
from orchestrator.store.provenance import redact

NAME = "last-sweep.yaml"
REMEDY = f"name the experiment file in the command, or delete {NAME} and run the sweep again"


def remember(experiment: Experiment, root: Folder) -> None:
    """Write the experiment at the store's root; replaces the previous one. May raise StoreError."""
    uri = experiment.tracking.uri
    files = [str(Path(e).absolute()) if e.endswith(SUFFIX) else e for e in experiment.extensions]
    changed: dict[str, Any] = {"storage": root.uri, "extensions": tuple(files)}
    if uri and redact(uri) != uri:
        changed["tracking"] = experiment.tracking.model_copy(update={"uri": None})
    everywhere = experiment.with_absolute_paths().model_copy(update=changed)
    try:
        root.write_bytes(NAME, as_yaml(everywhere).encode())
    except OSError as error:
        raise StoreError(
            f"{(root / NAME).uri} cannot be written ({error.strerror or error}); delete it, or "
            f"check that you may write there"
        ) from error


def recall(root: Folder) -> str | None:
    """The text of that experiment; None for a store without a sweep. StoreError if it is none."""
    try:
        return root.read_bytes(NAME).decode()
    except FileNotFoundError:
        return None
    except (IsADirectoryError, UnicodeDecodeError) as error:
        what = "a folder" if isinstance(error, OSError) else "not a text"
        raise StoreError(f"{(root / NAME).uri} is {what}; {REMEDY}") from None


def as_yaml(experiment: Experiment) -> str:
    """An experiment as YAML, defaults filled in, without passwords and tokens."""
    import yaml

    fields = shares.as_percent(experiment.model_dump(mode="json"))
    return redact(yaml.safe_dump(fields, sort_keys=False))
