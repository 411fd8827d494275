"""Keeping MLflow up to the store: while a sweep runs, and afterwards (`nml-orch sync`).

The store is the truth; whatever MLflow lacks is told again from it. Mirroring happens on a thread
of the driver and under a lease; a tracking server that is slow or gone costs the sweep one line on
the screen and nothing else.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from contextlib import suppress

import pyarrow as pa

from orchestrator.errors import NmlError, TrackingError
from orchestrator.lease import Leases
from orchestrator.plan import Plan, Step
from orchestrator.provenance import redact
from orchestrator.store import Manifest, Store
from orchestrator.tracking import Mirror, SweepRecord


class Tracker:
    """Mirrors a sweep while it runs. Never raises, never blocks the sweep for long."""

    def __init__(
        self, plan: Plan, store: Store, uri: str, *, say: Callable[[str], None] = lambda line: None
    ) -> None:
        self._plan, self._store, self._say = plan, store, say
        self.uri = uri
        self._leases = Leases(store.root)
        self._lease = f"tracking/{plan.experiment.name}"
        self._queue: queue.Queue[tuple[Step, Manifest] | None] = queue.Queue()
        self._mirror: Mirror | None = None
        self.down = ""  # why MLflow does not answer, once it did not
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
        while (item := self._queue.get()) is not None:
            if self.down:
                continue  # the store has it; `close` or `sync` fills the gap
            try:
                mirror = self._open()
                if mirror is not None and not mirror.holds(item[0].address, item[1].fingerprint):
                    mirror.step(*item, _curves(self._store, item[1]))
            except Exception as error:  # as above
                self._lost(error)

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
        if not self.down:
            self.down = _reason(error)
            self._say(
                f"MLflow at {redact(self.uri)} does not answer ({self.down}); the sweep goes on, "
                f"and `nml-orch sync` fills the gap when it is back"
            )


def sync(plan: Plan, store: Store, uri: str, record: SweepRecord) -> int:
    """Bring MLflow up to the store; how many steps were missing. Raises TrackingError."""
    leases = Leases(store.root)
    try:
        if not leases.acquire(f"tracking/{plan.experiment.name}"):
            raise TrackingError("a running sweep is mirroring this store; sync when it has ended")
        mirror = Mirror(uri, plan.experiment.name, store.identity)
        mirror.open()
        mirrored = reconcile(plan, store, mirror)
        mirror.sweep(record)
        return mirrored
    except NmlError:
        raise
    except Exception as error:
        raise TrackingError(
            f"MLflow at {redact(uri)} does not answer ({_reason(error)}); "
            f"start it, or set MLFLOW_TRACKING_URI or --set tracking.uri=URI"
        ) from error
    finally:
        leases.close()


def reconcile(plan: Plan, store: Store, mirror: Mirror) -> int:
    """Mirror every committed step that MLflow lacks; how many those were."""
    mirrored = 0
    for step in plan.steps.values():
        manifest = store.manifest(step.address)
        if manifest is None or manifest.fingerprint != step.fingerprint:
            continue
        if not mirror.holds(step.address, manifest.fingerprint):
            mirror.step(step, manifest, _curves(store, manifest))
            mirrored += 1
    return mirrored


def _curves(store: Store, manifest: Manifest) -> pa.Table | None:
    if "curves.parquet" not in manifest.files:
        return None
    return store.output(manifest.address).read_table("curves.parquet")


def _reason(error: Exception) -> str:
    """The last, most telling part of an error's words."""
    cause: BaseException = error
    while cause.__cause__ is not None or cause.__context__ is not None:
        cause = cause.__cause__ or cause.__context__ or cause
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return redact(lines[0])[:160] if lines else type(cause).__name__
