"""The pre-training stage on Ray Train: runs in packs, one worker group a pack.

Takes `PretrainStep` works (inputs: `corpus`, `noise`); each answers with its own outcome as soon
as it is finished. Starting a worker group costs more than a small run, so runs are packed: there
are as many packs as the cluster can hold worker groups at once, and a `TorchTrainer` trains the
runs of its pack one after another. Packing never bears on a result.

What is resumed is resumed from our own checkpoints in each work's scratch folder, not from Ray
Train's: those belong to a whole trainer, not to a run of a pack; they restart an epoch's data at
row 0 where ours go on at the next batch; and Ray Train takes them up by the trainer's name without
comparing any configuration. Ray Train keeps what it is good at: placing workers, their process
group, noticing a loss. A lost group is started anew with the runs that are not answered for yet
(`losses.py` says how often); Ray Train's own budget would count a preempted node as a failure. Its
trainer's name holds the pack's fingerprints and the attempt, so it never takes anything up itself.

A worker says how far a run is by small files in the run's scratch: `progress.json`, and, last,
`result.json`. The caller's thread polls for them, so that they may lie on any filesystem.
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
from dataclasses import dataclass, field
from typing import Any, cast

import ray
import ray.train
import ray.train.torch

from jobs.contract import Failure, Hooks, Outcome, StageError, Work
from jobs.pretrain.restarts import Budget, in_words, own_error
from jobs.pretrain.spec import PretrainStep, Resources
from jobs.storage.folder import Folder

RESULT = "result.json"
PROGRESS = "progress.json"
STOP = "stop.json"

POLL_SECONDS = 0.5
STOP_SECONDS = 12.0  # how long workers may take to write a last checkpoint

_SETTINGS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # how soon the end of a trainer is noticed
    "RAY_TRAIN_METRICS_ENABLED": "0",
}
_SETTINGS_OF_ONE_NODE = {
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # a process for each trainer, with nothing to see
}


@dataclass
class _Pack:
    """Runs that share a worker group, and the trainer's end once it has one."""

    works: Sequence[Work]
    resources: Resources
    sharing: int  # workers that may be on one node at once
    thread: threading.Thread | None = None
    error: BaseException | None = None
    stopped: bool = False
    unanswered: dict[str, Work] = field(default_factory=dict)


def run(works: Sequence[Work], hooks: Hooks) -> None:
    """Train every work, answering each apart; leaves those unanswered that a stop interrupts.

    Works whose resources the cluster cannot hold are refused with a StageError each.
    """
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    settings = _SETTINGS | (_SETTINGS_OF_ONE_NODE if len(_nodes()) == 1 else {})
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    by_resources: dict[Resources, list[Work]] = {}
    for work in works:
        by_resources.setdefault(cast(PretrainStep, work.spec).resources, []).append(work)
    for resources, group in by_resources.items():
        slots = _slots(resources, _nodes())
        if slots == 0:
            for work in group:
                hooks.done(work.address, StageError(_infeasible(resources)))
        elif not hooks.stopping():
            dealt = packs(group, slots)
            _run_packs(dealt, resources, _most_on_a_node(resources, _nodes(), len(dealt)), hooks)


def packs(works: Sequence[Work], slots: int) -> list[list[Work]]:
    """The works dealt out to at most `slots` packs, one by one in turn."""
    count = min(slots, len(works))
    return [list(works[first::count]) for first in range(count)]


# -- in the driver -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Node:
    """What one node of the cluster has."""

    cpus: float
    gpus: float


def _nodes() -> list[Node]:
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [Node(node.get("CPU", 0.0), node.get("GPU", 0.0)) for node in alive]


def _slots(resources: Resources, nodes: Sequence[Node]) -> int:
    """How many worker groups of these resources the cluster holds at once."""
    return sum(_workers(resources, node) for node in nodes) // resources.workers


def _most_on_a_node(resources: Resources, nodes: Sequence[Node], groups: int) -> int:
    """How many workers of that many groups one node may have to hold at once."""
    return min(groups * resources.workers, max(_workers(resources, node) for node in nodes))


def _workers(resources: Resources, node: Node) -> int:
    """How many workers a node holds at once."""
    fits = node.cpus // resources.cpus_per_worker
    if resources.gpus_per_worker:
        fits = min(fits, node.gpus // resources.gpus_per_worker)
    return int(fits)


def _infeasible(resources: Resources) -> str:
    nodes = _nodes()
    cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    gpu = f" and {resources.gpus_per_worker:g} GPUs" if resources.gpus_per_worker else ""
    return (
        f"pretrain.resources asks for {resources.workers} workers of "
        f"{resources.cpus_per_worker} CPUs{gpu} each, and the cluster's {len(nodes)} nodes have "
        f"{cpus:g} CPUs and {gpus:g} GPUs in all; lower pretrain.resources or add nodes"
    )


def _run_packs(
    dealt: Sequence[Sequence[Work]], resources: Resources, sharing: int, hooks: Hooks
) -> None:
    """Start a trainer for each pack and answer for its runs until all of them have ended."""
    running = []
    for works in dealt:
        for work in works:  # what an earlier attempt said is no answer to this one
            for name in (RESULT, PROGRESS, STOP):
                work.scratch.delete(name)
        pack = _Pack(works, resources, sharing, unanswered={work.address: work for work in works})
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
            _answer(pack, hooks)  # after the look at the thread: its last files are read
            if ended:
                running.remove(pack)
                if stop_by is None:
                    _answer_for_lost(pack, hooks)
        if stop_by is not None and time.monotonic() > stop_by:
            return  # the end of the Ray session ends what is left


def _ask_to_stop(running: Sequence[_Pack]) -> None:
    for pack in running:
        pack.stopped = True
        for work in pack.unanswered.values():
            work.scratch.write_json(STOP, {})


def _answer(pack: _Pack, hooks: Hooks) -> None:
    """Pass on what the pack's workers wrote since the last look."""
    for address, work in list(pack.unanswered.items()):
        result = _read(work.scratch, RESULT)
        if result is not None:
            del pack.unanswered[address]
            hooks.done(address, _result(result))
            continue
        progress = _read(work.scratch, PROGRESS)
        if progress is not None:
            hooks.say(address, progress["share"], progress["words"])


def _answer_for_lost(pack: _Pack, hooks: Hooks) -> None:
    for address in pack.unanswered:
        error = pack.error or RuntimeError("its workers ended without a result")
        hooks.done(address, error)


def _read(folder: Folder, name: str) -> Any | None:
    """What a worker last wrote; none while it wrote nothing, or is just writing it anew: of an
    object that is replaced between being measured and being fetched, Arrow gives a torn piece.
    """
    try:
        return folder.read_json(name)
    except (FileNotFoundError, ValueError):
        return None


def _result(stored: Mapping[str, Any]) -> Outcome | BaseException:
    if "failure" in stored:
        return Failure.from_json(stored["failure"]).as_error()
    return Outcome(counts=stored["counts"], metrics=stored["metrics"])


def _fit(pack: _Pack) -> None:
    """Train a pack in this thread, again after a loss; an error that stays is kept with it."""
    budget = Budget(pack.resources.max_failures)
    try:
        with _bookkeeping(pack) as storage:
            while True:
                works, nodes, before = _left(pack), _node_ids(), _how_far(pack)
                if not works or pack.stopped:
                    return
                try:
                    _trainer(works, pack, storage).fit()
                    return
                except ray.train.WorkerGroupError as error:
                    errors = list(error.worker_failures.values())
                    if len(_left(pack)) < len(works):
                        continue  # one of its runs has failed by itself, and said so
                    pack.error = own_error(errors)
                    if pack.error is not None:
                        return
                    gone, further = bool(nodes - _node_ids()), _how_far(pack) != before
                    if not budget.allows(errors, node_gone=gone, further=further):
                        pack.error = RuntimeError(in_words(errors, budget.spent))
                        return
    except BaseException as error:  # the polling thread answers with it
        pack.error = error


def _left(pack: _Pack) -> list[Work]:
    """The runs without a result. Those answered for are gone from their scratch, result and all."""
    left = list(pack.unanswered.values())
    return [work for work in left if not work.scratch.exists(RESULT)]


def _how_far(pack: _Pack) -> set[tuple[str, str]]:
    """The newest checkpoint of each run without a result."""
    found = set()
    for work in _left(pack):
        names = [name for name, _ in work.scratch.files() if name.startswith("checkpoint-")]
        found.add((work.address, max(names, default="")))
    return found


def _node_ids() -> set[str]:
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


@contextlib.contextmanager
def _bookkeeping(pack: _Pack) -> Iterator[str]:
    """Where Ray Train keeps its own files: nothing of ours lies there.

    A temporary folder on a single node; on several, which must all see it, a folder in the first
    run's scratch, which goes with it.
    """
    if len(_nodes()) == 1:
        with tempfile.TemporaryDirectory(prefix="nml-train-", ignore_cleanup_errors=True) as path:
            yield path
    else:
        shared = pack.works[0].scratch / "ray-train"
        try:
            yield shared.uri
        finally:
            shared.delete()


def _trainer(works: Sequence[Work], pack: _Pack, storage: str) -> ray.train.torch.TorchTrainer:
    resources = pack.resources
    each = {"CPU": float(resources.cpus_per_worker)}
    if resources.gpus_per_worker:
        each["GPU"] = resources.gpus_per_worker
    return ray.train.torch.TorchTrainer(
        _train_pack,
        train_loop_config={"works": list(works), "sharing": pack.sharing},
        scaling_config=ray.train.ScalingConfig(
            num_workers=resources.workers,
            use_gpu=resources.gpus_per_worker > 0,
            resources_per_worker=each,
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
    """Train a pack's runs that have no result yet, one after another."""
    from jobs.pretrain.distributed import Group
    from jobs.pretrain.loop import StoppedError
    from jobs.pretrain.run import train_run

    context = ray.train.get_context()
    group = Group(
        context.get_world_rank(),
        context.get_world_size(),
        ray.train.torch.get_device(),
        sharing=config["sharing"],
    )
    works: list[Work] = [work for work in config["works"] if not work.scratch.exists(RESULT)]
    for work in works:
        try:
            outcome = train_run(work, group, _Reporter(work).watch())
            result: dict[str, Any] = {
                "counts": dict(outcome.counts),
                "metrics": dict(outcome.metrics),
            }
        except StoppedError:
            return
        except StageError as error:
            _write_failure(work, error)
            if group.world > 1:  # it may be this worker's alone, and the others wait for it
                raise
            continue
        except Exception as error:
            if group.world > 1:  # the others wait in the middle of a step: only all can end
                raise
            logging.getLogger(__name__).exception("%s", work.address)
            result = {"failure": Failure.of(error, work.address).as_json()}
        if group.writes:
            work.scratch.write_json(RESULT, result)


def _write_failure(work: Work, error: StageError) -> None:
    """Leave a failed run's result; where there is no room for it, let the error tell it."""
    failure = Failure.of(error, work.address)
    try:
        work.scratch.write_json(RESULT, {"failure": failure.as_json()})
    except OSError:
        raise error from None


class _Reporter:
    """A run's way to the driver: its progress out, the wish to stop in, each twice a second."""

    def __init__(self, work: Work) -> None:
        self._scratch = work.scratch
        self._said = self._looked = 0.0
        self._stop = False

    def watch(self) -> Any:
        from jobs.pretrain.loop import Watch

        return Watch(say=self._say, stopping=self._stopping)

    def _say(self, share: float, words: str) -> None:
        if time.monotonic() - self._said >= POLL_SECONDS:
            with contextlib.suppress(OSError):  # a checkpoint will say so, in better words
                self._scratch.write_json(PROGRESS, {"share": share, "words": words})
            self._said = time.monotonic()

    def _stopping(self) -> bool:
        if time.monotonic() - self._looked >= POLL_SECONDS:
            self._stop = self._scratch.exists(STOP)
            self._looked = time.monotonic()
        return self._stop
