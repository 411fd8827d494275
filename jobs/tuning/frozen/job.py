"""Frozen cells on Ray: ID cells in trials of one Tune run, OOD evaluations as a few plain tasks.

Takes the tuning steps that read features; reports each result through `Hooks.done` as soon as the
step ends. A trial is a batch of ID cells over the same features. Cells that can train as one stack
(`siblings.py`) run together: Tune schedules batches, the stack does the arithmetic, and a cell
costs a share of a trial. While a stack trains, its trial reports its progress every few seconds.
Actors are reused, and keep the features that they read last. When a cell fails, its error is
reported and the others continue. Cells whose process died run once more, each in its own trial.
After the user asks to stop, no cell starts, and unfinished cells have no result. torch is imported
in the workers alone.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import ray
from ray import tune

from jobs.contract import Failure, Hooks, Outcome, StageError, Work
from jobs.remote import received, report_each
from jobs.tuning.draw import configurations_of
from jobs.tuning.frozen.siblings import sibling_key
from jobs.tuning.methods import GIVEN
from jobs.tuning.trained import step_of
from jobs.tuning.tune_run import LOST_WORKERS, QUIET, StopWhenAsked

if TYPE_CHECKING:
    from jobs.tuning.frozen.features import FeatureCache

_LONGEST = 32  # most stacks of a trial: all of them may run again if its process dies
_REPORT_S = 2.0  # between a trial's reports of progress
_SIBLINGS = 16  # most cells of a stack: their results come together
_BATCHES_A_PROCESS = 4  # many small batches: few processes wait for the last one


def run(works: Sequence[Work], hooks: Hooks) -> None:
    """Run every step and report each result. Ray must be up; any thread may call this."""
    evaluations = [work for work in works if "head" in work.inputs]
    fitting = [work for work in works if "head" not in work.inputs]
    if evaluations:
        _evaluate(evaluations, hooks)
    if fitting and not hooks.stopping():
        _fit(fitting, hooks)


# -- ID cells: one Tune run ------------------------------------------------------------------------


Batch = tuple[tuple[Work, ...], ...]
"""The work of one trial: groups of siblings, one after another."""


class _Trial(tune.Trainable):
    """An actor that runs one batch after another."""

    def setup(self, config: dict[str, Any], batches: tuple[Batch, ...] = ()) -> None:
        from jobs.tuning.frozen.allocator import keep_freed_memory
        from jobs.tuning.frozen.features import FeatureCache

        keep_freed_memory()
        self._batches = batches
        self._cache = FeatureCache()
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._left = list(self._batches[int(new_config["batch"])])
        self._running: _Running | None = None
        return True

    def step(self) -> dict[str, Any]:
        """Wait up to `_REPORT_S` for the current siblings; return new results and progress."""
        if self._running is None:
            self._running = _Running(self._left.pop(0), self._cache)
        running = self._running
        ended = running.wait(_REPORT_S)
        if ended:
            self._running = None
        results, share = running.new_results(), running.share
        left = [work.address for work in running.left]
        return {
            "done": ended and not self._left,
            "results": results,
            "running": left,
            "share": share,
        }

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Save nothing: a cell that was interrupted starts again."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """See `save_checkpoint`."""


class _Running:
    """Siblings that train in their own thread, so that their trial can report progress."""

    def __init__(self, works: Sequence[Work], cache: FeatureCache) -> None:
        self.left = list(works)  # without a result
        self.share = 0.0  # done of their work, 0 to 1
        self._cache = cache
        self._results: SimpleQueue[tuple[Work, Outcome | Failure]] = SimpleQueue()
        # A daemon thread ends with the trial's process: a stopped sweep does not wait for it.
        self._thread = threading.Thread(target=self._do, args=(works,), name="cells", daemon=True)
        self._thread.start()

    def wait(self, seconds: float) -> bool:
        """Wait for at most `seconds`; return whether all siblings have ended."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def new_results(self) -> list[tuple[str, Outcome | Failure]]:
        """The results since the last call, by address."""
        found = []
        while not self._results.empty():
            work, result = self._results.get()
            self.left.remove(work)
            found.append((work.address, result))
        return found

    def _do(self, works: Sequence[Work]) -> None:
        """Run the cells; an exception is the result of every cell that has none yet.

        Each has an equal share of the time: they train together.
        """
        begun, found = time.monotonic(), dict[str, Outcome | Failure]()
        try:
            for work, result in self._results_of(works):
                if isinstance(result, StageError):
                    found[work.address] = Failure.of(result, work.address)
                else:
                    found[work.address] = result
        except Exception as error:
            for work in works:
                found.setdefault(work.address, Failure.of(error, work.address))
        each = (time.monotonic() - begun) / len(works)
        for work in works:
            ended = found[work.address]
            self._results.put((work, ended.took(each) if isinstance(ended, Outcome) else ended))

    def _results_of(self, works: Sequence[Work]) -> Iterator[tuple[Work, Outcome | StageError]]:
        from jobs.tuning.frozen.cell import adapt, adapt_siblings

        if len(works) == 1:
            yield (
                works[0],
                adapt(works[0], configurations_of(works[0]), self._cache, self._set_share),
            )
        else:
            tried = [configurations_of(work) or () for work in works]
            yield from adapt_siblings(works, tried, self._cache, self._set_share)

    def _set_share(self, share: float) -> None:
        self.share = share


class _Results(tune.Callback):
    """Reports the results of each iteration as soon as Tune has them."""

    def __init__(self, batches: Sequence[Batch], hooks: Hooks) -> None:
        self._batches = batches
        self._hooks = hooks
        self.reported: set[str] = set()
        self.deaths: dict[str, str] = {}  # by address, of cells without a result

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune writes a copy of its settings, which is never restored

    def done(self, address: str, result: Outcome | BaseException) -> None:
        if address not in self.reported:
            self.reported.add(address)
            self._hooks.done(address, result)

    def _works(self, trial: Any) -> Iterator[Work]:
        for siblings in self._batches[int(trial.config["batch"])]:
            yield from siblings

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        for work in self._works(trial):
            self._hooks.say(work.address, 0.0, _describe_cell(work))

    def on_trial_result(
        self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        for work in self._works(trial):
            if work.address in result["running"]:
                share = result["share"]
                self._hooks.say(work.address, share, f"{share:.0%} of {_describe_cell(work)}")
        for address, own in result["results"]:
            self.done(address, received(own))

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        for work in self._works(trial):
            self.deaths[work.address] = f"the cell's process died: {trial.get_pickled_error()}"


def _describe_cell(work: Work) -> str:
    """A cell's configurations and epochs, for progress messages."""
    step = step_of(work)
    tried = step.method.tries(step.settings.configurations)
    words = "1 configuration" if tried == 1 else f"{tried} configurations"
    return words if step.method.head in GIVEN else f"{words}, {step.settings.epochs} epochs"


def _fit(works: Sequence[Work], hooks: Hooks) -> None:
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    left = list(works)
    for attempt in range(1 + LOST_WORKERS):
        batches = _batches(left) if attempt == 0 else [((work,),) for work in left]
        results = _Results(batches, hooks)
        last = attempt == LOST_WORKERS
        try:
            with tempfile.TemporaryDirectory(prefix="nml-tune-") as folder:
                _tuner(batches, results, StopWhenAsked(hooks), folder).fit()
        except Exception as error:
            for work in left:
                results.done(work.address, error)
        left = [work for work in left if work.address not in results.reported]
        if hooks.stopping() or not left:
            return
        for work in left:
            died = results.deaths.get(work.address)
            if last or died is None:
                reason = died or "Tune ended without a result"
                results.done(work.address, RuntimeError(reason))
        left = [work for work in left if work.address not in results.reported]


def _batches(works: Sequence[Work]) -> list[Batch]:
    """Batches of cells with the same features and resources, a few for each process."""
    families: dict[tuple[str, ...], list[Work]] = defaultdict(list)
    for work in sorted(works, key=lambda work: (work.inputs["features"].uri, work.address)):
        families[sibling_key(work)].append(work)
    least = min(step_of(work).settings.cpus for work in works)
    processes = max(1, int(ray.cluster_resources().get("CPU", 1)) // least)
    most = min(_SIBLINGS, -(-len(works) // (_BATCHES_A_PROCESS * processes)))
    together: dict[tuple[str, int, float], list[tuple[Work, ...]]] = defaultdict(list)
    for family in families.values():
        step = step_of(family[0])
        alike = family[0].inputs["features"].uri, step.settings.cpus, step.settings.gpus
        together[alike] += [
            tuple(family[first : first + most]) for first in range(0, len(family), most)
        ]
    stacks = sum(map(len, together.values()))
    size = min(_LONGEST, -(-stacks // (_BATCHES_A_PROCESS * processes)))
    return [
        tuple(group[first : first + size])
        for group in together.values()
        for first in range(0, len(group), size)
    ]


def _tuner(
    batches: Sequence[Batch], results: _Results, stop: StopWhenAsked, folder: str
) -> tune.Tuner:
    trainable = tune.with_parameters(_Trial, batches=tuple(batches))
    steps = [step_of(batch[0][0]) for batch in batches]
    needs = [
        {"CPU": float(step.settings.cpus)}
        | ({"GPU": step.settings.gpus} if step.settings.gpus else {})
        for step in steps
    ]

    def resources(config: dict[str, Any]) -> tune.PlacementGroupFactory:
        return tune.PlacementGroupFactory([needs[int(config["batch"])]])

    return tune.Tuner(
        tune.with_resources(trainable, resources),
        param_space={"batch": tune.grid_search(list(range(len(batches))))},
        tune_config=tune.TuneConfig(reuse_actors=True),
        run_config=tune.RunConfig(
            name="cells",
            storage_path=folder,
            verbose=0,
            callbacks=[results],
            stop=stop,
            failure_config=tune.FailureConfig(max_failures=0),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    )


# -- OOD cells: plain tasks ------------------------------------------------------------------------


def _evaluate(works: Sequence[Work], hooks: Hooks) -> None:
    """Run a task for the cells of each features folder; report its results when it ends."""
    groups: dict[str, list[Work]] = defaultdict(list)
    for work in works:
        groups[work.inputs["features"].uri].append(work)
    tasks = [(group, max(step_of(w).settings.cpus for w in group), 0) for group in groups.values()]
    report_each(_transfer, tasks, hooks)


def _transfer(work: Work) -> Outcome:
    from jobs.tuning.frozen.cell import transfer

    return transfer(work)
