"""The sweeps that run on a store now: two that plan one step differently never run at once.

A driver registers its plan before it looks at the store. A living driver that has registered an
equal step with other settings, or that reads a step which the new one wants to do again, stands:
the new one is refused before it has worked. So no driver replaces what another one reads. Drivers
with equal settings share a store freely; for them, `lease.py` decides who does which step.

A registration is the file `.leases/sweeps/<owner>`. It lives as long as its driver's heartbeat. A
driver writes it, then lists the others; if none is against it, it writes once more that it stands.
Two drivers that write at once see each other, withdraw and try again. No clock decides who came
first: a file can become visible later than its time says.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from jobs.features.spec import FeaturesStep
from jobs.storage.folder import Folder
from orchestrator.errors import StoreError
from orchestrator.step.step import Step, differences
from orchestrator.store.lease import Leases, living_files

SWEEPS = ".leases/sweeps"
MARK = 16  # hex digits of a fingerprint that are compared: a plan may have 50,000 steps
TRIES = 8
SHOWN = 3  # differences in the message

Plan = Mapping[str, Any]
"""What a driver registers: the `fingerprints` of its steps, the `fields` of some, its `redo`, and
whether it `stands`: no other plan was against it when it looked."""


def enter(
    root: Folder, leases: Leases, steps: Mapping[str, Step], redo: Collection[str] = ()
) -> None:
    """Register a driver's plan until its leases are closed. `redo`: steps to be done again.

    Raises StoreError, in one sentence, if another living driver's plan stands against it.
    """
    mine: Plan = {
        "fingerprints": {address: _mark(step) for address, step in steps.items()},
        "fields": _some_fields(steps),
        "redo": sorted(redo),
    }
    folder, against = root / SWEEPS, list[tuple[str, bool]]()
    for tried in range(TRIES):
        leases.register(SWEEPS, {**mine, "stands": False})
        living = living_files(root, SWEEPS)
        against = [
            found for name in living - {leases.owner} if (found := _against(folder, name, mine))
        ]
        if leases.owner in living and not against:
            leases.register(SWEEPS, {**mine, "stands": True})
            return
        leases.unregister()
        for why, stands in against:
            if stands:
                raise StoreError(why)
        time.sleep(random.uniform(0.1, 0.5 * (tried + 1)))
    if against:
        raise StoreError(against[0][0])
    raise StoreError(
        f"{folder.uri} cannot be kept up to date, so other sweeps on this store would not know "
        f"of this one; check that you may write to it, and run the same command again"
    )


def _mark(step: Step) -> str:
    """A step's fingerprint, short; of features that are made in part, with these parts.

    A driver that adds parts replaces a manifest that another one reads.
    """
    only = step.spec.only if isinstance(step.spec, FeaturesStep) else None
    return "-".join((step.fingerprint[:MARK], *(only or ())))


def _some_fields(steps: Mapping[str, Step]) -> dict[str, Any]:
    """The fields of every step but cells, and of one cell of each task and method."""
    found: dict[str, Any] = {}
    seen = set()
    for address, step in steps.items():
        alike = step.labels.get("task"), step.labels.get("method")
        if step.kind != "tune" or alike not in seen:
            seen.add(alike)
            found[address] = step.fields
            if isinstance(step.spec, FeaturesStep):
                found[address]["encoded"] = list(step.spec.wanted)
    return found


def _against(folder: Folder, name: str, mine: Plan) -> tuple[str, bool] | None:
    """Why another driver's registration is against this plan and whether it stands, if it is."""
    try:
        theirs = folder.read_json(name)
        why = _difference(theirs, mine)
        return (why, bool(theirs.get("stands", True))) if why else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # it has ended meanwhile


def _difference(theirs: Plan, mine: Plan) -> str:
    """Why two plans must not run at once; empty if they may."""
    who = f"another sweep on this store (process {theirs['pid']} on {theirs['host']})"
    ours, other = mine["fingerprints"], theirs["fingerprints"]
    differ = [a for a, mark in ours.items() if other.get(a, mark) != mark]
    if differ:
        known = [a for a in differ if a in mine["fields"] and a in theirs["fields"]]
        address = (known or differ)[0]
        changes = list(_changes(theirs, mine, address)) if known else []
        what = f" ({'; '.join(changes)})" if changes else ""
        return (
            f"{who} plans {address} with other settings{what}, and its settings stand; wait "
            f"until it has ended, give what you changed a new name, or name another --storage"
        )
    for redone, reader in ((mine["redo"], other), (theirs["redo"], ours)):
        for address in redone:
            if address in reader:
                does = "reads" if redone is mine["redo"] else "does"
                again = ", which is to be done again" if redone is mine["redo"] else " again"
                return f"{who} {does} {address}{again}; wait until it has ended"
    return ""


def _changes(theirs: Plan, mine: Plan, address: str) -> Iterator[str]:
    """The first differences between two drivers' fields of a step, its own before its inputs'."""
    planned = json.loads(json.dumps(mine["fields"][address]))
    found = list(differences(theirs["fields"][address], planned))
    own = [one for one in found if not one.path.startswith("inputs.")]
    yield from (str(one) for one in own[:SHOWN])
    if not own:
        yield from (f"another {one.path.removeprefix('inputs.')}" for one in found[:SHOWN])
