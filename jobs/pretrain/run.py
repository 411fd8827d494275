"""One pre-training run in this process, from its inputs to its output folder.

Takes a step's work and this process's `DistributedGroup`; writes the encoder
(`jobs/encoders/encoder.py`), `curves.parquet` (metric: string, step: int64 in epochs, value:
float64) and the tables of `telemetry.py`, and gives the outcome. Writes checkpoints to the work's
scratch folder. It knows no Ray.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import pyarrow as pa
from torch import nn

from jobs.contract import Outcome, StageError, Work
from jobs.encoders import encoder
from jobs.images.transforms import needs_source_image
from jobs.pretrain.checkpoint import Checkpoints, Point
from jobs.pretrain.data.in_memory import MemorySource, load_part, part_fits_in_memory
from jobs.pretrain.data.noisy import noisy_targets
from jobs.pretrain.data.part import Part, Source, read_index
from jobs.pretrain.data.reader import lazy_part
from jobs.pretrain.data.streamed import StreamedSource
from jobs.pretrain.distributed import DistributedGroup
from jobs.pretrain.loop import Loop, Pace, Trained, Watch, deterministic_torch
from jobs.pretrain.objectives.contrastive import ContrastiveObjective
from jobs.pretrain.objectives.objective import Objective
from jobs.pretrain.objectives.supervised import SupervisedObjective
from jobs.pretrain.spec import Contrastive, PretrainStep, Recipe
from jobs.pretrain.telemetry import tables

CURVES = "curves.parquet"


@dataclass(frozen=True)
class _Prepared:
    """All that a run needs before its first batch."""

    objective: Objective
    classes: tuple[str, ...]
    validation: Part
    source: Source
    model: nn.Module
    initial_sha256: str
    dim: int


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
    step = cast(PretrainStep, work.spec)
    group, watch = group or DistributedGroup(), watch or Watch()
    with deterministic_torch(step.resources.cpus_per_worker):
        watch.on_progress(0.0, "reading the corpus")
        prepared = _prepare_together(work, step, group)
        checkpoints = Checkpoints(work.scratch)
        loop = Loop(
            prepared.model,
            prepared.objective,
            prepared.source,
            prepared.validation,
            checkpoints,
            schedule=step.recipe.schedule,
            model_input=step.recipe.image,
            augment=step.recipe.augment,
            seed=step.seed,
            group=group,
            resources=step.resources,
            on_nan=step.on_nan,
            max_damaged=step.max_damaged,
            telemetry_steps=step.telemetry_steps,
            pace=pace or Pace(minutes=step.checkpoint_minutes),
            watch=watch,
        )
        try:
            trained = loop.train()
        finally:
            checkpoints.wait()
        flipped = prepared.source.flipped_rows()
        final = prepared.objective.memorised(trained.model, *flipped, group)
        if group.writes:
            _write(work, prepared, trained, group)
    metrics = {point.metric: point.value for point in trained.curves} | dict(final)
    if trained.images_per_s:
        metrics["images_per_s"] = trained.images_per_s
    source = prepared.source
    return Outcome(
        counts={
            "rows": source.rows,
            "flipped": source.flipped,
            "rows_left_out_per_epoch": source.rows - source.steps_per_epoch * source.batch_size,
            "steps": trained.updates,
            "images": trained.updates * source.batch_size,
            "skipped_updates": trained.skipped,
            "damaged_checkpoints": checkpoints.damaged,
            **({"damaged_images": trained.damaged} if trained.damaged else {}),
            **({"fp16_overflows": trained.overflows} if trained.overflows else {}),
        },
        metrics={f"pretrain/{name}": value for name, value in metrics.items()},
    )


def _prepare_together(work: Work, step: PretrainStep, group: DistributedGroup) -> _Prepared:
    """Prepare on every worker; if one fails, all raise its error instead of waiting for it."""
    prepared, error = None, None
    try:
        prepared = _prepare(work, step, group)
    except StageError as raised:
        error = str(raised)
    error = group.first_error(error)
    if error is not None or prepared is None:
        raise StageError(error)
    return prepared


def _prepare(work: Work, step: PretrainStep, group: DistributedGroup) -> _Prepared:
    recipe, corpus = step.recipe, work.inputs["corpus"]
    index = read_index(corpus)
    if index.rows("validation") == 0:
        raise StageError(
            f"corpus {index.name} has no validation rows to evaluate a run on after each "
            f"epoch; give its parts.validation a share or a reader"
        )
    objective = _objective(recipe, index.classes, group)
    source = _source(work, step, objective, group)
    if part_fits_in_memory(
        corpus, "validation", recipe.image, step.resources.decoded_gb, group.sharing
    ):
        validation = load_part(corpus, "validation", recipe.image)
    else:
        threads = step.resources.cpus_per_worker
        validation = lazy_part(corpus, index, "validation", recipe.image, threads)
    model = objective.build(step.seed)
    return _Prepared(
        objective=objective,
        classes=index.classes,
        validation=validation,
        source=source,
        model=model,
        initial_sha256=hashlib.sha256(encoder.weights_bytes(model)).hexdigest(),
        dim=objective.architecture.feature_dim(model),
    )


def _source(
    work: Work, step: PretrainStep, objective: Objective, group: DistributedGroup
) -> Source:
    """The training part: in memory where the augmentation allows it and it fits, else streamed."""
    recipe, corpus, noise = step.recipe, work.inputs["corpus"], work.inputs["noise"]
    index, resources = read_index(corpus), step.resources
    batch_size, repeats = recipe.schedule.batch_size, recipe.schedule.repeats
    as_stored = not needs_source_image(recipe.augment)
    if as_stored and part_fits_in_memory(
        corpus, "train", recipe.image, resources.decoded_gb, group.sharing
    ):
        train = load_part(corpus, "train", recipe.image)
        targets = noisy_targets(train, noise, objective.field, objective.encode)
        return MemorySource(train, targets, seed=step.seed, batch_size=batch_size, repeats=repeats)
    return StreamedSource(
        corpus,
        index,
        noise,
        field=objective.field,
        encode=objective.encode,
        model_input=recipe.image,
        augment=recipe.augment,
        processes=resources.cpus_per_worker,
        seed=step.seed,
        batch_size=batch_size,
        repeats=repeats,
    )


def _objective(recipe: Recipe, classes: tuple[str, ...], group: DistributedGroup) -> Objective:
    if isinstance(recipe, Contrastive):
        return ContrastiveObjective(recipe, group)
    return SupervisedObjective(recipe, len(classes), group)


def _write(work: Work, prepared: _Prepared, trained: Trained, group: DistributedGroup) -> None:
    weights = encoder.weights_bytes(trained.model)
    architecture = prepared.objective.architecture
    card = encoder.EncoderCard(
        family=architecture.family,
        model=architecture.model,
        model_options=architecture.model_options,
        input=architecture.input,
        classes=prepared.classes,
        feature_dim=prepared.dim,
        initial_weights_sha256=prepared.initial_sha256,
        order_sha256=prepared.source.order_sha256(),
        weights_sha256=hashlib.sha256(weights).hexdigest(),
    )
    work.output.write_table(CURVES, _curves(trained.curves))
    for name, table in tables(trained.telemetry, group.device.type == "cuda").items():
        work.output.write_table(name, table)
    encoder.save(work.output, card, weights)


def _curves(points: Sequence[Point]) -> pa.Table:
    return pa.table(
        {
            "metric": pa.array([point.metric for point in points], pa.string()),
            "step": pa.array([point.step for point in points], pa.int64()),
            "value": pa.array([point.value for point in points], pa.float64()),
        }
    )
