"""Keeping MLflow up to the store: while a sweep runs, and afterwards (`nml-orch sync`).

The store is the truth; whatever MLflow lacks is told again from it. Mirroring happens on a thread
of the driver and under a lease; a tracking server that is slow or gone costs the sweep one line on
the screen and nothing else, is asked again while the sweep runs, and is told what it missed. The
cells of one encoder and method are one run (`runs.py`), told when the last of them is committed;
what is incomplete when the sweep ends is told then.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from orchestrator.errors import NmlError, TrackingError
from orchestrator.plan.plan import Plan
from orchestrator.step.address import TrackingAddress
from orchestrator.step.step import Step
from orchestrator.store.lease import Leases
from orchestrator.store.manifest import Manifest
from orchestrator.store.provenance import redact
from orchestrator.store.store import Store
from orchestrator.tracking import mlflow
from orchestrator.tracking.mlflow import Mirror, SweepRecord
from orchestrator.tracking.runs import Group, Showing, group_of, groups

AGAIN_SECONDS = 15.0  # between two looks at a server that does not answer


class Tracker:
    """Mirrors a sweep while it runs. Never raises, never blocks the sweep for long."""

    def __init__(
        self, plan: Plan, store: Store, uri: str, *, say: Callable[[str], None] = lambda line: None
    ) -> None:
        self._plan, self._store, self._say = plan, store, say
        self.uri = uri
        self._leases = Leases(store.root)
        self._lease = str(TrackingAddress(plan.experiment.name))
        self._queue: queue.Queue[tuple[Step, Manifest] | None] = queue.Queue()
        self._mirror: Mirror | None = None
        self._showing = Showing(plan, store)
        self._groups = groups(plan)
        self._finished: dict[str, dict[str, str]] = {}  # group -> finished cell -> when
        self._untold: dict[str, tuple[Step, Manifest] | Group] = {}  # committed, not yet mirrored
        self.down = ""  # why MLflow does not answer, while it does not
        self._asked = 0.0  # when it did not answer last
        self._thread = threading.Thread(target=self._follow, daemon=True, name="tracking")
        self._thread.start()

    def commit(self, step: Step, manifest: Manifest) -> None:
        """Have a committed step mirrored soon."""
        self._queue.put((step, manifest))

    def close(self, record: SweepRecord | None) -> bool:
        """Mirror what is left and the sweep itself; whether MLflow now shows everything."""
        self._queue.put(None)
        self._thread.join()
        try:
            if record is None:
                return not self.down
            mirror = self._open()
            if mirror is None:
                return False
            reconcile(self._plan, self._store, mirror)
            mirror.sweep(record)
            self.down = ""
            return True
        except Exception as error:  # whatever the client raises, the sweep's results stand
            self._lost(error)
            return False
        finally:
            with suppress(OSError):
                self._leases.close()

    def _follow(self) -> None:
        while True:
            with suppress(queue.Empty):
                item = self._queue.get(timeout=AGAIN_SECONDS if self.down else None)
                if item is None:
                    return  # `close` tells what is left
                self._note(*item)
            if self.down and time.monotonic() - self._asked < AGAIN_SECONDS:
                continue
            try:
                self._catch_up()
            except Exception as error:  # as above
                self._lost(error)

    def _note(self, step: Step, manifest: Manifest) -> None:
        """Remember a committed step until MLflow has it; cells, once their group is whole."""
        if step.kind != "tune":
            self._untold[step.address] = step, manifest
            return
        group = self._groups[group_of(self._plan, step)]
        times = self._finished.setdefault(group.address, {})
        times[step.address] = str(manifest.provenance["finished"])
        if len(times) == len(group.cells):
            self._untold[group.address] = group

    def _catch_up(self) -> None:
        """Tell MLflow everything that it has not been told, oldest first."""
        mirror = self._open()
        if mirror is None:
            return
        for address, untold in list(self._untold.items()):
            if isinstance(untold, Group):
                times = self._finished[address]
                if not mirror.holds(address, untold.fingerprint(times)):
                    mirror.child(self._showing.cells(untold, self._showing.rows(times), times))
                del self._finished[address]
            elif not mirror.holds(address, untold[0].fingerprint):
                mirror.child(self._showing.step(*untold))
            del self._untold[address]
        if self.down:
            self.down = ""
            self._say(f"MLflow at {redact(self.uri)} answers again and was told what it missed")

    def _open(self) -> Mirror | None:
        """The mirror, if this driver holds the right to write to it."""
        if not self._leases.holds(self._lease):
            self._mirror = None
            if not self._leases.acquire(self._lease):
                return None
        if self._mirror is None:
            mirror = Mirror(self.uri, self._plan.experiment.name, self._store.identity)
            mirror.open()
            self._mirror = mirror
        return self._mirror

    def _lost(self, error: Exception) -> None:
        self._mirror = None
        self._asked = time.monotonic()
        if not self.down:
            self.down = mlflow.reason(error)
            self._say(
                f"{mlflow.story(error, self.uri)}; the sweep goes on and asks it again, and "
                f"after the sweep `nml-orch sync` fills the gap"
            )


def sync(plan: Plan, store: Store, uri: str, record: SweepRecord) -> int:
    """Bring MLflow up to the store; how many steps were missing. Raises TrackingError."""
    leases = Leases(store.root)
    try:
        if not leases.acquire(str(TrackingAddress(plan.experiment.name))):
            raise TrackingError("a running sweep is mirroring this store; sync when it has ended")
        mirror = Mirror(uri, plan.experiment.name, store.identity)
        mirror.open()
        mirrored = reconcile(plan, store, mirror)
        mirror.sweep(record)
        return mirrored
    except NmlError:
        raise
    except Exception as error:
        remedy = {
            "unreachable": "start it, or set MLFLOW_TRACKING_URI or --set tracking.uri=URI",
            "refused": "the store is whole; name another server or experiment to have it shown",
            "no driver": "install that driver, or name another server; the store is whole",
            "ours": "the store is whole; `nml-orch --debug sync` shows where it happened",
        }[mlflow.trouble(error)]
        raise TrackingError(f"{mlflow.story(error, uri)}; {remedy}") from error
    finally:
        leases.close()


def reconcile(plan: Plan, store: Store, mirror: Mirror) -> int:
    """Mirror everything committed that MLflow lacks; how many runs those were.

    Runs of cells that an earlier version made one by one go to MLflow's trash.
    """
    showing, mirrored = Showing(plan, store), 0
    records = {
        address: record
        for address, record in store.records(plan.steps).items()
        if record.fingerprint == plan.steps[address].fingerprint
    }
    for address, step in plan.steps.items():
        if step.kind == "tune" or address not in records:
            continue
        if not mirror.holds(address, step.fingerprint):
            manifest = store.manifest(address)
            if manifest is not None and manifest.fingerprint == step.fingerprint:
                mirror.child(showing.step(step, manifest))
                mirrored += 1
    lacking: list[tuple[Group, dict[str, str]]] = []
    for group in groups(plan).values():
        times = {
            s.address: records[s.address].finished for s in group.cells if s.address in records
        }
        if times and not mirror.holds(group.address, group.fingerprint(times)):
            lacking.append((group, times))
    for group, times in lacking:
        mirror.child(showing.cells(group, showing.rows(times), times))
    for step in plan.of_kind("tune"):
        if step.address in mirror.children:
            mirror.drop(step.address)
    return mirrored + len(lacking)
