"""The tuning stage on Ray: cells in trials of one Tune run, OOD evaluations as a few plain tasks.

Takes every tuning work that is ready; answers each through `Hooks.done` as soon as it ends. A trial
is a batch of ID cells over the same features, and does those together that can train as one stack
(`fit.sibling_key`), so Tune schedules batches, the stack does the arithmetic, and a cell costs a
share of a trial. While a stack trains, its trial says now and then how far it is. Actors are
reused, and keep the features they read last. A failing cell is answered with its error and the rest
goes on; cells whose process died are done once more, each in a trial of its own. Once the user asks
to stop, no cell is started; a cell that was not finished is not answered.

Cells that train the encoder (`lora`, `ft`) are handed to `jobs.finetune`, which gives each
configuration a trial of its own.

The configurations are drawn here, on Tune's own domains, from the tuning seed and the name of each
hyper-parameter alone: all methods of a seed get the same number, and the same draws where their
domains agree; a larger budget begins with the smaller one's draws. A grid is every combination.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from queue import SimpleQueue
from typing import Any

import numpy as np
import ray
from ray import tune
from ray.tune.execution import class_cache

from jobs.contract import Failure, Hooks, Outcome, StageError, Work
from jobs.finetune import job as finetune
from jobs.remote import answer_each, received
from jobs.tuning.adapt import adapt, adapt_siblings, transfer
from jobs.tuning.allocator import keep_freed_memory
from jobs.tuning.data import FeatureCache
from jobs.tuning.fit import sibling_key, step_of
from jobs.tuning.search import configuration
from jobs.tuning.spec import (
    GIVEN,
    Choice,
    Domain,
    Grid,
    LogUniform,
    QUniform,
    RandInt,
    Space,
    Uniform,
)
from jobs.tuning.stacked import Configuration

_LOST_WORKERS = 1  # times a cell is started again after the process it ran in has died
_LONGEST = 32  # stacks of a trial at most: what is done again at worst if its process dies
_SAYS_S = 2.0  # how often a trial says how far its cells are
_SIBLINGS = 16  # cells of a stack at most: they are answered together
_BATCHES_A_PROCESS = 4  # so that the last ones to end leave few processes idle


def run(works: Sequence[Work], hooks: Hooks) -> None:
    """Do every tuning work, and answer each one. Ray must be up; any thread may call this."""
    _keep_keys()
    fitting: list[Work] = []
    evaluations: list[Work] = []
    on_images: list[Work] = []
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for work in works:
        refused = _no_room(work, nodes)
        if refused is not None:
            hooks.done(work.address, refused)
        elif step_of(work).method.reads_images:
            on_images.append(work)
        elif "head" in work.inputs:
            evaluations.append(work)
        else:
            fitting.append(work)
    if evaluations:
        _evaluate(evaluations, hooks)
    if fitting and not hooks.stopping():
        _fit(fitting, hooks)
    if on_images and not hooks.stopping():
        finetune.run(on_images, {work.address: _tried(work) or () for work in on_images}, hooks)


def _keep_keys() -> None:
    """Have Tune not pass this process's AWS keys on: it puts them into its actors' command lines.

    Every user of a node can list those. Workers have the node's own environment or rights.
    """
    passed_on = class_cache.ENV_VARS_TO_PROPAGATE
    passed_on -= {name for name in passed_on if name.startswith("AWS_")}


def _no_room(work: Work, nodes: Sequence[Mapping[str, float]]) -> StageError | None:
    """Why no node could ever run the work, if so."""
    for unit, asked in (("CPU", step_of(work).cpus), ("GPU", step_of(work).gpus)):
        room = max(node.get(unit, 0) for node in nodes)
        if asked > room:
            field = f"tuning.{unit.lower()}s"
            return StageError(
                f"{field}={asked:g}, but the cluster's largest node has {room:g} {unit}s; lower "
                f"it, or add a larger node"
            )
    return None


# -- the search space ------------------------------------------------------------------------------


def draw(space: Space, configurations: int, seed: int) -> tuple[Configuration, ...]:
    """`configurations` points of a space, in an order that only the seed decides.

    A space with grids gives each of its combinations instead, in the order of its fields.
    """
    grids = {n: domain.grid for n, domain in space.domains.items() if isinstance(domain, Grid)}
    count = math.prod(map(len, grids.values())) if grids else configurations
    drawn = {
        name: _draw_one(domain, count, seed, name)
        for name, domain in space.domains.items()
        if not isinstance(domain, Grid)
    }
    points = product(*grids.values()) if grids else iter([()] * count)
    return tuple(
        configuration(
            {n: values[i] for n, values in drawn.items()} | dict(zip(grids, point, strict=True))
        )
        for i, point in enumerate(points)
    )


def _draw_one(domain: Domain, count: int, seed: int, name: str) -> list[float]:
    """`count` draws of one hyper-parameter, from a stream of its own."""
    digest = hashlib.blake2b(json.dumps([seed, "space", name]).encode(), digest_size=8).digest()
    generator = np.random.default_rng(int.from_bytes(digest, "little"))
    match domain:
        case LogUniform(loguniform=(low, high)):
            sampled = tune.loguniform(low, high)
        case Uniform(uniform=(low, high)):
            sampled = tune.uniform(low, high)
        case QUniform(quniform=(low, high, step)):
            sampled = tune.quniform(low, high, step)
        case RandInt(randint=(least, limit)):
            sampled = tune.randint(least, limit)
        case Choice(choice=values) | Grid(grid=values):
            sampled = tune.choice(list(values))
        case fixed:
            return [float(fixed)] * count
    return [float(sampled.sample(random_state=generator)) for _ in range(count)]


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
        self._answers: SimpleQueue[tuple[Work, Outcome | Failure]] = SimpleQueue()
        # It dies with the trial's process: a sweep that is stopped does not wait for it.
        self._thread = threading.Thread(target=self._do, args=(works,), name="cells", daemon=True)
        self._thread.start()

    def wait(self, seconds: float) -> bool:
        """Whether all has ended, after so many seconds at most."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def new_answers(self) -> list[tuple[str, Outcome | Failure]]:
        """By address, those that came since this was last called."""
        found = []
        while not self._answers.empty():
            work, answer = self._answers.get()
            self.left.remove(work)
            found.append((work.address, answer))
        return found

    def _do(self, works: Sequence[Work]) -> None:
        """What is raised is the answer of all that have none."""
        left = list(works)
        try:
            for work, answer in self._answered(works):
                left.remove(work)
                if isinstance(answer, StageError):
                    self._answers.put((work, Failure.of(answer, work.address)))
                else:
                    self._answers.put((work, answer))
        except Exception as error:
            for work in left:
                self._answers.put((work, Failure.of(error, work.address)))

    def _answered(self, works: Sequence[Work]) -> Iterator[tuple[Work, Outcome | StageError]]:
        if len(works) == 1:
            yield works[0], adapt(works[0], _tried(works[0]), self._cache, self._hear)
        else:
            tried = [_tried(work) or () for work in works]
            yield from adapt_siblings(works, tried, self._cache, self._hear)

    def _hear(self, share: float) -> None:
        self.share = share


def _tried(work: Work) -> tuple[Configuration, ...] | None:
    """What a cell is to try; none when its own search asks, one batch after another."""
    step = step_of(work)
    if step.search == "optuna" and step.method.head != "zero_shot":
        return None
    return draw(step.method.space, step.configurations, step.seed)


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
            self.done(address, received(answer))

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        for work in self._works(trial):
            self.deaths[work.address] = f"the cell's process died: {trial.get_pickled_error()}"


def _in_words(work: Work) -> str:
    """What a cell has to do."""
    step = step_of(work)
    tried = step.method.tries(step.configurations)
    words = "1 configuration" if tried == 1 else f"{tried} configurations"
    return words if step.method.head in GIVEN else f"{words}, {step.epochs} epochs"


def _fit(works: Sequence[Work], hooks: Hooks) -> None:
    for name, value in finetune.QUIET.items():
        os.environ.setdefault(name, value)
    left = list(works)
    for attempt in range(1 + _LOST_WORKERS):
        batches = _batches(left) if attempt == 0 else [((work,),) for work in left]
        answers = _Answers(batches, hooks)
        last = attempt == _LOST_WORKERS
        try:
            with tempfile.TemporaryDirectory(prefix="nml-tune-") as folder:
                _tuner(batches, answers, finetune.StopWhenAsked(hooks), folder).fit()
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
    least = min(step_of(work).cpus for work in works)
    processes = max(1, int(ray.cluster_resources().get("CPU", 1)) // least)
    most = min(_SIBLINGS, -(-len(works) // (_BATCHES_A_PROCESS * processes)))
    together: dict[tuple[str, int, float], list[tuple[Work, ...]]] = defaultdict(list)
    for family in families.values():
        step = step_of(family[0])
        alike = family[0].inputs["features"].uri, step.cpus, step.gpus
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
    batches: Sequence[Batch], answers: _Answers, stop: finetune.StopWhenAsked, folder: str
) -> tune.Tuner:
    trainable = tune.with_parameters(_Trial, batches=tuple(batches))
    steps = [step_of(batch[0][0]) for batch in batches]
    needs = [
        {"CPU": float(step.cpus)} | ({"GPU": step.gpus} if step.gpus else {}) for step in steps
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
    tasks = [(group, max(step_of(w).cpus for w in group), 0) for group in groups.values()]
    answer_each(transfer, tasks, hooks)
