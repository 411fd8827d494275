"""Runs one sweep: assesses the store, refuses drift, runs the missing steps, reports, mirrors."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from types import FrameType

from analysis.registration import in_words
from jobs.contract import StageError
from jobs.pretrain.packs import Node
from orchestrator import cluster, preflight
from orchestrator.cluster import fork_server, nodes
from orchestrator.cluster.fork_server import ForkServer
from orchestrator.cluster.needs import lacking
from orchestrator.cluster.watch import watching
from orchestrator.errors import ClusterError, ReplacedError, UserError
from orchestrator.experiment import last_sweep, registered
from orchestrator.plan import rates
from orchestrator.plan.assess import assess, refuse_drift
from orchestrator.plan.counting import batch_fault
from orchestrator.plan.paid import check_prices, uncounted
from orchestrator.plan.plan import Plan
from orchestrator.plan.speed import measured
from orchestrator.plan.states import StepState, StepStatus
from orchestrator.plan.together import together_line
from orchestrator.results import collect
from orchestrator.run.executor import Executor, load
from orchestrator.run.imports import imports
from orchestrator.run.progress import Bars, Lines, Progress
from orchestrator.run.waiting import waiting
from orchestrator.run.watchdog import watchdog
from orchestrator.step.step import KINDS, Step
from orchestrator.store import register
from orchestrator.store.lease import Leases
from orchestrator.store.provenance import redact
from orchestrator.store.store import Store
from orchestrator.tracking.mirror import Tracker
from orchestrator.tracking.server import resolve_uri


@dataclass(frozen=True)
class Ending:
    """How a sweep ended."""

    results: Mapping[str, StepStatus]
    report: collect.Report | None  # None if there is none
    tracking: str  # MLflow's URI; empty if tracking is off or MLflow lacks something
    seconds: float
    unreported: str = ""  # why finished steps give no report: a file of one has changed

    def count(self, state: StepState) -> int:
        """How many steps ended in a state."""
        return Counter(result.state for result in self.results.values())[state]

    @property
    def complete(self) -> bool:
        """Whether every step of the plan is finished."""
        return all(r.state.finished for r in self.results.values())


@dataclass(frozen=True)
class _Start:
    """What a run begins with."""

    done: list[str]  # the finished steps
    redo: Collection[str]  # of these, the ones to be done again
    replace: Mapping[str, str]  # the drifted steps to be replaced, with their fingerprints
    progress: Progress | None  # None if no step is left
    leases: Leases
    workers: ForkServer | None = None  # the server of which Ray's workers are forks


def run(
    plan: Plan,
    store: Store,
    *,
    force: bool = False,
    redo: Collection[str] = (),
    say: Callable[[str], None] = print,
) -> Ending:
    """Run the steps of the plan that the store lacks, and the finished steps in `redo` again.

    Steps that read one of `redo` are done again too if its files have changed. `force` replaces
    finished steps that have other settings.

    KeyboardInterrupt (or SIGTERM) ends it cleanly. Committed steps stay, and the next run continues
    from there. Raises DriftError, StoreError, ClusterError.
    """
    with _begin(plan, store, force, redo) as start:
        return _run(plan, store, start, say)


def _run(plan: Plan, store: Store, start: _Start, say: Callable[[str], None]) -> Ending:
    started = time.monotonic()
    last_sweep.remember(plan.experiment, store.root)
    _register_claims(plan, store, say)
    tracker = _tracker(plan, store, start.progress.note if start.progress else say)
    record = None
    try:
        results = _execute(plan, store, start, tracker)
        _remember_rates(plan, store, results)
        problems = {a: result for a, result in results.items() if not result.state.finished}
        report, mirrored, unreported = None, False, ""
        if len(problems) < len(results):
            try:
                with waiting("writing the report"):
                    report = collect.refresh(plan, store, problems)
            except (StageError, ReplacedError) as error:
                unreported = str(error)
        if report is not None:
            with collect.local(report) as folder:
                record = report.record(folder)
                with waiting("writing to MLflow"):
                    mirrored = tracker.close(record) if tracker else False
        elif tracker:
            tracker.close(None)
    except BaseException:
        if tracker and record is None:
            tracker.close(None)
        raise
    uri = tracker.uri if tracker and mirrored else ""
    return Ending(results, report, uri, time.monotonic() - started, unreported)


def _remember_rates(plan: Plan, store: Store, results: Mapping[str, StepStatus]) -> None:
    """Keep this machine's rates for the plans of other stores. Those of a cluster are not its."""
    done = [address for address, one in results.items() if one.state is StepState.DONE]
    if done and not os.environ.get("RAY_ADDRESS"):
        rates.remember(plan, measured(plan, store.records(done)))


def _register_claims(plan: Plan, store: Store, say: Callable[[str], None]) -> None:
    """Register the experiment's claims before its first step runs, and say what stands."""
    found = registered.register(plan.experiment, store.root, lambda: store.count(plan.steps))
    if found:
        from orchestrator.plan import claims  # numpy and Arrow, paid where claims are registered

        for line in (in_words(found), *claims.warnings(plan)):
            say(line)


def build(
    plan: Plan, store: Store, *, force: bool = False, redo: Collection[str] = ()
) -> Mapping[str, StepStatus]:
    """Run a plan's steps without report or tracking. Returns how each ended; raises as `run` does.

    A report of these steps alone would replace a sweep's report. The next sweep or `sync` writes
    them to MLflow.
    """
    with _begin(plan, store, force, redo) as start:
        return _execute(plan, store, start, None)


@contextmanager
def _begin(plan: Plan, store: Store, force: bool, redo: Collection[str]) -> Iterator[_Start]:
    """Register the run on the store until the block ends, and assess the plan's steps.

    The first Ctrl-C ends the run; further ones change nothing while it ends.
    """
    signal.signal(signal.SIGTERM, _terminate)
    before = signal.getsignal(signal.SIGINT)
    if before not in (None, signal.SIG_IGN):  # a shell's background job is not ended by Ctrl-C
        signal.signal(signal.SIGINT, _Once())
    try:
        with watchdog(), _begun(plan, store, force, redo) as start:
            yield start
    finally:
        signal.signal(signal.SIGINT, before or signal.default_int_handler)


@contextmanager
def _begun(plan: Plan, store: Store, force: bool, redo: Collection[str]) -> Iterator[_Start]:
    with waiting(f"reaching {redact(store.root.uri)}"):
        store.prepare()
        leases = Leases(store.root)
    workers = None
    try:
        with waiting("comparing the plan with what is stored"):
            register.enter(store.root, leases, plan.steps, redo)
            assessments = assess(plan, store, verify=True)
        if not force:
            refuse_drift(assessments)
        done = [a for a, found in assessments.items() if found.state is StepState.DONE]
        replace = {
            address: found.record.fingerprint
            for address, found in assessments.items()
            if found.state is StepState.DRIFT and found.record is not None
        }
        outdated = {
            address
            for address, found in assessments.items()
            if found.outdated and not assessments[found.outdated].outdated
        }
        again = set(redo) & set(done) | outdated
        unsettled = plan.readers(again)
        reused = [address for address in done if address not in unsettled]
        fault = batch_fault(plan, assessments)
        if fault is not None:
            raise UserError(fault)
        check_prices(plan, store, reused)
        left = plan.steps.keys() - set(reused)
        with waiting("checking data, encoders and buckets"):
            preflight.refuse(plan, left)
        progress = None
        if left:
            cluster.settings()
            wanted = {plan.steps[address].kind for address in left}
            kinds = [kind for kind in KINDS if kind in wanted]
            workers = fork_server.start(imports(kinds))
            with waiting("loading Ray"):
                load(kinds)
            progress = _progress(plan, reused)
        yield _Start(done, again, replace, progress, leases, workers)
    finally:
        if workers is not None:
            workers.close()
        with suppress(OSError):
            leases.close()


def _execute(
    plan: Plan, store: Store, start: _Start, tracker: Tracker | None
) -> Mapping[str, StepStatus]:
    done, progress = start.done, start.progress
    built: Mapping[str, StepStatus] = {}
    if progress is None:
        return {address: StepStatus(StepState.REUSED) for address in plan.steps}
    try:
        with cluster.session(workers=start.workers):  # the bars are on the screen
            signal.signal(signal.SIGTERM, _terminate)  # Ray has set a handler of its own
            settled = set(done) - plan.readers(start.redo)
            _check_resources(plan, settled)
            nodes.check(store.root)
            _say_together(plan, settled, progress)
            if not start.redo and (first := uncounted(plan, done)):
                built = _build_first(plan, store, start, first)
                done = [*done, *(a for a, found in built.items() if found.state.finished)]
                check_prices(plan, store, done)
            executor = Executor(
                plan,
                store,
                done=done,
                progress=progress,
                redo=start.redo,
                replace=start.replace,
                leases=start.leases,
                on_commit=tracker.commit if tracker else lambda step, manifest: None,
            )
            with watching(progress.note):
                return {**executor.run(), **built}
    finally:
        progress.close()


def _build_first(
    plan: Plan, store: Store, start: _Start, corpora: Collection[str]
) -> Mapping[str, StepStatus]:
    """Build some corpora before all else, because the price of their texts decides whether a sweep
    may begin. Returns how those that were finished ended; the others are tried again.
    """
    progress = start.progress
    assert progress is not None
    steps = {address: step for address, step in plan.steps.items() if address in corpora}
    executor = Executor(
        replace(plan, steps=steps),
        store,
        done=[],
        progress=progress,
        replace={a: mark for a, mark in start.replace.items() if a in corpora},
        leases=start.leases,
    )
    return {a: found for a, found in executor.run().items() if found.state.finished}


def _check_resources(plan: Plan, done: set[str]) -> None:
    """Raise ClusterError for resources that the cluster lacks: Ray would wait for them forever."""
    kinds = {plan.steps[address].kind for address in plan.steps.keys() - done}
    for sentence in lacking(plan.experiment, cluster.resources(), kinds):
        raise ClusterError(sentence)


def _say_together(plan: Plan, done: set[str], progress: Progress) -> None:
    """Say how many pre-training runs train side by side on this cluster, if several are left."""
    have = cluster.resources()
    line = together_line(
        plan,
        plan.steps.keys() - done,
        [Node(*each) for each in have.each],
        f"Ray (with {have.cpus:g} CPUs and {have.gpus:g} GPUs)",
    )
    if line:
        progress.note(line)


def _progress(plan: Plan, done: list[str]) -> Progress:
    totals = {kind: len(plan.of_kind(kind)) for kind in KINDS}
    reused = Counter(plan.steps[address].kind for address in done)
    works = {a: _work(step) for a, step in plan.steps.items() if step.kind == "tune"}
    for address in done:
        works.pop(address, None)
    return (Bars if sys.stderr.isatty() else Lines)(totals, reused, works)


def _work(step: Step) -> str | None:
    """What sets the time of a cell: whether it trains, and whether images or texts are encoded."""
    evaluated, encoded = "head" in step.inputs, "features" not in step.inputs
    if evaluated and not encoded:
        return None  # no time beside that of the others
    return "tune" + " evaluated" * evaluated + " encoded" * encoded


def _tracker(plan: Plan, store: Store, say: Callable[[str], None]) -> Tracker | None:
    settings = plan.experiment.tracking
    if not settings.enabled:
        return None
    return Tracker(plan, store, resolve_uri(settings.uri), say=say)


def _terminate(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


class _Once:
    """A handler of Ctrl-C: the first one is KeyboardInterrupt, the others are ignored."""

    def __init__(self) -> None:
        self._seen = False

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        if not self._seen:
            self._seen = True
            raise KeyboardInterrupt
