"""Pre-training runs in this process, from their inputs to their output folders.

Takes the works of steps that differ in their noise alone, and this process's `DistributedGroup`;
trains them side by side (`cohort.py`), as many at once as asked or as memory holds. Writes for each
the encoder (`jobs/encoders/encoder.py`), `curves.parquet` (metric: string, step: int64 in epochs,
value: float64) and the tables of `telemetry.py`, and gives its outcome. Writes checkpoints to each
work's scratch folder. It knows no Ray.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import pyarrow as pa
from torch import nn

from jobs.contract import Outcome, StageError, Work
from jobs.encoders import encoder
from jobs.pretrain.checkpoint import Checkpoints, Point
from jobs.pretrain.cohort import Cohort, Result
from jobs.pretrain.data.part import Source
from jobs.pretrain.distributed import DistributedGroup
from jobs.pretrain.inputs import Inputs
from jobs.pretrain.kernels import torch_kernels
from jobs.pretrain.loop import Loop, Pace, Trained, Watch
from jobs.pretrain.nonfinite import explain_out_of_memory
from jobs.pretrain.objectives.objective import passes
from jobs.pretrain.prepare import (
    Initial,
    Member,
    Run,
    Shared,
    agreed,
    initials,
    most_together,
    share,
    source,
    with_noise,
)
from jobs.pretrain.restarts import Limit
from jobs.pretrain.telemetry import tables

CURVES = "curves.parquet"

Ended = Callable[[Work, Result], None]
"""Is called with how a run ended; may raise."""


def train_run(
    work: Work,
    group: DistributedGroup | None = None,
    watch: Watch | None = None,
    pace: Pace | None = None,
) -> Outcome:
    """Train a `PretrainStep` (inputs: `corpus`, `noise`) to its end and write its output.

    Resumes from the last checkpoint in `work.scratch`. Metrics are named `pretrain/...`. Those of
    flipped rows are absent where no row is flipped; of more than `in_memory.MOST_MEMORISED` flipped
    rows, memorisation is measured on a seeded sample. `pretrain/images_per_s` covers this process's
    steps, and is the only metric that is no function of the step. Raises StageError for errors that
    a retry cannot cure, `loop.StoppedError` when `watch` asks to stop.
    """
    results: list[Result] = []
    run = Run(work, watch or Watch())
    train_runs([run], lambda _, result: results.append(result), group, pace)
    if isinstance(results[0], Exception):
        raise results[0]
    return results[0]


def train_runs(
    runs: Sequence[Run],
    ended: Ended,
    group: DistributedGroup | None = None,
    pace: Pace | None = None,
    *,
    limit: Limit | None = None,
) -> None:
    """Train runs side by side, whose steps are equal and whose inputs differ in noise alone.

    Each ends as with `train_run`, and `ended` is called with it. `limit`: how many train at once;
    none: as many as memory holds. Raises `loop.StoppedError` when a watch asks to stop, and
    `restarts.TooManyTogetherError` when fewer must train at once.
    """
    step, group, limit = runs[0].step, group or DistributedGroup(), limit or Limit()
    pace = pace or Pace(minutes=step.checkpoint_minutes)
    with torch_kernels(step.resources, group.device):
        for run in runs:
            run.watch.on_progress(0.0, "reading the corpus")
        try:
            shared = agreed(lambda: share(step, runs[0].work, group), group)
            at_once = limit.most_of(len(runs))
            if at_once > 1 and limit.most is None:
                at_once = min(at_once, most_together(step, shared, group))
        except StageError as error:
            for run in runs:
                ended(run.work, error)
            return
        for piece in passes(len(runs), group.least(at_once)):
            remark = _remark(runs[piece], runs, limit)
            _train_piece(runs[piece], shared, group, pace, ended, remark)


def _remark(piece: Sequence[Run], runs: Sequence[Run], limit: Limit) -> str:
    """What messages of progress say about how many runs train at once, and why."""
    if len(runs) == 1:
        return ""
    if len(piece) == len(runs):
        return f", {len(runs)} runs side by side"
    return f", {len(piece)} of {len(runs)} runs side by side ({limit.why})"


def _train_piece(
    runs: Sequence[Run],
    shared: Shared,
    group: DistributedGroup,
    pace: Pace,
    ended: Ended,
    remark: str,
) -> None:
    """Train these runs at once; those whose noise cannot be used end before."""
    members = []
    for run in runs:
        try:
            members.append(agreed(partial(with_noise, run, shared), group))
        except StageError as error:
            ended(run.work, error)
    if not members:
        return
    try:
        piece = _Piece(members, shared, group, pace, remark)
    except StageError as error:
        for member in members:
            ended(member.run.work, error)
        return
    piece.train(ended)


class _Piece:
    """Runs that train at once, from their initial weights to their outputs."""

    def __init__(
        self,
        members: Sequence[Member],
        shared: Shared,
        group: DistributedGroup,
        pace: Pace,
        remark: str,
    ) -> None:
        """Raises StageError when the corpus or the recipe suits none of them.

        Raises TooManyTogetherError when memory does not suffice for all.
        """
        step = members[0].run.step
        self._per_pass = step.resources.images_per_pass or step.recipe.schedule.batch_size
        self._members, self._shared, self._group, self._step = members, shared, group, step
        # All of them together take the share of time for writing checkpoints.
        self._pace = replace(pace, time_share=pace.time_share / len(members))
        self._remark = remark

        def prepare() -> tuple[Source, list[Initial]]:
            return source(members, shared), initials(step, shared.objective, len(members))

        self._source, made = agreed(prepare, group)
        self._facts = [(one.sha256, one.dim) for one in made]
        self._checkpoints = [Checkpoints(member.run.work.scratch) for member in members]
        with explain_out_of_memory(group.world, self._per_pass, len(members)):
            self._loops = {at: self._loop(at, one.model) for at, one in enumerate(made)}

    def train(self, ended: Ended) -> None:
        """Train all to their ends, and tell `ended` how each ended."""
        step, objective, group = self._step, self._shared.objective, self._group
        loops, self._loops = self._loops, {}  # a run that has ended frees its memory
        try:
            Cohort(
                loops,
                self._source,
                self._shared.validation,
                objective,
                Inputs(
                    objective,
                    step.recipe.image,
                    step.recipe.augment,
                    seed=step.seed,
                    group=group,
                    resources=step.resources,
                ),
                group,
                images_per_pass=self._per_pass,
                finish=self._finish,
                ended=lambda at, result: ended(self._members[at].run.work, result),
            ).train()
        finally:
            for each in self._checkpoints:
                each.wait()

    def _loop(self, at: int, model: nn.Module) -> Loop:
        step = self._step
        return Loop(
            model,
            self._shared.objective,
            self._source,
            self._shared.validation,
            self._checkpoints[at],
            schedule=step.recipe.schedule,
            seed=step.seed,
            group=self._group,
            resources=step.resources,
            on_nan=step.on_nan,
            max_damaged=step.max_damaged,
            telemetry_steps=step.telemetry_steps,
            pace=self._pace,
            watch=self._members[at].run.watch,
            remark=self._remark,
        )

    def _finish(self, at: int, trained: Trained) -> Outcome:
        """Measure what the run has memorised, and write its output."""
        flipped = self._source.flipped_rows(at)
        final = self._shared.objective.memorised(trained.model, *flipped, self._group)
        if self._group.writes:
            self._write(at, trained)
        metrics = {point.metric: point.value for point in trained.curves} | dict(final)
        if trained.images_per_s:
            metrics["images_per_s"] = trained.images_per_s
        return _outcome(
            trained, metrics, self._source, self._source.flipped[at], self._checkpoints[at].damaged
        )

    def _write(self, at: int, trained: Trained) -> None:
        work, (initial_sha256, dim) = self._members[at].run.work, self._facts[at]
        weights = encoder.weights_bytes(trained.model)
        architecture = self._shared.objective.architecture
        card = encoder.EncoderCard(
            family=architecture.family,
            model=architecture.model,
            model_options=architecture.model_options,
            input=architecture.input,
            classes=self._shared.index.classes,
            feature_dim=dim,
            initial_weights_sha256=initial_sha256,
            order_sha256=self._source.order_sha256(),
            weights_sha256=hashlib.sha256(weights).hexdigest(),
            source=architecture.made_with,
        )
        work.output.write_table(CURVES, _curves(trained.curves))
        for name, table in tables(trained.telemetry, self._group.device.type == "cuda").items():
            work.output.write_table(name, table)
        encoder.save(work.output, card, weights)
        if architecture.source is not None:
            architecture.source.keep(work.output)


def _outcome(
    trained: Trained,
    metrics: Mapping[str, float],
    source: Source,
    flipped: int,
    damaged_checkpoints: int,
) -> Outcome:
    return Outcome(
        counts={
            "rows": source.rows,
            "flipped": flipped,
            "rows_left_out_per_epoch": source.rows - source.steps_per_epoch * source.batch_size,
            "steps": trained.updates,
            "images": trained.updates * source.batch_size,
            "skipped_updates": trained.skipped,
            "damaged_checkpoints": damaged_checkpoints,
            **({"damaged_images": trained.damaged} if trained.damaged else {}),
            **({"fp16_overflows": trained.overflows} if trained.overflows else {}),
        },
        metrics={f"pretrain/{name}": value for name, value in metrics.items()},
    )


def _curves(points: Sequence[Point]) -> pa.Table:
    return pa.table(
        {
            "metric": pa.array([point.metric for point in points], pa.string()),
            "step": pa.array([point.step for point in points], pa.int64()),
            "value": pa.array([point.value for point in points], pa.float64()),
        }
    )
