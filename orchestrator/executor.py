"""Runs a plan on Ray: reuses what is done, resumes, retries, goes on past failures.

Each kind of step has one lane. A free lane takes every step of its kind that is ready and hands
them to the stage together, so that the stage can share processes between them; while it runs, newly
ready steps gather for its next turn, and the other lanes work beside it. A lane waits for a moment
in which no step that feeds it ends, so that five levels that become ready one by one are handed on
as five. A stage answers for each step apart; the answer is committed to the store at once. A step's
failure blocks what reads it and nothing else.

Stages are named here and imported when first needed. Nothing else in `orchestrator` knows them.
"""

from __future__ import annotations

import contextlib
import importlib
import queue
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from jobs.contract import Hooks, Outcome, StageError, Work
from orchestrator import provenance
from orchestrator.errors import NmlError
from orchestrator.lease import Leases
from orchestrator.plan import KINDS, Plan, Step
from orchestrator.progress import Progress
from orchestrator.store import Manifest, Store

STAGES: Mapping[str, str] = {
    "corpus": "jobs.corpus.job:run_corpus",
    "noise": "jobs.noise.job:run",
    "pretrain": "jobs.pretrain.job:run",
    "encoder": "jobs.encoders.job:run",
    "features": "jobs.features.job:run",
    "tune": "jobs.tuning.job:run",
}
"""The function that does each kind of step."""

Stage = Callable[[Sequence[Work], Hooks], None]

RETRIES = 1  # tries after the first, for faults that are not the step's own
POLL_SECONDS = 0.2
GATHER_SECONDS = 0.5  # quiet that a lane waits for, so that siblings go to their stage together
ELSEWHERE_SECONDS = 2.0  # how often to look after a step that another driver holds
STOP_SECONDS = 15.0  # how long lanes may take to end politely


class Status(StrEnum):
    """How a step ended in this run."""

    REUSED = "reused"  # was done before, or by another driver meanwhile
    DONE = "done"
    FAILED = "failed"
    BLOCKED = "blocked"  # an input failed
    UNFINISHED = "unfinished"  # the run was stopped first


@dataclass(frozen=True)
class Result:
    """The end of one step in this run."""

    status: Status
    reason: str = ""


@dataclass(frozen=True)
class _Event:
    """What a lane's thread tells the loop: a step's end, or (address "") that the lane is free."""

    kind: str
    address: str = ""
    error: BaseException | None = None
    elsewhere: bool = False  # finished, but another driver had taken the lease: not committed


class Executor:
    """One run of a plan. `done` are the addresses committed already."""

    def __init__(
        self,
        plan: Plan,
        store: Store,
        *,
        done: Iterable[str],
        progress: Progress,
        on_commit: Callable[[Step, Manifest], None] = lambda step, manifest: None,
        stages: Mapping[str, str] = STAGES,
    ) -> None:
        self._plan, self._store, self._progress = plan, store, progress
        self._on_commit, self._stages = on_commit, stages
        self._results = {address: Result(Status.REUSED) for address in done}
        self._waiting = {a: s for a, s in plan.steps.items() if a not in self._results}
        self._running: set[str] = set()
        self._busy: set[str] = set()  # kinds whose lane is taken
        self._attempts: Counter[str] = Counter()
        self._look_again: dict[str, float] = {}  # held elsewhere -> when to try for it again
        self._events: queue.Queue[_Event] = queue.Queue()
        self._stop = threading.Event()
        self._leases = Leases(store.root)
        self._started: dict[str, tuple[str, float]] = {}
        self._newest: dict[str, float] = {}  # kind -> when a step of it last ended
        self._fed_by = {
            kind: {plan.steps[a].kind for step in plan.of_kind(kind) for a in step.inputs.values()}
            for kind in KINDS
        }

    def run(self) -> dict[str, Result]:
        """Do everything that can be done; every step's end. KeyboardInterrupt after cleaning up."""
        try:
            while self._waiting or self._running:
                self._block()
                self._start_lanes()
                self._listen()
        except KeyboardInterrupt:
            self._stop.set()
            self._drain()
            raise
        finally:
            with contextlib.suppress(OSError):
                self._leases.close()
        return {
            address: self._results.get(address, Result(Status.UNFINISHED))
            for address in self._plan.steps
        }

    # -- the loop's parts ------------------------------------------------------------------------

    def _block(self) -> None:
        """Settle what can no longer be done because something it reads failed."""
        for step in list(self._waiting.values()):
            for address in step.inputs.values():
                result = self._results.get(address)
                if result is not None and result.status in (Status.FAILED, Status.BLOCKED):
                    del self._waiting[step.address]
                    self._settle(step.address, Result(Status.BLOCKED, f"reads {address}"))
                    break

    def _start_lanes(self) -> None:
        for kind in KINDS:
            if kind in self._busy or self._gathering(kind):
                continue
            works = [work for step in self._ready(kind) if (work := self._take(step)) is not None]
            if works:
                self._busy.add(kind)
                threading.Thread(
                    target=self._lane, args=(kind, works), name=f"lane-{kind}", daemon=True
                ).start()

    def _gathering(self, kind: str) -> bool:
        """Whether siblings of what is ready may be a moment away."""
        feeding = {self._plan.steps[address].kind for address in self._running}
        recent = time.monotonic() - GATHER_SECONDS
        return any(self._newest.get(fed, 0) > recent for fed in self._fed_by[kind] & feeding)

    def _ready(self, kind: str) -> list[Step]:
        now = time.monotonic()
        return [
            step
            for step in self._waiting.values()
            if step.kind == kind
            and self._look_again.get(step.address, 0) <= now
            and all(address in self._results for address in step.inputs.values())
        ]

    def _take(self, step: Step) -> Work | None:
        """Lease a step and open its folder; None if another driver has it or has done it."""
        if not self._leases.acquire(step.address):
            if step.address not in self._look_again:
                self._progress.note(f"{step.address}: another sweep on this store is doing it")
            self._look_again[step.address] = time.monotonic() + ELSEWHERE_SECONDS
            return None
        manifest = self._store.manifest(step.address)
        if manifest is not None and manifest.fingerprint == step.fingerprint:
            self._leases.release(step.address)
            del self._waiting[step.address]
            self._on_commit(step, manifest)
            self._settle(step.address, Result(Status.REUSED, "done by another sweep"))
            return None
        del self._waiting[step.address]
        self._running.add(step.address)
        self._attempts[step.address] += 1
        self._started[step.address] = (provenance.now(), time.monotonic())
        self._progress.begin(step.address)
        return self._store.begin(step)

    def _listen(self) -> None:
        """Take in what the lanes report, waiting a moment for the first of it."""
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
        self._leases.release(address)
        if event.elsewhere:
            self._waiting[address] = self._plan.steps[address]
        elif event.error is None:
            self._settle(address, Result(Status.DONE))
        elif self._may_retry(event.error, address):
            self._progress.note(f"{address}: {sentence(event.error)}; trying again")
            self._waiting[address] = self._plan.steps[address]
        else:
            self._settle(address, Result(Status.FAILED, sentence(event.error)))

    def _may_retry(self, error: BaseException, address: str) -> bool:
        own = isinstance(error, (StageError, NmlError))
        return not own and not self._stop.is_set() and self._attempts[address] <= RETRIES

    def _settle(self, address: str, result: Result) -> None:
        self._results[address] = result
        self._newest[self._plan.steps[address].kind] = time.monotonic()
        self._progress.settle(address, result.status, result.reason)

    def _drain(self) -> None:
        """After a stop: let the lanes end, commit what they still report, wait no longer."""
        deadline = time.monotonic() + STOP_SECONDS
        while self._busy and time.monotonic() < deadline:
            self._listen()

    # -- in a lane's thread ----------------------------------------------------------------------

    def _lane(self, kind: str, works: Sequence[Work]) -> None:
        """Hand the works to their stage, and answer for those that it leaves unanswered."""
        answered: set[str] = set()
        lock = threading.Lock()

        def done(address: str, result: Outcome | BaseException) -> None:
            with lock:
                if address in answered:
                    return
                answered.add(address)
            self._events.put(self._finish(kind, address, result))

        hooks = Hooks(done=done, say=self._progress.say, stopping=self._stop.is_set)
        error: BaseException | None = None
        try:
            module, _, function = self._stages[kind].partition(":")
            stage: Stage = getattr(importlib.import_module(module), function)
            stage(works, hooks)
        except BaseException as raised:  # a lane must never die unheard
            error = raised
        for work in works:
            if work.address not in answered and not self._stop.is_set():
                silent = RuntimeError(f"the {kind} stage ended without an answer for it")
                done(work.address, error or silent)
        self._events.put(_Event(kind))

    def _finish(self, kind: str, address: str, result: Outcome | BaseException) -> _Event:
        """Commit a finished step, or keep the traceback of a failed one beside its scratch."""
        step = self._plan.steps[address]
        if isinstance(result, BaseException):
            cause = root_cause(result)
            text = "".join(traceback.format_exception(result))
            if not self._stop.is_set():  # what ends with the run has not failed
                with contextlib.suppress(OSError):
                    self._store.scratch(step).write_bytes("error.txt", text.encode())
            return _Event(kind, address, cause)
        try:
            if not self._leases.holds(address):
                return _Event(kind, address, elsewhere=True)
            started, clock = self._started[address]
            manifest = self._store.commit(
                step,
                result,
                {
                    **provenance.environment(),
                    "started": started,
                    "finished": provenance.now(),
                    "seconds": round(time.monotonic() - clock, 3),
                    "attempts": self._attempts[address],
                },
            )
            self._on_commit(step, manifest)
        except Exception as error:  # the loop decides about it like about the stage's own
            return _Event(kind, address, error)
        return _Event(kind, address)


def root_cause(error: BaseException) -> BaseException:
    """The error that a worker raised, out of Ray's wrappers around it."""
    cause = getattr(error, "cause", None)
    return root_cause(cause) if isinstance(cause, BaseException) else error


def sentence(error: BaseException) -> str:
    """An error in one line: its own words for ours, type and first line for others."""
    if isinstance(error, (StageError, NmlError)):
        return str(error)
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1].strip() if lines else 'no message'}"
