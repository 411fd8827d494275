"""Frozen cells on Ray: ID cells in trials of one Tune run, OOD evaluations as a few plain tasks.

Takes the tuning works that read features; answers each one through `Hooks.done` as soon as it ends.
A trial is a batch of ID cells over the same features. It does those together that can train as one
stack (`fit.sibling_key`): Tune schedules batches, the stack does the arithmetic, and a cell costs a
share of a trial. While a stack trains, its trial reports now and then how far it is. Actors are
reused, and keep the features they read last. A failing cell is answered with its error and the
others go on. Cells whose process died are done once more, each in a trial of its own. Once the user
asks to stop, no cell is started, and a cell that has not finished is not answered.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from queue import SimpleQueue
from typing import Any

import ray
from ray import tune

from jobs.contract import Hooks, Outcome, StageError, Work
from jobs.remote import answer_each, portable
from jobs.tuning.draw import configurations_of
from jobs.tuning.frozen.allocator import keep_freed_memory
from jobs.tuning.frozen.cell import adapt, adapt_siblings, transfer
from jobs.tuning.frozen.features import FeatureCache
from jobs.tuning.frozen.fit import sibling_key
from jobs.tuning.methods import GIVEN
from jobs.tuning.trained import step_of
from jobs.tuning.tune_run import LOST_WORKERS, QUIET, StopWhenAsked

_LONGEST = 32  # stacks of a trial at most: what is done again at worst if its process dies
_SAYS_S = 2.0  # how often a trial says how far its cells are
_SIBLINGS = 16  # cells of a stack at most: they are answered together
_BATCHES_A_PROCESS = 4  # so that the last ones to end leave few processes idle


def run(works: Sequence[Work], hooks: Hooks) -> None:
    """Do every work, and answer each one. Ray must be up; any thread may call this."""
    evaluations = [work for work in works if "head" in work.inputs]
    fitting = [work for work in works if "head" not in work.inputs]
    if evaluations:
        _evaluate(evaluations, hooks)
    if fitting and not hooks.stopping():
        _fit(fitting, hooks)


# -- ID cells: one Tune run ------------------------------------------------------------------------


Batch = tuple[tuple[Work, ...], ...]
"""What a trial does: the cells of one stack after those of another."""


class _Trial(tune.Trainable):
    """An actor that does one batch after another."""

    def setup(self, config: dict[str, Any], batches: tuple[Batch, ...] = ()) -> None:
        keep_freed_memory()
        self._batches = batches
        self._cache = FeatureCache()
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._left = list(self._batches[int(new_config["batch"])])
        self._doing: _Doing | None = None
        return True

    def step(self) -> dict[str, Any]:
        """What has been answered of the next siblings; how far the rest is if they take long."""
        if self._doing is None:
            self._doing = _Doing(self._left.pop(0), self._cache)
        doing = self._doing
        ended = doing.wait(_SAYS_S)
        if ended:
            self._doing = None
        answers, share = doing.new_answers(), doing.share
        left = [work.address for work in doing.left]
        return {"done": ended and not self._left, "answers": answers, "doing": left, "share": share}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """A cell has no state worth keeping: it is done again or not at all."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """See `save_checkpoint`."""


class _Doing:
    """Siblings, done in a thread of their own, so that their trial can say how far they are."""

    def __init__(self, works: Sequence[Work], cache: FeatureCache) -> None:
        self.left = list(works)  # not answered yet
        self.share = 0.0  # done of those
        self._cache = cache
        self._answers: SimpleQueue[tuple[Work, Outcome | BaseException]] = SimpleQueue()
        # It dies with the trial's process: a sweep that is stopped does not wait for it.
        self._thread = threading.Thread(target=self._do, args=(works,), name="cells", daemon=True)
        self._thread.start()

    def wait(self, seconds: float) -> bool:
        """Whether all has ended, after so many seconds at most."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def new_answers(self) -> list[tuple[str, Outcome | BaseException]]:
        """By address, those that came since this was last called."""
        found = []
        while not self._answers.empty():
            work, answer = self._answers.get()
            self.left.remove(work)
            found.append((work.address, answer))
        return found

    def _do(self, works: Sequence[Work]) -> None:
        """What is raised is the answer of all that have none, in a form that can travel."""
        left = list(works)
        try:
            for work, answer in self._answered(works):
                left.remove(work)
                self._answers.put((work, answer))
        except Exception as error:
            for work in left:
                self._answers.put((work, portable(error)))

    def _answered(self, works: Sequence[Work]) -> Iterator[tuple[Work, Outcome | StageError]]:
        if len(works) == 1:
            yield works[0], adapt(works[0], configurations_of(works[0]), self._cache, self._hear)
        else:
            tried = [configurations_of(work) or () for work in works]
            yield from adapt_siblings(works, tried, self._cache, self._hear)

    def _hear(self, share: float) -> None:
        self.share = share


class _Answers(tune.Callback):
    """Passes the answers of each iteration on, the moment Tune hears of them."""

    def __init__(self, batches: Sequence[Batch], hooks: Hooks) -> None:
        self._batches = batches
        self._hooks = hooks
        self.answered: set[str] = set()
        self.deaths: dict[str, str] = {}  # by address, of cells that were not answered

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune writes a copy of its settings, which nobody restores

    def done(self, address: str, answer: Outcome | BaseException) -> None:
        if address not in self.answered:
            self.answered.add(address)
            self._hooks.done(address, answer)

    def _works(self, trial: Any) -> Iterator[Work]:
        for siblings in self._batches[int(trial.config["batch"])]:
            yield from siblings

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        for work in self._works(trial):
            self._hooks.say(work.address, 0.0, _in_words(work))

    def on_trial_result(
        self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        for work in self._works(trial):
            if work.address in result["doing"]:
                share = result["share"]
                self._hooks.say(work.address, share, f"{share:.0%} of {_in_words(work)}")
        for address, answer in result["answers"]:
            self.done(address, answer)

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        for work in self._works(trial):
            self.deaths[work.address] = f"the cell's process died: {trial.get_pickled_error()}"


def _in_words(work: Work) -> str:
    """What a cell has to do."""
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
        answers = _Answers(batches, hooks)
        last = attempt == LOST_WORKERS
        try:
            with tempfile.TemporaryDirectory(prefix="nml-tune-") as folder:
                _tuner(batches, answers, StopWhenAsked(hooks), folder).fit()
        except Exception as error:
            for work in left:
                answers.done(work.address, error)
        left = [work for work in left if work.address not in answers.answered]
        if hooks.stopping() or not left:
            return
        for work in left:
            died = answers.deaths.get(work.address)
            if last or died is None:
                reason = died or "Tune ended without an answer"
                answers.done(work.address, RuntimeError(reason))
        left = [work for work in left if work.address not in answers.answered]


def _batches(works: Sequence[Work]) -> list[Batch]:
    """Works in batches that share features and needs, a few for each process that can run."""
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
    batches: Sequence[Batch], answers: _Answers, stop: StopWhenAsked, folder: str
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
            callbacks=[answers],
            stop=stop,
            failure_config=tune.FailureConfig(max_failures=0),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    )


# -- OOD cells: plain tasks ------------------------------------------------------------------------


def _evaluate(works: Sequence[Work], hooks: Hooks) -> None:
    """One task for the cells of each features folder; each is answered when its task ends."""
    groups: dict[str, list[Work]] = defaultdict(list)
    for work in works:
        groups[work.inputs["features"].uri].append(work)
    tasks = [(group, max(step_of(w).settings.cpus for w in group), 0) for group in groups.values()]
    answer_each(transfer, tasks, hooks)
