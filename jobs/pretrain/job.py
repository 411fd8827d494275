"""The pre-training stage on Ray Train: runs in packs, one worker group for each pack.

Takes `PretrainStep` works (inputs: `corpus`, `noise`); reports each work's outcome as soon as it is
finished. Starting a worker group takes longer than a small run, so runs are packed (`packs.py`): a
Ray trainer trains the runs of its pack that differ in noise alone side by side (`cohort.py`),
and others one after another. Packing never affects a result. If memory does not suffice for runs
side by side, the group is started again with half as many at once.

Runs resume from our own checkpoints in each work's scratch folder, not from Ray Train's. Those
belong to a whole trainer, not to a run of a pack; they restart an epoch's data at row 0, where ours
resume at the next batch; and Ray Train finds them by the trainer's name without comparing the
configuration. Ray Train places workers, sets up their process group and notices lost workers. A
lost group is started again with its unreported runs (`restarts.py` decides how often); Ray Train's
own budget would count a preempted node as a failure. The trainer's name has the pack's fingerprints
and the attempt, so Ray Train never resumes by itself.

A worker reports a run's progress in small files in the run's scratch: `progress.json` and, last,
`result.json`. The caller's thread polls for them, so they may be on any filesystem.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, cast

import ray
import ray.train
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from jobs import records
from jobs.contract import Failure, Hooks, Outcome, StageError, Work
from jobs.pretrain import nodes, process_group
from jobs.pretrain.packs import (
    cohorts,
    group_slots,
    infeasible_message,
    most_on_a_node,
    packs,
)
from jobs.pretrain.restarts import (
    Limit,
    RestartBudget,
    giving_up_message,
    stage_error,
    too_many_together,
)
from jobs.pretrain.spec import PretrainStep, Resources

RESULT = "result.json"
PROGRESS = "progress.json"
STOP = "stop.json"

POLL_SECONDS = 0.5
STOP_SECONDS = 12.0  # time for workers to write a last checkpoint

_SETTINGS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # how soon the end of workers is noticed
    "RAY_TRAIN_METRICS_ENABLED": "0",
}
_SETTINGS_OF_ONE_NODE = {
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # else a useless process for each trainer
}


@dataclass(frozen=True)
class _Progress:
    """The record of how far a run is."""

    share: float
    words: str


@dataclass(frozen=True)
class _Result:
    """The record of how a run ended: with counts and metrics, or a failure."""

    counts: Mapping[str, int]
    metrics: Mapping[str, float]
    failure: Failure | None = None
    seconds: float | None = None

    def value(self) -> Outcome | BaseException:
        """The run's result, as hooks take it."""
        if self.failure:
            return self.failure.as_error()
        return Outcome(self.counts, self.metrics, self.seconds)


@dataclass
class _Pack:
    """Runs that share a worker group, and the state of their trainer."""

    works: Sequence[Work]
    resources: Resources
    sharing: int  # most workers on one node at once
    limit: Limit  # of runs side by side
    thread: threading.Thread | None = None
    error: BaseException | None = None
    stopped: bool = False
    unreported: dict[str, Work] = field(default_factory=dict)


def run(works: Sequence[Work], hooks: Hooks) -> None:
    """Train every work and report each separately. After a stop, unfinished works are not reported.

    A work whose resources exceed the cluster's is reported with a StageError; where nodes have been
    lost, it first waits some minutes for others.
    """
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    settings = _SETTINGS | (_SETTINGS_OF_ONE_NODE if len(nodes.alive()) == 1 else {})
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    by_resources: dict[Resources, list[Work]] = {}
    for work in works:
        by_resources.setdefault(cast(PretrainStep, work.spec).resources, []).append(work)
    for resources, group in by_resources.items():
        found = nodes.room_for(resources, group, hooks)
        slots = group_slots(resources, found)
        if hooks.stopping():
            return
        if slots == 0:
            for work in group:
                hooks.done(work.address, StageError(infeasible_message(resources, found)))
        else:
            packed = packs(cohorts(group), slots)
            _run_packs(packed, resources, most_on_a_node(resources, found, len(packed)), hooks)


# -- in the driver -------------------------------------------------------------------------------


def _run_packs(
    packed: Sequence[Sequence[Work]], resources: Resources, sharing: int, hooks: Hooks
) -> None:
    """Start a trainer for each pack, and report its runs until all packs have ended."""
    running = []
    for works in packed:
        for work in works:  # delete the files of an earlier attempt
            for name in (RESULT, PROGRESS, STOP):
                work.scratch.delete(name)
        unreported = {work.address: work for work in works}
        limit = Limit.of(resources.together)
        pack = _Pack(works, resources, sharing, limit, unreported=unreported)
        pack.thread = threading.Thread(target=_fit, args=(pack,), daemon=True)
        pack.thread.start()
        running.append(pack)
    stop_by: float | None = None
    while running:
        time.sleep(POLL_SECONDS)
        if stop_by is None and hooks.stopping():
            stop_by = time.monotonic() + STOP_SECONDS
            _ask_to_stop(running)
        for pack in list(running):
            ended = pack.thread is None or not pack.thread.is_alive()
            _report(pack, hooks)  # after `ended` was read, so the last files are read too
            if ended:
                running.remove(pack)
                if stop_by is None:
                    _report_unfinished(pack, hooks)
        if stop_by is not None and time.monotonic() > stop_by:
            return  # the end of the Ray session ends the other workers


def _ask_to_stop(running: Sequence[_Pack]) -> None:
    for pack in running:
        pack.stopped = True
        for work in pack.unreported.values():
            work.scratch.write_json(STOP, {})


def _report(pack: _Pack, hooks: Hooks) -> None:
    """Report the results and the progress that the pack's workers have written."""
    for address, work in list(pack.unreported.items()):
        # Arrow reads a torn piece of an object that is replaced meanwhile: that is None here.
        result = records.find(work.scratch, RESULT, _Result)
        if result is not None:
            del pack.unreported[address]
            hooks.done(address, result.value())
            continue
        progress = records.find(work.scratch, PROGRESS, _Progress)
        if progress is not None:
            hooks.say(address, progress.share, progress.words)


def _report_unfinished(pack: _Pack, hooks: Hooks) -> None:
    for address in pack.unreported:
        error = pack.error or RuntimeError("its workers ended without a result")
        hooks.done(address, error)


def _fit(pack: _Pack) -> None:
    """Train a pack in this thread, and restart lost groups; keep a final error in `pack.error`."""
    budget = RestartBudget(pack.resources.max_failures)
    try:
        with _ray_train_folder(pack) as storage:
            while True:
                works, before = _unfinished(pack), nodes.ids()
                checkpoints = _newest_checkpoints(pack)
                if not works or pack.stopped:
                    return
                try:
                    _trainer(works, pack, storage).fit()
                    return
                except ray.train.WorkerGroupError as error:
                    errors = list(error.worker_failures.values())
                    if len(_unfinished(pack)) < len(works):
                        continue  # one of its runs has failed and left its result
                    why, most = too_many_together(errors), max(map(len, cohorts(works)))
                    if why is not None and pack.limit.most_of(most) > 1:
                        pack.limit = pack.limit.halved(most, why)
                        continue
                    pack.error = stage_error(errors)
                    if pack.error is not None:
                        return
                    gone = bool(before - nodes.ids())
                    progressed = _newest_checkpoints(pack) != checkpoints
                    if not budget.allows(errors, node_gone=gone, progressed=progressed):
                        pack.error = RuntimeError(giving_up_message(errors, budget.spent))
                        return
    except BaseException as error:  # the polling thread reports it
        pack.error = error


def _unfinished(pack: _Pack) -> list[Work]:
    """The runs without a result. The scratch of reported runs is deleted, with their results."""
    unreported = list(pack.unreported.values())
    return [work for work in unreported if not work.scratch.exists(RESULT)]


def _newest_checkpoints(pack: _Pack) -> set[tuple[str, str]]:
    """The newest checkpoint of each run without a result."""
    found = set()
    for work in _unfinished(pack):
        names = [name for name, _ in work.scratch.files() if name.startswith("checkpoint-")]
        found.add((work.address, max(names, default="")))
    return found


@contextlib.contextmanager
def _ray_train_folder(pack: _Pack) -> Iterator[str]:
    """A folder for Ray Train's own files, deleted at the end; our files are elsewhere.

    On a single node, a temporary folder; on several nodes, which must share it, a folder in the
    first run's scratch.
    """
    if len(nodes.alive()) == 1:
        with tempfile.TemporaryDirectory(prefix="nml-train-", ignore_cleanup_errors=True) as path:
            yield path
    else:
        shared = pack.works[0].scratch / "ray-train"
        try:
            yield shared.uri
        finally:
            shared.delete()


class _Trainer(DataParallelTrainer):
    """One whose workers read the shards themselves.

    It starts no process that would deal out data sets of Ray Data, which takes two seconds. Where
    another version of Ray calls the callback otherwise, that process starts as usual.
    """

    def _create_default_callbacks(self) -> list[Any]:
        usual = super()._create_default_callbacks()
        return [each for each in usual if type(each).__name__ != "DatasetsCallback"]


def _trainer(works: Sequence[Work], pack: _Pack, storage: str) -> DataParallelTrainer:
    resources = pack.resources
    per_worker = {"CPU": float(resources.cpus_per_worker)}
    if resources.gpus_per_worker:
        per_worker["GPU"] = resources.gpus_per_worker
    return _Trainer(
        _train_pack,
        backend_config=process_group.config(resources.workers),
        train_loop_config={"works": list(works), "sharing": pack.sharing, "limit": pack.limit},
        scaling_config=ray.train.ScalingConfig(
            num_workers=resources.workers,
            use_gpu=resources.gpus_per_worker > 0,
            resources_per_worker=per_worker,
        ),
        run_config=ray.train.RunConfig(
            name=_name(works),
            storage_path=storage,
            failure_config=ray.train.FailureConfig(max_failures=0),  # `_fit` counts
        ),
    )


def _name(works: Sequence[Work]) -> str:
    fingerprints = " ".join(work.fingerprint for work in works)
    digest = hashlib.sha256(fingerprints.encode()).hexdigest()
    return f"nml-{digest[:12]}-{uuid.uuid4().hex[:8]}"


# -- in each worker ------------------------------------------------------------------------------


def _train_pack(config: Mapping[str, Any]) -> None:
    """Train a pack's runs that have no result yet, cohort by cohort."""
    from ray.train.torch import get_device

    from jobs.pretrain.distributed import DistributedGroup
    from jobs.pretrain.loop import StoppedError
    from jobs.pretrain.prepare import Run
    from jobs.pretrain.run import train_runs

    context = ray.train.get_context()
    group = DistributedGroup(
        context.get_world_rank(),
        context.get_world_size(),
        get_device(),
        sharing=config["sharing"],
    )

    def ended(work: Work, result: Outcome | Exception) -> None:
        seconds = shares.end(work.address)
        if isinstance(result, Outcome):
            record = _Result(result.counts, result.metrics, seconds=seconds)
        elif isinstance(result, StageError):
            _write_failure(work, result)
            if group.world > 1:  # other workers may have no error and wait
                raise result
            return
        else:
            if group.world > 1:  # the others wait inside a step: end all
                raise result
            logging.getLogger(__name__).error("%s", work.address, exc_info=result)
            record = _Result({}, {}, Failure.of(result, work.address))
        if group.writes:
            work.scratch.write_json(RESULT, asdict(record))

    works: list[Work] = [work for work in config["works"] if not work.scratch.exists(RESULT)]
    for cohort in cohorts(works):
        shares = _Shares([work.address for work in cohort])
        runs = [Run(work, _Reporter(work).watch()) for work in cohort]
        try:
            train_runs(runs, ended, group, limit=config["limit"])
        except StoppedError:
            return


class _Shares:
    """The seconds of runs that train together: the time that passes is shared by those that run."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self._seconds = dict.fromkeys(addresses, 0.0)
        self._at = time.monotonic()

    def end(self, address: str) -> float:
        """A run has ended: its seconds."""
        now = time.monotonic()
        passed, self._at = now - self._at, now
        for other in self._seconds:
            self._seconds[other] += passed / len(self._seconds)
        return self._seconds.pop(address, 0.0)


def _write_failure(work: Work, error: StageError) -> None:
    """Write a failed run's result; if it cannot be written, raise the error itself."""
    try:
        result = _Result({}, {}, Failure.of(error, work.address))
        work.scratch.write_json(RESULT, asdict(result))
    except OSError:
        raise error from None


class _Reporter:
    """Writes a run's progress for the driver and reads its request to stop, twice a second."""

    def __init__(self, work: Work) -> None:
        self._scratch = work.scratch
        self._reported = self._checked = 0.0
        self._stop = False

    def watch(self) -> Any:
        from jobs.pretrain.loop import Watch

        return Watch(on_progress=self._report, stopping=self._stopping)

    def _report(self, share: float, words: str) -> None:
        if time.monotonic() - self._reported >= POLL_SECONDS:
            with contextlib.suppress(OSError):  # writing a checkpoint raises a clearer error
                self._scratch.write_json(PROGRESS, {"share": share, "words": words})
            self._reported = time.monotonic()

    def _stopping(self) -> bool:
        if time.monotonic() - self._checked >= POLL_SECONDS:
            self._stop = self._scratch.exists(STOP)
            self._checked = time.monotonic()
        return self._stop
