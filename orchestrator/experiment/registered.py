"""The claims that each experiment registered on a store, and every later change.

`registered-claims/<experiment>/` holds one small file for each entry, numbered from 1. Entries are
only ever added: no option of any command and no other experiment removes or replaces one. Two
drivers that add at once both keep theirs, because a file's name has a digest of its content.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import asdict

from analysis.registration import Registration
from jobs import records
from jobs.storage.folder import Folder
from orchestrator.errors import StoreError
from orchestrator.experiment.model import Experiment
from orchestrator.store import provenance

FOLDER = "registered-claims"
REMEDY = "put the file back from a copy, or delete it, which loses this part of the claims' history"
_NAME = re.compile(r"\d{4,}-[0-9a-f]{8}\.json")


def history(root: Folder, name: str) -> list[Registration]:
    """The entries of an experiment, oldest first. StoreError if one is broken."""
    folder = root / FOLDER / name
    try:
        names = [file for file, _ in folder.files() if _NAME.fullmatch(file)]
        return [_entry(folder, file) for file in names]
    except records.RecordError as error:
        raise StoreError(str(error)) from None
    except OSError as error:
        raise StoreError(
            f"{folder.uri} cannot be read ({error}); check that it is reachable and readable"
        ) from error


def _entry(folder: Folder, file: str) -> Registration:
    found = records.read(folder, file, Registration, REMEDY)
    if _digest(found) != file.removesuffix(".json").partition("-")[2]:
        raise records.RecordError(
            f"{(folder / file).uri} cannot be used (it has changed since it was written); {REMEDY}"
        )
    return found


def _digest(entry: Registration) -> str:
    """What stands in the name of an entry's file."""
    return hashlib.sha256(json.dumps(asdict(entry)).encode()).hexdigest()[:8]


def is_new(experiment: Experiment, found: list[Registration]) -> bool:
    """Whether the experiment names other claims than the last entry."""
    last = found[-1].claims if found else None
    return set(last or ()) != set(experiment.claims or ())


def planned(experiment: Experiment, finished: int) -> Registration:
    """The entry of the experiment's claims, made now. `finished`: its steps that are finished."""
    claims = None if experiment.claims is None else list(experiment.claims)
    return Registration(claims, provenance.now(), finished)


def register(
    experiment: Experiment, root: Folder, finished: Callable[[], int]
) -> list[Registration]:
    """Add an entry if the experiment's claims have changed. Returns all entries.

    `finished` counts the experiment's steps that are finished, with any settings. Raises
    StoreError.
    """
    found = history(root, experiment.name)
    if not is_new(experiment, found):
        return found
    entry = planned(experiment, finished())
    folder = root / FOLDER / experiment.name
    try:
        folder.write_json(f"{len(found) + 1:04d}-{_digest(entry)}.json", asdict(entry))
    except OSError as error:
        raise StoreError(
            f"{folder.uri} cannot be written ({error.strerror or error}), so no claim can be "
            f"registered; check that you may write there"
        ) from error
    return [*found, entry]
