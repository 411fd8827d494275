"""Runs a plan on Ray: reuses finished steps, resumes, retries, continues after failures.

Each kind of step has one lane. A free lane takes the ready steps of its kind, at most TURN of them,
and passes them to the stage in one call, so the stage can share processes between them. Meanwhile
other steps become ready for the lane's next turn, and the other lanes run. Turns are limited, so
two drivers on one store can share 50,000 cells, and work starts before all leases are taken. A lane
first waits until its input steps stop ending for a moment: five levels that become ready one by one
go to the stage together. The stage reports each step as soon as it ends, and the driver commits it
then. A failed step blocks only the steps that read it.

The driver's cost of a step does not grow with the number of steps: each step counts its missing
inputs, and nothing is searched.

Stages are named here and imported on first use. No other module of `orchestrator` knows them.
"""

from __future__ import annotations

import contextlib
import importlib
import queue
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from jobs.contract import Failure, Hooks, Outcome, Work
from orchestrator.errors import NmlError
from orchestrator.plan.plan import Plan
from orchestrator.plan.states import StepState, StepStatus, blocked_by
from orchestrator.run.opening import Opened, Opener
from orchestrator.run.progress import Progress
from orchestrator.step.step import KINDS, Step
from orchestrator.store import provenance
from orchestrator.store.index import Index, Journal
from orchestrator.store.lease import Leases
from orchestrator.store.manifest import CELL_TABLE, ERROR, Manifest
from orchestrator.store.provenance import redact
from orchestrator.store.store import Store

STAGES: Mapping[str, str] = {
    "corpus": "jobs.corpus.job:run_corpus",
    "hashes": "jobs.overlap.job:run_hashes",
    "overlap": "jobs.overlap.job:run",
    "noise": "jobs.noise.job:run",
    "pretrain": "jobs.pretrain.job:run",
    "encoder": "jobs.encoders.job:run",
    "features": "jobs.features.job:run",
    "tune": "jobs.tuning.job:run",
}
"""The function that does each kind of step."""

Stage = Callable[[Sequence[Work], Hooks], None]


RETRIES = 1  # further tries after failures that are not the step's own
TURN = 1000  # steps that a lane takes at once
STORE_THREADS = 16  # leases or commits of one lane at once, in an object store
DISK_THREADS = 4  # the same on a disk
POLL_SECONDS = 0.2
GATHER_SECONDS = 0.5  # a lane starts when no input step has ended for this long
LEASE_RETRY_SECONDS = 2.0  # between two tries for a step that another driver holds
STOP_SECONDS = 15.0  # time for the lanes to end

_IMPORTING = threading.Lock()
"""One stage is imported at a time: two threads that load torch's libraries at once can end the
process (oneMKL: "Cannot load libtorch_cpu.so")."""


@dataclass(frozen=True)
class _Event:
    """What a lane's thread reports: a step has ended, or (address "") the lane is free."""

    kind: str
    address: str = ""
    failure: Failure | None = None
    lost_lease: bool = False  # finished, but another driver has the lease: not committed


class Executor:
    """One run of a plan. `done` are the addresses of the finished steps.

    `redo` are finished steps that are done again. Those that read one of them are done again too if
    its files have changed by that. `replace` are the drifted steps to be replaced, each with the
    fingerprint that the plan saw; what another sweep has put in its place since is not replaced.
    """

    def __init__(
        self,
        plan: Plan,
        store: Store,
        *,
        done: Iterable[str],
        progress: Progress,
        redo: Collection[str] = (),
        replace: Mapping[str, str] | None = None,
        on_commit: Callable[[Step, Manifest], None] = lambda step, manifest: None,
        stages: Mapping[str, str] = STAGES,
        leases: Leases | None = None,
    ) -> None:
        self._plan, self._store, self._progress = plan, store, progress
        self._on_commit, self._stages = on_commit, stages
        self._own_leases = leases is None  # else the caller closes them
        self._leases = leases or Leases(store.root)
        self._opener = Opener(plan, store, self._leases, redo, replace or {})
        settled = set(done) - self._opener.unsettled
        self._results = {address: StepStatus(StepState.REUSED) for address in settled}
        self._waiting = {a: s for a, s in plan.steps.items() if a not in self._results}
        self._readers: dict[str, list[str]] = {}  # address -> waiting steps that read it
        self._missing_inputs: dict[str, int] = {}  # waiting step -> inputs that are not finished
        self._ready: dict[str, dict[str, Step]] = {kind: {} for kind in KINDS}
        for step in self._waiting.values():
            self._await_inputs(step)
        self._running: set[str] = set()
        self._running_of: Counter[str] = Counter()  # kind -> running steps
        self._busy: set[str] = set()  # kinds whose lane is busy
        self._attempts: Counter[str] = Counter()
        self._retry_at: dict[str, float] = {}  # step of another driver -> when to try again
        self._events: queue.Queue[_Event] = queue.Queue()
        self._stop = threading.Event()
        self._journal = Journal(Index(store.root))
        self._started: dict[str, tuple[str, float]] = {}
        self._last_end: dict[str, float] = {}  # kind -> when one of its steps last ended
        self._input_kinds = {
            kind: {plan.steps[a].kind for step in plan.of_kind(kind) for a in step.inputs.values()}
            for kind in KINDS
        }

    def run(self) -> dict[str, StepStatus]:
        """Run all steps that can run. Returns how each step ended.

        Raises KeyboardInterrupt, after cleaning up, if the run was stopped.
        """
        try:
            while self._waiting or self._running:
                self._start_lanes()
                self._listen()
                self._journal.flush()
            self._drain()
        except KeyboardInterrupt:
            self._stop.set()
            self._progress.note("stopping: finished steps are kept, running ones are ended")
            self._drain()
            raise
        finally:
            self._journal.flush(force=True)
            if self._own_leases:
                with contextlib.suppress(OSError):
                    self._leases.close()
        return {
            address: self._results.get(address, StepStatus(StepState.MISSING))
            for address in self._plan.steps
        }

    # -- in the driver's thread ------------------------------------------------------------------

    def _await_inputs(self, step: Step) -> None:
        """Register a waiting step with its missing inputs, or make it ready if none is missing.

        The steps that it comes after are apassed like inputs.
        """
        before = {*step.inputs.values(), *step.after}
        missing = [a for a in before if a in self._plan.steps and a not in self._results]
        for address in missing:
            self._readers.setdefault(address, []).append(step.address)
        self._missing_inputs[step.address] = len(missing)
        if not missing:
            self._ready[step.kind][step.address] = step

    def _start_lanes(self) -> None:
        for kind in KINDS:
            if kind in self._busy or not self._ready[kind] or self._gathering(kind):
                continue
            works = self._take_turn(kind)
            if works:
                self._busy.add(kind)
                threading.Thread(
                    target=self._lane, args=(kind, works), name=f"lane-{kind}", daemon=True
                ).start()

    def _gathering(self, kind: str) -> bool:
        """Whether more steps of a kind may become ready within a moment."""
        if len(self._ready[kind]) >= TURN:
            return False
        recent = time.monotonic() - GATHER_SECONDS
        return any(
            self._running_of[fed] and self._last_end.get(fed, 0) > recent
            for fed in self._input_kinds[kind]
        )

    def _take_turn(self, kind: str) -> list[Work]:
        """Up to TURN ready steps of a kind, without those that another driver holds."""
        now, works = time.monotonic(), list[Work]()
        open_one = partial(self._opener.open, self._opener.inputs())
        ready = [s for s in self._ready[kind].values() if self._retry_at.get(s.address, 0) <= now]
        with self._store_pool() as pool:
            while ready and len(works) < TURN and not self._stop.is_set():
                free = TURN - len(works)
                chosen, ready = ready[:free], ready[free:]
                for step, opened in zip(chosen, pool.map(open_one, chosen), strict=True):
                    self._record_opened(step, opened)
                    if isinstance(opened, Work):
                        works.append(opened)
        return works

    def _record_opened(self, step: Step, opened: Opened) -> None:
        address = step.address
        if opened is None:
            if address not in self._retry_at:
                self._progress.note(f"{address}: another sweep on this store is doing it")
            self._retry_at[address] = time.monotonic() + LEASE_RETRY_SECONDS
            return
        del self._waiting[address], self._ready[step.kind][address]
        if isinstance(opened, Manifest):
            self._on_commit(step, opened)
            reason = "" if address in self._opener.unsettled else "done by another sweep"
            self._settle(address, StepStatus(StepState.REUSED, reason))
            return
        if isinstance(opened, StepStatus):
            self._settle(address, opened)
            return
        self._running.add(address)
        self._running_of[step.kind] += 1
        self._attempts[address] += 1
        self._started[address] = (provenance.now(), time.monotonic())
        self._progress.begin(address)

    def _wait_again(self, address: str) -> None:
        step = self._waiting[address] = self._plan.steps[address]
        self._await_inputs(step)

    def _listen(self) -> None:
        """Handle the lanes' events; wait up to POLL_SECONDS for the first."""
        with contextlib.suppress(queue.Empty):
            self._handle(self._events.get(timeout=POLL_SECONDS))
            while True:
                self._handle(self._events.get_nowait())

    def _handle(self, event: _Event) -> None:
        if not event.address:
            self._busy.discard(event.kind)
            return
        address = event.address
        self._running.discard(address)
        self._running_of[event.kind] -= 1
        self._leases.release(address)
        if event.lost_lease:
            self._wait_again(address)
        elif event.failure is None:
            self._settle(address, StepStatus(StepState.DONE))
        elif self._may_retry(event.failure):
            self._progress.note(f"{address}: {event.failure.sentence}; trying again")
            self._wait_again(address)
        else:
            self._settle(address, StepStatus(StepState.FAILED, event.failure.sentence))

    def _may_retry(self, failure: Failure) -> bool:
        tried = self._attempts[failure.address]
        return not failure.final and not self._stop.is_set() and tried <= RETRIES

    def _settle(self, address: str, result: StepStatus) -> None:
        """Record how a step ended. Steps that read it become ready or blocked."""
        ended = [(address, result)]
        while ended:
            address, result = ended.pop()
            self._results[address] = result
            self._last_end[self._plan.steps[address].kind] = time.monotonic()
            self._progress.settle(address, result.state, result.reason)
            for reader in self._readers.pop(address, ()):
                if reader not in self._waiting:  # blocked already, by another input
                    continue
                ill = not result.state.finished
                if ill and (why := blocked_by(self._plan.steps[reader], address, self._results)):
                    del self._waiting[reader]
                    ended.append((reader, StepStatus(StepState.BLOCKED, why)))
                    continue
                self._missing_inputs[reader] -= 1
                if not self._missing_inputs[reader]:
                    step = self._waiting[reader]
                    self._ready[step.kind][reader] = step

    def _drain(self) -> None:
        """Wait up to STOP_SECONDS for the lanes to end, and handle what they still report.

        This is needed even after the last report: the stage may still be ending its workers. Ray
        has aborted the process when it was shut down while another thread called it.
        """
        deadline = time.monotonic() + STOP_SECONDS
        while self._busy and time.monotonic() < deadline:
            self._listen()

    # -- in a lane's thread ----------------------------------------------------------------------

    def _store_pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(DISK_THREADS if self._store.root.is_local else STORE_THREADS)

    def _lane(self, kind: str, works: Sequence[Work]) -> None:
        """Pass the works to their stage. Those that it does not report have failed.

        Other threads commit, so the stage does not wait for the store; the lane does.
        """
        reported: set[str] = set()
        lock = threading.Lock()
        with self._store_pool() as pool:

            def done(address: str, result: Outcome | BaseException) -> None:
                with lock:
                    if address in reported:
                        return
                    reported.add(address)
                pool.submit(lambda: self._events.put(self._finish(kind, address, result)))

            hooks = Hooks(done, self._progress.say, self._stop.is_set, self._leases)
            error: BaseException | None = None
            try:
                _stage(self._stages[kind])(works, hooks)
            except BaseException as raised:  # no lane may die without a report
                error = raised
            for work in works:
                if work.address not in reported and not self._stop.is_set():
                    unreported = RuntimeError(f"the {kind} stage ended without reporting it")
                    done(work.address, error or unreported)
        self._events.put(_Event(kind))

    def _finish(self, kind: str, address: str, result: Outcome | BaseException) -> _Event:
        """Commit a finished step, or write a failed step's traceback and message to its scratch."""
        step = self._plan.steps[address]
        if isinstance(result, BaseException):
            failure = failure_of(result, address)
            text = redact(f"{failure.traceback}{failure.sentence}\n")
            if not self._stop.is_set():  # a step that ends because the run stops has not failed
                with contextlib.suppress(OSError):
                    self._store.scratch(step).write_bytes(ERROR, text.encode())
            return _Event(kind, address, failure)
        try:
            if not self._leases.holds(address):
                return _Event(kind, address, lost_lease=True)
            started, clock = self._started[address]
            passed = time.monotonic() - clock
            manifest = self._store.commit(
                step,
                result,
                {
                    **provenance.environment(),
                    **step.spec.circumstances(),
                    "started": started,
                    "finished": provenance.now(),
                    "seconds": round(passed if result.seconds is None else result.seconds, 3),
                    "attempts": self._attempts[address],
                },
                self._opener.read_by(address),
                self._opener.extended(address),
            )
            self._opener.committed(manifest)
            self._add_to_index(step, manifest)
            self._on_commit(step, manifest)
        except Exception as error:  # treated like a failure of the stage
            return _Event(kind, address, failure_of(error, address))
        return _Event(kind, address)

    def _add_to_index(self, step: Step, manifest: Manifest) -> None:
        """Add a commit to the index. The index is a cache, so its failures are ignored."""
        with contextlib.suppress(OSError):
            stamp = self._store.stamp(step.address)
            has_rows = CELL_TABLE in manifest.files
            rows = self._store.cell(step.address) if has_rows else None
            if stamp is not None:
                self._journal.add(manifest, stamp, rows)


def load(kinds: Iterable[str]) -> None:
    """Import the stages of some kinds in this thread, before other threads start.

    A thread that loads torch, or calls MKL for the first time, while others load libraries can end
    the process ("oneMKL FATAL ERROR: Cannot load libtorch_cpu.so").
    """
    for kind in kinds:
        _stage(STAGES[kind])
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.ones(2, 2) @ torch.ones(2, 2)


def _stage(name: str) -> Stage:
    """The function of a stage's name (`module:function`)."""
    module, _, function = name.partition(":")
    with _IMPORTING:
        stage: Stage = getattr(importlib.import_module(module), function)
    return stage


def failure_of(error: BaseException, address: str = "") -> Failure:
    """An error as a `Failure`. Our own errors are one sentence each, and final."""
    return Failure.of(error, address, final=(NmlError,))
