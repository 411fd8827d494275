"""Mirrors a store to MLflow: while a sweep runs, and afterwards (`nml-orch sync`).

The store is the truth, and MLflow can be rebuilt from it. Mirroring runs on a thread of the driver,
under a lease. A slow or dead tracking server costs the sweep one line on the screen. The thread
tries again while the sweep runs, and then writes what MLflow has missed. The cells of one encoder
and method are one run (`runs.py`), written when the last of them is committed. Incomplete groups
are written when the sweep ends.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from jobs.contract import StageError
from orchestrator.errors import NmlError, StoreError, TrackingError
from orchestrator.plan.plan import Plan
from orchestrator.step.address import TrackingAddress
from orchestrator.step.step import Step
from orchestrator.store.lease import Leases
from orchestrator.store.manifest import Manifest
from orchestrator.store.provenance import redact
from orchestrator.store.store import Store
from orchestrator.tracking import mlflow
from orchestrator.tracking.methods import sweep_params
from orchestrator.tracking.mlflow import Mirror
from orchestrator.tracking.runs import CellGroup, RunViews, SweepRecord, group_of, groups
from orchestrator.tracking.server import other, reason

RETRY_SECONDS = 15.0  # between two calls to a server that does not answer


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
        self._views = RunViews(plan, store)
        self._groups = groups(plan)
        self._finished: dict[str, dict[str, str]] = {}  # group -> finished cell -> time
        self._pending: dict[str, tuple[Step, Manifest] | CellGroup] = {}  # committed, not mirrored
        self.down = ""  # why MLflow does not answer; empty if it does
        self._last_failure = 0.0  # time.monotonic of the last call without an answer
        self._thread = threading.Thread(target=self._follow, daemon=True, name="tracking")
        self._thread.start()

    def commit(self, step: Step, manifest: Manifest) -> None:
        """Queue a committed step for mirroring."""
        self._queue.put((step, manifest))

    def close(self, record: SweepRecord | None) -> bool:
        """Mirror the rest, then the sweep itself. Returns whether MLflow has everything."""
        self._queue.put(None)
        self._thread.join()
        try:
            if record is None:
                return not self.down
            self._mirror = None  # MLflow's pages may have changed its runs during the sweep
            mirror = self._open()
            if mirror is None:
                return False
            reconcile(self._plan, self._store, mirror)
            mirror.sweep(record)
            self.down = ""
            return True
        except Exception as error:  # no error of the client may end the sweep
            self._note_failure(error)
            return False
        finally:
            with suppress(OSError):
                self._leases.close()

    def _follow(self) -> None:
        while True:
            with suppress(queue.Empty):
                item = self._queue.get(timeout=RETRY_SECONDS if self.down else None)
                if item is None:
                    return  # `close` mirrors the rest
                self._add_pending(*item)
            if self.down and time.monotonic() - self._last_failure < RETRY_SECONDS:
                continue
            try:
                self._catch_up()
            except Exception as error:  # as above
                self._note_failure(error)

    def _add_pending(self, step: Step, manifest: Manifest) -> None:
        """Keep a committed step until MLflow has it. Cells wait until their group is complete."""
        if step.kind != "tune":
            self._pending[step.address] = step, manifest
            return
        group = self._groups[group_of(self._plan, step)]
        times = self._finished.setdefault(group.address, {})
        times[step.address] = str(manifest.provenance["finished"])
        if len(times) == len(group.cells):
            self._pending[group.address] = group

    def _catch_up(self) -> None:
        """Write all pending runs to MLflow, oldest first."""
        mirror = self._open()
        if mirror is None:
            return
        for address, pending in list(self._pending.items()):
            if isinstance(pending, CellGroup):
                times = self._finished[address]
                if not mirror.has_run(address, pending.fingerprint(times)):
                    mirror.child(self._views.cells(pending, self._views.rows(times), times))
                del self._finished[address]
            elif not mirror.has_run(address, pending[0].fingerprint):
                mirror.child(self._views.step(*pending))
            del self._pending[address]
        if self.down:
            self.down = ""
            self._say(f"MLflow at {redact(self.uri)} answers again and has what it missed")

    def _open(self) -> Mirror | None:
        """The mirror; None if another driver has the lease to write to it."""
        if not self._leases.holds(self._lease):
            self._mirror = None
            if not self._leases.acquire(self._lease):
                return None
        if self._mirror is None:
            mirror = _mirror(self._plan, self._store, self.uri)
            mirror.open()
            self._mirror = mirror
        return self._mirror

    def _note_failure(self, error: Exception) -> None:
        self._mirror = None
        self._last_failure = time.monotonic()
        if not self.down:
            self.down = reason(error)
            damaged = isinstance(error, StoreError | StageError)  # a file in the store, not MLflow
            message = str(error) if damaged else mlflow.error_message(error, self.uri)
            self._say(
                f"{message}; the sweep continues and tries again; "
                f"after the sweep, `nml-orch sync` writes what is missing"
            )


def sync(plan: Plan, store: Store, uri: str, record: SweepRecord) -> int:
    """Write everything that MLflow lacks. Returns the number of runs. Raises TrackingError."""
    leases = Leases(store.root)
    try:
        if not leases.acquire(str(TrackingAddress(plan.experiment.name))):
            raise TrackingError("a running sweep is mirroring this store; sync when it has ended")
        mirror = _mirror(plan, store, uri)
        mirror.open()
        mirrored = reconcile(plan, store, mirror)
        mirror.sweep(record)
        return mirrored
    except (NmlError, StageError):
        raise
    except Exception as error:
        elsewhere = other(plan.experiment.tracking.uri)
        remedy = {
            "unreachable": f"start it, or {elsewhere}",
            "refused": f"the store is complete; give the experiment another name, or {elsewhere}",
            "no driver": f"the store is complete; install that driver, or {elsewhere}",
            "ours": "the store is complete; `nml-orch --debug sync` shows where it happened",
        }[mlflow.error_kind(error)]
        raise TrackingError(f"{mlflow.error_message(error, uri)}; {remedy}") from error
    finally:
        leases.close()


def _mirror(plan: Plan, store: Store, uri: str) -> Mirror:
    experiment = plan.experiment
    return Mirror(uri, experiment.name, store.identity, sweep_params(experiment))


def reconcile(plan: Plan, store: Store, mirror: Mirror) -> int:
    """Mirror every committed step that MLflow lacks. Returns the number of runs.

    Runs of single cells, which an earlier version made, go to MLflow's trash.
    """
    views, mirrored = RunViews(plan, store), 0
    records = {
        address: record
        for address, record in store.records(plan.steps).items()
        if record.fingerprint == plan.steps[address].fingerprint
    }
    for address, step in plan.steps.items():
        if step.kind == "tune" or address not in records:
            continue
        if not mirror.has_run(address, step.fingerprint):
            manifest = store.manifest(address)
            if manifest is not None and manifest.fingerprint == step.fingerprint:
                mirror.child(views.step(step, manifest))
                mirrored += 1
    lacking: list[tuple[CellGroup, dict[str, str]]] = []
    for group in groups(plan).values():
        times = {
            s.address: records[s.address].finished for s in group.cells if s.address in records
        }
        if times and not mirror.has_run(group.address, group.fingerprint(times)):
            lacking.append((group, times))
    for group, times in lacking:
        mirror.child(views.cells(group, views.rows(times), times))
    for step in plan.of_kind("tune"):
        if step.address in mirror.children:
            mirror.drop(step.address)
    return mirrored + len(lacking)
