"""Runs a plan on Ray: reuses what is done, resumes, retries, goes on past failures.

Each kind of step has one lane. A free lane takes the steps of its kind that are ready, a turn's
worth of them, and hands them to the stage together, so that the stage can share processes between
them; while it runs, newly ready steps gather for its next turn, and the other lanes work beside it.
A turn is bounded so that two drivers on one store share 50,000 cells and work starts while the rest
is still being taken. A lane waits for a moment in which no step that feeds it ends, so that five
levels that become ready one by one are handed on as five. A stage answers for each step apart; the
answer is committed to the store at once. A step's failure blocks what reads it and nothing else.

What a step costs the driver does not depend on how many steps there are: each waits for a count of
inputs, and nothing is searched.

Stages are named here and imported when first needed. Nothing else in `orchestrator` knows them.
"""

from __future__ import annotations

import contextlib
import importlib
import queue
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from jobs.contract import Failure, Hooks, Outcome, Work
from orchestrator.errors import NmlError
from orchestrator.plan.plan import Plan
from orchestrator.plan.states import StepState, StepStatus
from orchestrator.run.progress import Progress
from orchestrator.step.step import KINDS, Step
from orchestrator.store import provenance
from orchestrator.store.index import Index, Journal
from orchestrator.store.lease import Leases
from orchestrator.store.manifest import CELL_TABLE, ERROR, Manifest
from orchestrator.store.store import Store

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
TURN = 1000  # steps that a lane takes at once
HANDS = 16  # leases or commits of one lane in flight, where each waits for an object store
HANDS_ON_DISK = 4  # the same where each waits for a disk
POLL_SECONDS = 0.2
GATHER_SECONDS = 0.5  # quiet that a lane waits for, so that siblings go to their stage together
ELSEWHERE_SECONDS = 2.0  # how often to look after a step that another driver holds
STOP_SECONDS = 15.0  # how long lanes may take to end politely, stopped or answered for

_IMPORTING = threading.Lock()
"""Stages are imported one after another: two threads that load torch's libraries at once can end
the process (oneMKL: "Cannot load libtorch_cpu.so")."""


@dataclass(frozen=True)
class _Event:
    """What a lane's thread tells the loop: a step's end, or (address "") that the lane is free."""

    kind: str
    address: str = ""
    failure: Failure | None = None
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
        self._results = {address: StepStatus(StepState.REUSED) for address in done}
        self._waiting = {a: s for a, s in plan.steps.items() if a not in self._results}
        self._readers: dict[str, list[str]] = {}  # address -> waiting steps that read it
        self._lacking: dict[str, int] = {}  # waiting step -> inputs that have not ended well
        self._ready: dict[str, dict[str, Step]] = {kind: {} for kind in KINDS}
        for step in self._waiting.values():
            self._await_inputs(step)
        self._running: set[str] = set()
        self._at_work: Counter[str] = Counter()  # kind -> how many of it run
        self._busy: set[str] = set()  # kinds whose lane is taken
        self._attempts: Counter[str] = Counter()
        self._look_again: dict[str, float] = {}  # held elsewhere -> when to try for it again
        self._events: queue.Queue[_Event] = queue.Queue()
        self._stop = threading.Event()
        self._leases = Leases(store.root)
        self._journal = Journal(Index(store.root))
        self._started: dict[str, tuple[str, float]] = {}
        self._newest: dict[str, float] = {}  # kind -> when a step of it last ended
        self._fed_by = {
            kind: {plan.steps[a].kind for step in plan.of_kind(kind) for a in step.inputs.values()}
            for kind in KINDS
        }

    def run(self) -> dict[str, StepStatus]:
        """Do everything that can be done; every step's end. KeyboardInterrupt after cleaning up."""
        try:
            while self._waiting or self._running:
                self._start_lanes()
                self._listen()
                self._journal.flush()
            self._drain()
        except KeyboardInterrupt:
            self._stop.set()
            self._drain()
            raise
        finally:
            self._journal.flush(force=True)
            with contextlib.suppress(OSError):
                self._leases.close()
        return {
            address: self._results.get(address, StepStatus(StepState.MISSING))
            for address in self._plan.steps
        }

    # -- the loop's parts ------------------------------------------------------------------------

    def _await_inputs(self, step: Step) -> None:
        """Have a waiting step become ready when the last of what it reads is there."""
        lacking = [a for a in set(step.inputs.values()) if a not in self._results]
        for address in lacking:
            self._readers.setdefault(address, []).append(step.address)
        self._lacking[step.address] = len(lacking)
        if not lacking:
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
        """Whether siblings of what is ready may be a moment away."""
        if len(self._ready[kind]) >= TURN:
            return False
        recent = time.monotonic() - GATHER_SECONDS
        return any(
            self._at_work[fed] and self._newest.get(fed, 0) > recent for fed in self._fed_by[kind]
        )

    def _take_turn(self, kind: str) -> list[Work]:
        """As many ready steps of a kind as a turn has, those left out that another driver has."""
        now, works = time.monotonic(), list[Work]()
        ready = [s for s in self._ready[kind].values() if self._look_again.get(s.address, 0) <= now]
        with self._hands() as pool:
            while ready and len(works) < TURN and not self._stop.is_set():
                room = TURN - len(works)
                some, ready = ready[:room], ready[room:]
                for step, taken in zip(some, pool.map(self._lease, some), strict=True):
                    self._note_taken(step, taken)
                    if isinstance(taken, Work):
                        works.append(taken)
        return works

    def _lease(self, step: Step) -> Work | Manifest | None:
        """The step's lease, and its folder opened; what another driver made of it; or None."""
        if not self._leases.acquire(step.address):
            return None
        manifest = self._store.manifest(step.address)
        if manifest is not None and manifest.fingerprint == step.fingerprint:
            self._leases.release(step.address)
            return manifest
        return self._store.begin(step)

    def _note_taken(self, step: Step, taken: Work | Manifest | None) -> None:
        address = step.address
        if taken is None:
            if address not in self._look_again:
                self._progress.note(f"{address}: another sweep on this store is doing it")
            self._look_again[address] = time.monotonic() + ELSEWHERE_SECONDS
            return
        del self._waiting[address], self._ready[step.kind][address]
        if isinstance(taken, Manifest):
            self._on_commit(step, taken)
            self._settle(address, StepStatus(StepState.REUSED, "done by another sweep"))
            return
        self._running.add(address)
        self._at_work[step.kind] += 1
        self._attempts[address] += 1
        self._started[address] = (provenance.now(), time.monotonic())
        self._progress.begin(address)

    def _wait_again(self, address: str) -> None:
        step = self._waiting[address] = self._plan.steps[address]
        self._await_inputs(step)

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
        self._at_work[event.kind] -= 1
        self._leases.release(address)
        if event.elsewhere:
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
        """Write down a step's end, and let what reads it go on or be blocked."""
        ended = [(address, result)]
        while ended:
            address, result = ended.pop()
            self._results[address] = result
            self._newest[self._plan.steps[address].kind] = time.monotonic()
            self._progress.settle(address, result.state, result.reason)
            for reader in self._readers.pop(address, ()):
                if reader not in self._waiting:  # blocked already, by another input
                    continue
                if not result.state.finished:
                    del self._waiting[reader]
                    ended.append((reader, StepStatus(StepState.BLOCKED, f"reads {address}")))
                    continue
                self._lacking[reader] -= 1
                if not self._lacking[reader]:
                    step = self._waiting[reader]
                    self._ready[step.kind][reader] = step

    def _drain(self) -> None:
        """Let the lanes end, commit what they still report, wait no longer.

        Needed after the last answer too: a stage may still be ending its workers then, and Ray,
        shut down beside a thread that calls it, has aborted the process.
        """
        deadline = time.monotonic() + STOP_SECONDS
        while self._busy and time.monotonic() < deadline:
            self._listen()

    # -- in a lane's thread ----------------------------------------------------------------------

    def _hands(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(HANDS_ON_DISK if self._store.root.is_local else HANDS)

    def _lane(self, kind: str, works: Sequence[Work]) -> None:
        """Hand the works to their stage, and answer for those that it leaves unanswered.

        Commits are made beside the stage, which need not wait for the store; the lane does.
        """
        answered: set[str] = set()
        lock = threading.Lock()
        with self._hands() as pool:

            def done(address: str, result: Outcome | BaseException) -> None:
                with lock:
                    if address in answered:
                        return
                    answered.add(address)
                pool.submit(lambda: self._events.put(self._finish(kind, address, result)))

            hooks = Hooks(done=done, say=self._progress.say, stopping=self._stop.is_set)
            error: BaseException | None = None
            try:
                _stage(self._stages[kind])(works, hooks)
            except BaseException as raised:  # a lane must never die unheard
                error = raised
            for work in works:
                if work.address not in answered and not self._stop.is_set():
                    silent = RuntimeError(f"the {kind} stage ended without an answer for it")
                    done(work.address, error or silent)
        self._events.put(_Event(kind))

    def _finish(self, kind: str, address: str, result: Outcome | BaseException) -> _Event:
        """Commit a finished step, or keep a failed one's traceback beside its scratch, its sentence
        last.
        """
        step = self._plan.steps[address]
        if isinstance(result, BaseException):
            failure = failure_of(result, address)
            text = f"{failure.traceback}{failure.sentence}\n"
            if not self._stop.is_set():  # what ends with the run has not failed
                with contextlib.suppress(OSError):
                    self._store.scratch(step).write_bytes(ERROR, text.encode())
            return _Event(kind, address, failure)
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
            self._record(step, manifest)
            self._on_commit(step, manifest)
        except Exception as error:  # the loop decides about it like about the stage's own
            return _Event(kind, address, failure_of(error, address))
        return _Event(kind, address)

    def _record(self, step: Step, manifest: Manifest) -> None:
        """Have the index know of a commit; a cache that fails costs nobody a result."""
        with contextlib.suppress(OSError):
            stamp = self._store.stamp(step.address)
            has_rows = CELL_TABLE in manifest.files
            rows = self._store.cell(step.address) if has_rows else None
            if stamp is not None:
                self._journal.add(manifest, stamp, rows)


def load(kinds: Iterable[str]) -> None:
    """Import the stages of some kinds in this thread, before others are started.

    Threads that load torch, or ask MKL for its first product, while others load libraries have
    been seen to end the process ("oneMKL FATAL ERROR: Cannot load libtorch_cpu.so").
    """
    for kind in kinds:
        _stage(STAGES[kind])
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.ones(2, 2) @ torch.ones(2, 2)


def _stage(name: str) -> Stage:
    """The function that a stage's name (`module:function`) stands for."""
    module, _, function = name.partition(":")
    with _IMPORTING:
        stage: Stage = getattr(importlib.import_module(module), function)
    return stage


def failure_of(error: BaseException, address: str = "") -> Failure:
    """The failure that an error is; our own errors are a sentence each, and final."""
    return Failure.of(error, address, final=(NmlError,))
