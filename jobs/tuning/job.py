"""The tuning stage on Ray: cells as trials of one Tune run, OOD evaluations as a few plain tasks.

Takes every tuning work that is ready; answers each through `Hooks.done` as soon as it ends. A trial
is an ID cell: all its configurations train inside it as one stack, so Tune schedules cells and the
stack does the arithmetic. Actors are reused, cells of the same features follow each other, and an
actor keeps the features it read last. A failing cell is answered with its error and the rest goes
on. Once the user asks to stop, no cell is started; a cell that was not finished is not answered.
Cells that train the encoder (`lora`, `ft`) are handed to `jobs.finetune`, which gives each
configuration a trial of its own.

The configurations are drawn here, on Tune's own domains, from the tuning seed and the name of each
hyper-parameter alone: all methods of a seed get the same number, and the same draws where their
domains agree; a larger budget begins with the smaller one's draws.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import traceback
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import ray
from ray import tune

from jobs.contract import Hooks, Outcome, StageError, Work
from jobs.finetune import job as finetune
from jobs.tuning.adapt import adapt, step_of, transfer
from jobs.tuning.data import FeatureCache
from jobs.tuning.spec import Choice, Domain, LogUniform, Space, Uniform
from jobs.tuning.stacked import Configuration

_LOST_WORKERS = 1  # times a cell is started again after the process it ran in has died
_POLL_S = 0.5  # how often a wait looks whether the user asked to stop

_QUIET = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # else three log files a trial
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # the caller decides what Ctrl-C means
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}


def run(works: Sequence[Work], hooks: Hooks) -> None:
    """Do every tuning work, and answer each one. Ray must be up; any thread may call this."""
    fitting: list[Work] = []
    evaluations: list[Work] = []
    on_images: list[Work] = []
    room = max(node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"])
    for work in works:
        if step_of(work).cpus > room:
            asked = step_of(work).cpus
            reason = f"{work.address}: asks for {asked} CPUs, the largest node has {room:g}"
            hooks.done(work.address, StageError(f"{reason}; lower its `cpus`"))
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
        finetune.run(on_images, {work.address: drawn(work) for work in on_images}, hooks)


def drawn(work: Work) -> tuple[Configuration, ...]:
    """The configurations of a work's cell."""
    step = step_of(work)
    return draw(step.method.space, step.configurations, step.seed)


# -- the search space ------------------------------------------------------------------------------


def draw(space: Space, configurations: int, seed: int) -> tuple[Configuration, ...]:
    """`configurations` points of a space, in an order that only the seed decides."""
    drawn = {
        name: _draw_one(getattr(space, name), configurations, seed, name)
        for name in Space.model_fields
    }
    return tuple(
        Configuration(
            lr=drawn["lr"][i],
            weight_decay=drawn["weight_decay"][i],
            mse=drawn["mse"][i] * drawn["scale"][i],
            cov=drawn["cov"][i] * drawn["scale"][i],
            svd=drawn["svd"][i] * drawn["scale"][i],
        )
        for i in range(configurations)
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
        case Choice(choice=values):
            sampled = tune.choice(list(values))
        case fixed:
            return [float(fixed)] * count
    return [float(sampled.sample(random_state=generator)) for _ in range(count)]


# -- ID cells: one Tune run ------------------------------------------------------------------------


class _Trial(tune.Trainable):
    """An actor that does one cell after another."""

    def setup(self, config: dict[str, Any], works: tuple[Work, ...] = ()) -> None:
        self._works = works
        self._cache = FeatureCache()
        self._cell = int(config["cell"])

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._cell = int(new_config["cell"])
        return True

    def step(self) -> dict[str, Any]:
        work = self._works[self._cell]
        return {"done": True, "answer": _answer(work, self._cache)}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """A cell has no state worth keeping: it is done again or not at all."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """See `save_checkpoint`."""


def _answer(work: Work, cache: FeatureCache | None) -> Outcome | BaseException:
    """Do one work; what it raises is its answer, in a form that can leave the process."""
    try:
        if cache is None:
            return transfer(work)
        return adapt(work, drawn(work), cache)
    except StageError as error:
        return error
    except Exception as error:
        answer = RuntimeError(f"{type(error).__name__}: {error}")
        answer.add_note("".join(traceback.format_exception(error)))
        return answer


class _Answers(tune.Callback):
    """Passes each trial's answer on, the moment Tune hears of it."""

    def __init__(self, works: Sequence[Work], hooks: Hooks) -> None:
        self._works = works
        self._hooks = hooks
        self.answered: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune writes a copy of its settings, which nobody restores

    def _work(self, trial: Any) -> Work:
        return self._works[int(trial.config["cell"])]

    def done(self, work: Work, answer: Outcome | BaseException) -> None:
        if work.address not in self.answered:
            self.answered.add(work.address)
            self._hooks.done(work.address, answer)

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        step = step_of(self._work(trial))
        words = f"{step.configurations} configurations, {step.epochs} epochs"
        self._hooks.say(self._work(trial).address, 0.0, words)

    def on_trial_result(
        self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        self.done(self._work(trial), result["answer"])

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        self.done(self._work(trial), RuntimeError(f"the cell's process died: {trial.error_msg}"))


class _Stop(tune.Stopper):
    """Ends the run once the user asked to."""

    def __init__(self, hooks: Hooks) -> None:
        self._hooks = hooks

    def __getstate__(self) -> dict[str, Any]:
        return {}  # as above

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._hooks.stopping()


def _fit(works: Sequence[Work], hooks: Hooks) -> None:
    ordered = sorted(works, key=lambda work: (work.inputs["features"].uri, work.address))
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    answers = _Answers(ordered, hooks)
    try:
        with tempfile.TemporaryDirectory(prefix="nml-tune-") as folder:
            _tuner(ordered, answers, _Stop(hooks), folder).fit()
    except Exception as error:
        for work in ordered:
            answers.done(work, error)
    if not hooks.stopping():
        for work in ordered:
            answers.done(work, RuntimeError(f"{work.address}: Tune ended without an answer"))


def _tuner(works: Sequence[Work], answers: _Answers, stop: _Stop, folder: str) -> tune.Tuner:
    trainable = tune.with_parameters(_Trial, works=tuple(works))
    cpus = [float(step_of(work).cpus) for work in works]

    def resources(config: dict[str, Any]) -> tune.PlacementGroupFactory:
        return tune.PlacementGroupFactory([{"CPU": cpus[int(config["cell"])]}])

    return tune.Tuner(
        tune.with_resources(trainable, resources),
        param_space={"cell": tune.grid_search(list(range(len(works))))},
        tune_config=tune.TuneConfig(reuse_actors=True),
        run_config=tune.RunConfig(
            name="cells",
            storage_path=folder,
            verbose=0,
            callbacks=[answers],
            stop=stop,
            failure_config=tune.FailureConfig(max_failures=_LOST_WORKERS),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    )


# -- OOD cells: plain tasks ------------------------------------------------------------------------


def _answer_all(works: Sequence[Work]) -> list[Outcome | BaseException]:
    return [_answer(work, None) for work in works]


def _evaluate(works: Sequence[Work], hooks: Hooks) -> None:
    """One task for the cells of each features folder; each is answered when its task ends."""
    groups: dict[str, list[Work]] = defaultdict(list)
    for work in works:
        groups[work.inputs["features"].uri].append(work)
    remote = ray.remote(_answer_all)
    waiting = {
        remote.options(num_cpus=max(step_of(w).cpus for w in group)).remote(group): group
        for group in groups.values()
    }
    while waiting:
        if hooks.stopping():
            for reference in waiting:
                ray.cancel(reference)
            return
        ended, _ = ray.wait(list(waiting), timeout=_POLL_S)
        for reference in ended:
            group = waiting.pop(reference)
            try:
                answers = ray.get(reference)
            except ray.exceptions.RayError as error:
                answers = [error] * len(group)
            for work, answer in zip(group, answers, strict=True):
                hooks.done(work.address, answer)
