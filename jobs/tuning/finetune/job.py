"""Fine-tuning on Ray: each configuration is a trial, one Tune run has many cells, ASHA per cell.

Takes the tuning steps that train an encoder, with the configurations drawn for each; reports each
result through `Hooks.done` as soon as the step ends. A trial is one configuration of an ID cell,
and its steps are epochs. Under `halving` each cell has its own ASHA scheduler, which may stop a
trial at a rung; configurations of two cells are never compared. Trials are ordered by cell, actors
are reused, and an actor keeps the cell that it opened last. When the last trial of a cell has
ended, a task closes the cell.

A trial's state is written to the work's scratch after every epoch, so Tune writes no checkpoints. A
trial whose process died, or whose sweep was interrupted, reports its finished epochs again and
continues. When a cell fails, its error is reported and the others continue. After the user asks to
stop, no epoch starts, and unfinished cells have no result.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter, deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

from jobs.contract import Failure, Hooks, Outcome, Work
from jobs.remote import POLL_S, guarded, received, report_each
from jobs.tuning.trained import Configuration, step_of
from jobs.tuning.tune_run import LOST_WORKERS, QUIET, Drawn, StopWhenAsked

if TYPE_CHECKING:
    from jobs.tuning.finetune.cell import Cell
    from jobs.tuning.finetune.train import FineTuning


def run(works: Sequence[Work], drawn: Drawn, hooks: Hooks) -> None:
    """Run every step and report each result. Ray must be up; any thread may call this."""
    evaluations = [work for work in works if "head" in work.inputs]
    fitting = [work for work in works if "head" not in work.inputs]
    if evaluations:
        _evaluate(evaluations, hooks)
    if fitting and not hooks.stopping():
        _fit(fitting, drawn, hooks)


def _resources(work: Work) -> dict[str, float]:
    step = step_of(work)
    return {"CPU": float(step.settings.cpus), "GPU": float(step.settings.gpus)}


# -- in the workers --------------------------------------------------------------------------------


class _Trial(tune.Trainable):
    """An actor that trains one configuration after another, epoch by epoch."""

    def setup(
        self,
        config: dict[str, Any],
        works: tuple[Work, ...] = (),
        drawn: Drawn | None = None,
    ) -> None:
        self._works, self._drawn = works, drawn or {}
        self._cell: Cell | None = None
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._work = self._works[int(new_config["trial"]["cell"])]
        self._number = int(new_config["trial"]["configuration"])
        self._tuning: FineTuning | None = None
        self._reported = 0
        return True

    def step(self) -> dict[str, Any]:
        """Train and report one epoch, or report one that is already in scratch."""
        try:
            return self._epoch()
        except Exception as error:
            return {"done": True, "error": Failure.of(error, self._work.address)}

    def _epoch(self) -> dict[str, Any]:
        if self._tuning is None:
            if self._cell is None or self._cell.work.address != self._work.address:
                self._cell = None  # free one cell's images before reading those of the next
                from jobs.tuning.finetune.cell import Cell

                self._cell = Cell.open(self._work)
            configuration = self._drawn[self._work.address][self._number]
            self._tuning = self._cell.start(self._number, configuration)
        if self._reported == len(self._tuning.history):
            self._tuning.run_epoch()
            if self._cell is None:
                raise AssertionError("a configuration in training has a cell")
            self._cell.keep(self._number, self._tuning)
        numbers = self._tuning.history[self._reported]
        self._reported += 1
        ended = numbers.failed is not None or self._reported == step_of(self._work).settings.epochs
        # A failed configuration reports no score, so that it does not change a rung's cut-off.
        own = step_of(self._work).task.metric
        scored = {} if numbers.failed else {"score": numbers.by(own)}
        return {"done": ended, "epoch": self._reported, "error": None, **scored}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Save nothing: the state is in the work's scratch."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """See `save_checkpoint`."""


def _close_cell(work: Work, configurations: Sequence[Configuration]) -> Outcome | Failure:
    from jobs.tuning.finetune.cell import close

    return guarded(work.address, lambda: close(work, configurations))


# -- ID cells: one Tune run ------------------------------------------------------------------------


class _AshaByCell(FIFOScheduler):
    """Starts trials in order; the ASHA scheduler of each cell, if it has one, stops them."""

    def __init__(self, works: Sequence[Work]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._of = {number: _asha(work) for number, work in enumerate(works)}

    def _own(self, trial: Any) -> ASHAScheduler | None:
        return self._of[int(trial.config["trial"]["cell"])]

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        if own := self._own(trial):
            own.on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if own := self._own(trial):
            decision: str = own.on_trial_result(tune_controller, trial, result)
            return decision
        return str(FIFOScheduler.CONTINUE)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Do nothing: a trial that ended has already reported at each rung that it reached."""

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """See `on_trial_complete`."""


def _asha(work: Work) -> ASHAScheduler | None:
    step = step_of(work)
    if step.settings.halving is None or step.settings.halving.first >= step.settings.epochs:
        return None
    return ASHAScheduler(
        time_attr="epoch",
        metric="score",
        mode="max",
        max_t=step.settings.epochs,
        grace_period=step.settings.halving.first,
        reduction_factor=step.settings.halving.eta,
    )


class _Cells(tune.Callback):
    """Counts the open trials of each cell, closes it after the last, and reports its result."""

    def __init__(self, works: Sequence[Work], drawn: Drawn, hooks: Hooks) -> None:
        self._works, self._drawn, self._hooks = works, drawn, hooks
        self._open = {n: set(range(len(drawn[work.address]))) for n, work in enumerate(works)}
        self._epochs: dict[int, dict[int, int]] = {number: {} for number in self._open}
        self._to_close: deque[Work] = deque()
        self._closing: dict[ray.ObjectRef[Any], Work] = {}
        self._at_once = max(1, int(ray.cluster_resources().get("CPU", 1)))
        self._seconds: Counter[str] = Counter()  # of all trials, by the cell's address
        self.reported: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune writes a copy of its settings, which is never restored

    def done(self, work: Work, result: Outcome | BaseException) -> None:
        if work.address not in self.reported:
            self.reported.add(work.address)
            self._hooks.done(work.address, result)

    def on_trial_result(
        self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        cell = int(trial.config["trial"]["cell"])
        work = self._works[cell]
        self._seconds[work.address] += result["time_this_iter_s"]
        if result["error"] is not None:
            self.done(work, result["error"].as_error())
        left, number = self._open[cell], int(trial.config["trial"]["configuration"])
        if result["done"]:
            left.discard(number)
        if work.address in self.reported:
            return
        count, epochs = len(self._drawn[work.address]), step_of(work).settings.epochs
        # A trial that ended or was stopped at a rung counts as complete.
        self._epochs[cell][number] = epochs if result["done"] else result["epoch"]
        trained = sum(self._epochs[cell].values()) / (count * epochs)
        message = f"{count - len(left)} of {count} configurations, {epochs} epochs each"
        self._hooks.say(work.address, 0.95 * trained, message)
        if not left and result["done"]:
            self._to_close.append(work)

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        work = self._works[int(trial.config["trial"]["cell"])]
        self.done(work, RuntimeError(f"a trial's process died: {trial.get_pickled_error()}"))

    def on_step_end(self, iteration: int, trials: Any, **info: Any) -> None:
        self.collect(0)

    def collect(self, wait: float) -> bool:
        """Wait up to `wait` seconds, report closed cells, and return whether some still close."""
        # Closing is short and requests no CPU, because the trials of other cells use them all. As
        # many at once as there are CPUs: each may need a new process and the encoder in memory.
        while self._to_close and len(self._closing) < self._at_once:
            work = self._to_close.popleft()
            task = ray.remote(_close_cell).options(num_cpus=0, num_gpus=_resources(work)["GPU"])
            self._closing[task.remote(work, self._drawn[work.address])] = work
        if self._closing:
            waiting = list(self._closing)
            for reference in ray.wait(waiting, num_returns=len(waiting), timeout=wait)[0]:
                work = self._closing.pop(reference)
                try:
                    result = received(ray.get(reference))
                    if isinstance(result, Outcome):
                        result = result.took(self._seconds[work.address])
                    self.done(work, result)
                except ray.exceptions.RayError as error:
                    self.done(work, error)
        return bool(self._closing or self._to_close)


def _fit(works: Sequence[Work], drawn: Drawn, hooks: Hooks) -> None:
    ordered = sorted(works, key=lambda work: (work.inputs["encoder"].uri, work.address))
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    cells = _Cells(ordered, drawn, hooks)
    try:
        with tempfile.TemporaryDirectory(prefix="nml-tune-") as folder:
            _tuner(ordered, drawn, cells, StopWhenAsked(hooks), folder).fit()
        while cells.collect(POLL_S) and not hooks.stopping():
            pass
    except Exception as error:
        for work in ordered:
            cells.done(work, error)
    if not hooks.stopping():
        for work in ordered:
            cells.done(work, RuntimeError("Tune ended without a result"))


def _tuner(
    works: Sequence[Work], drawn: Drawn, cells: _Cells, stop: StopWhenAsked, folder: str
) -> tune.Tuner:
    trainable = tune.with_parameters(_Trial, works=tuple(works), drawn=dict(drawn))
    trials = [
        {"cell": cell, "configuration": number}
        for cell, work in enumerate(works)
        for number in range(len(drawn[work.address]))
    ]
    wanted = [_resources(work) for work in works]

    def resources(config: dict[str, Any]) -> tune.PlacementGroupFactory:
        return tune.PlacementGroupFactory([wanted[int(config["trial"]["cell"])]])

    return tune.Tuner(
        tune.with_resources(trainable, resources),
        param_space={"trial": tune.grid_search(trials)},
        tune_config=tune.TuneConfig(reuse_actors=True, scheduler=_AshaByCell(works)),
        run_config=tune.RunConfig(
            name="configurations",
            storage_path=folder,
            verbose=0,
            callbacks=[cells],
            stop=stop,
            failure_config=tune.FailureConfig(max_failures=LOST_WORKERS),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    )


# -- OOD cells: plain tasks ------------------------------------------------------------------------


def _evaluate(works: Sequence[Work], hooks: Hooks) -> None:
    """Run a task for each cell, and report its result."""
    needs = [(work, step_of(work)) for work in works]
    report_each(
        _transfer, [([work], step.settings.cpus, step.settings.gpus) for work, step in needs], hooks
    )


def _transfer(work: Work) -> Outcome:
    from jobs.tuning.finetune.cell import transfer

    return transfer(work)
