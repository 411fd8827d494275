"""Runs a cell that trains the encoder: open it, train its configurations, close it.

Takes a step's `Work` (inputs: `encoder` and `corpus`; for an OOD cell also `head`, the output of
the ID cell). Configurations train separately, possibly in different processes. After each epoch a
configuration's state is written to the work's scratch folder as one safetensors file; an
interrupted configuration continues from it. Closing the cell reads these files, selects on the
validation part, opens the test part once, and writes the cell's files (`jobs.tuning.schema`) and
the adapted encoder:

    ft     model.safetensors, encoder.json    a whole encoder, with its tokenizer if it has one
    lora   adapter.safetensors, adapter.json  only the adapters, for the cell's encoder

An OOD cell tests the adapted encoder and its head on its own rows, shifted if the task has a
shift. Nothing is trained there. Does not use Ray.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property

import safetensors.torch
import torch

from jobs import records
from jobs.contract import Outcome, StageError, Work
from jobs.corpus.shards import Index
from jobs.encoders.encoder import Encoder, load, save, weights_bytes
from jobs.extensions.spec import Extension
from jobs.overlap.compare import dropped
from jobs.storage.folder import AlteredError, Folder
from jobs.tasks.target import Metric
from jobs.tuning.budget import Budget
from jobs.tuning.class_mapping import ClassMapping
from jobs.tuning.finetune.inputs import Inputs, Source, TestInputs
from jobs.tuning.finetune.model import AdaptedEncoder
from jobs.tuning.finetune.train import (
    BrokenStateError,
    EpochNumbers,
    FineTuning,
    State,
    ViewSettings,
    evaluate,
    history_of,
    stacked,
)
from jobs.tuning.label_noise import corrupted
from jobs.tuning.rows import TaskClasses, TaskRows
from jobs.tuning.spec import EncoderTuning, TuneStep
from jobs.tuning.target import Target
from jobs.tuning.targets import target_of
from jobs.tuning.trained import (
    DROPPED,
    Configuration,
    Epoch,
    Fit,
    Selected,
    Trained,
    all_failed,
    step_of,
)
from jobs.tuning.write import Tested, read_head, record, record_transfer

ADAPTER = "adapter.safetensors"
ADAPTER_CARD = "adapter.json"


@dataclass(frozen=True)
class _AdapterCard:
    """The record beside an adapter's weights."""

    rank: int
    encoder_weights_sha256: str  # of the encoder that it adapts
    weights_sha256: str


@dataclass(frozen=True)
class Cell:
    """An open cell: its encoder and the rows selected for it."""

    work: Work
    step: TuneStep
    encoder: Encoder
    source: Source
    scope: str  # the corpus's name
    classes: TaskClasses
    training_rows: TaskRows
    validation_rows: TaskRows

    @staticmethod
    def open(work: Work) -> Cell:
        """Load the encoder and select the cell's rows. Raises StageError."""
        step, encoder, source, index = _open_inputs(work)
        classes = TaskClasses.of(step.task, index.classes)
        training = source.training_rows(step.task, classes, percent=step.fraction, seed=step.seed)
        validation = source.plain_rows("validation", step.task, classes)
        return Cell(work, step, encoder, source, index.name, classes, training, validation)

    @property
    def target(self) -> Target:
        """What the cell predicts."""
        return target_of(self.step.task, len(self.classes.names))

    @cached_property
    def training(self) -> Inputs:
        """The training rows with this cell's label noise; prepared when first used."""
        step, rows = self.step, self.training_rows
        if step.label_noise:
            noisy = corrupted(
                rows.labels.numpy(),
                rows.keys,
                classes=len(self.classes.names),
                percent=step.label_noise,
                seed=step.seed,
                scope=step.task.scope,
                among=step.label_noise_classes,
            )
            rows = replace(rows, labels=torch.from_numpy(noisy))
        return self.source.prepared("train", rows)

    @cached_property
    def validation(self) -> Inputs:
        """The validation rows; prepared when first used."""
        return self.source.prepared("validation", self.validation_rows)

    def start(self, number: int, configuration: Configuration) -> FineTuning:
        """A configuration, untrained or restored from its state in scratch."""
        seen, step = encoder_tuning_of(self.step), self.step
        tuning = FineTuning(
            AdaptedEncoder(self.encoder, step.method, self.target, step.seed, step.part),
            self.training,
            self.validation,
            configuration,
            Budget(
                step.settings.epochs,
                step.settings.batch_size,
                views=step.method.views,
                schedule=step.settings.schedule,
            ),
            ViewSettings(seen.views, self.scope, seen.precision),
            seed=step.seed,
        )
        # A configuration without a readable state is trained from the start.
        with suppress(FileNotFoundError, IsADirectoryError, BrokenStateError):
            tuning.restore(self.work.scratch.read_bytes(state_name(number)))
        return tuning

    def keep(self, number: int, tuning: FineTuning) -> None:
        """Write a configuration's state to scratch."""
        self.work.scratch.write_bytes(state_name(number), tuning.save())


def state_name(number: int) -> str:
    """The name of a configuration's state file in scratch."""
    return f"configuration-{number:04d}.safetensors"


def encoder_tuning_of(step: TuneStep) -> EncoderTuning:
    """The step's settings for training the encoder. Raises TypeError when it has none."""
    if step.encoder is None:
        raise TypeError(f"{step.method_name} does not train the encoder")
    return step.encoder


def _open_inputs(work: Work) -> tuple[TuneStep, Encoder, Source, Index]:
    step = step_of(work)
    torch.set_num_threads(step.settings.cpus)
    device = torch.device("cuda" if step.settings.gpus > 0 else "cpu")
    encoder = load(work.inputs["encoder"], device, encoder_tuning_of(step).source)
    corpus = work.inputs["corpus"]
    return step, encoder, Source(corpus, encoder, step.settings.cpus), Index.read(corpus)


# -- closing an ID cell ----------------------------------------------------------------------------


def close(work: Work, configurations: Sequence[Configuration]) -> Outcome:
    """Select one of the configurations in scratch, test it, and write the cell's files.

    Raises StageError when all configurations failed.
    """
    cell = Cell.open(work)
    histories = [
        history_of(work.scratch.read_bytes(state_name(n))) for n in range(len(configurations))
    ]
    chosen = select(histories, cell.step.task.metric, cell.step.settings.epochs)
    if chosen is None:
        raise all_failed(cell.step, "lr", [history[-1].failed for history in histories])
    state = State.read(work.scratch.read_bytes(state_name(chosen)))
    step = cell.step
    adapted = AdaptedEncoder(cell.encoder, step.method, cell.target, step.seed, step.part)
    adapted.load(state.encoder, state.head)
    selected = Selected(state.head, cell.classes.names)
    tested = _test(work, adapted, cell.source, selected, cell.classes)
    fit = Fit(
        shape=adapted.shape,
        classes=cell.classes,
        views=0 if cell.step.method.views == 0 else encoder_tuning_of(cell.step).views.count,
        training=cell.training_rows,
        validation=cell.validation_rows,
        configurations=configurations,
        trained=_as_trained(histories, cell.step, chosen, state.head),
        chosen=chosen,
    )
    outcome = record(work, fit, tested, selected)
    _write_adapted(work, adapted)
    return outcome


def select(histories: Sequence[Sequence[EpochNumbers]], metric: Metric, epochs: int) -> int | None:
    """The configuration with the best validation score by `metric` after all `epochs`.

    None when no configuration was trained to the end. Configurations that halving dropped are not
    compared, as in the stacked engine. Ties go to the lower validation loss, then to the lower
    index.
    """
    return min(
        (k for k, own in enumerate(histories) if own[-1].failed is None and len(own) == epochs),
        key=lambda k: (-histories[k][-1].by(metric), histories[k][-1].validation_loss, k),
        default=None,
    )


def _as_trained(
    histories: Sequence[Sequence[EpochNumbers]],
    step: TuneStep,
    chosen: int,
    head: Mapping[str, torch.Tensor],
) -> Trained:
    """The histories as the stacked engine's result type."""
    epochs = []
    for number in range(max(map(len, histories))):
        found = [history[min(number, len(history) - 1)] for history in histories]
        names = dict.fromkeys(name for epoch in found for name in epoch.train)

        def column(
            value: Callable[[EpochNumbers], float], found: list[EpochNumbers] = found
        ) -> torch.Tensor:
            return torch.tensor([value(epoch) for epoch in found], dtype=torch.float64)

        scores = stacked(found)
        train = {
            name: column(lambda epoch, name=name: epoch.train.get(name, float("nan")))  # type: ignore[misc]
            for name in names
        }
        loss = column(lambda epoch: epoch.validation_loss)
        epochs.append(Epoch(train, loss, scores, step.task.metric))
    trained_for = tuple(len(history) for history in histories)
    failures = tuple(history[-1].failed for history in histories)
    dropped = tuple(
        None if epochs_done == step.settings.epochs or failed else f"{DROPPED} {epochs_done}"
        for epochs_done, failed in zip(trained_for, failures, strict=True)
    )
    return Trained(tuple(epochs), failures, dropped, trained_for, chosen, head)


def _test(
    work: Work,
    adapted: AdaptedEncoder,
    source: Source,
    selected: Selected,
    classes: TaskClasses,
    mapping: ClassMapping | None = None,
) -> Tested:
    """Open the test part for the selected encoder and head, and score their predictions.

    `mapping`: the class mapping, where the head was trained on another task.
    """
    step, part = step_of(work), TestInputs(source)
    left_out = dropped(work.inputs["overlap"]) if step.drop_overlap else None
    inputs = part.open(selected, step.task, classes, left_out)
    loss, predicted = evaluate(adapted, inputs, encoder_tuning_of(step).precision, mapping)
    target = target_of(step.task, len(classes.names))
    scores = target.judge(inputs.labels, predicted[None])
    rows = inputs.rows
    table = target.predictions(rows.keys, rows.indices, rows.labels, predicted)
    return Tested(target, rows, predicted, table, scores, loss, part.reads, inputs.digest)


def _write_adapted(work: Work, adapted: AdaptedEncoder) -> None:
    """Write the adapted encoder to the cell's folder, its card last."""
    card = adapted.encoder.card
    if adapted.method.adapt == "ft":
        weights = weights_bytes(adapted.encoder.model)
        save(
            work.output,
            replace(card, weights_sha256=hashlib.sha256(weights).hexdigest()),
            weights,
            adapted.encoder.files,
        )
        return
    weights = safetensors.torch.save(adapted.state())
    work.output.write_bytes(ADAPTER, weights)
    work.output.write_json(
        ADAPTER_CARD,
        asdict(
            _AdapterCard(
                adapted.method.rank, card.weights_sha256, hashlib.sha256(weights).hexdigest()
            )
        ),
    )


# -- an OOD cell -----------------------------------------------------------------------------------


def transfer(work: Work) -> Outcome:
    """Test the encoder and head that an ID cell adapted and selected. Nothing is trained.

    Raises StageError when this cell needs another ID cell, or when its output is damaged.
    """
    step, encoder, source, index = _open_inputs(work)
    head = work.inputs["head"]
    shape, selected, trained = read_head(head, step)
    adapted = AdaptedEncoder(encoder, step.method, shape.target, step.seed, step.part)
    file = encoder_tuning_of(step).source
    adapted.load(_adapted_state(head, adapted, file), selected.state)
    classes = TaskClasses.of(step.task, index.classes)
    mapping = shape.target.mapping(step.task, classes.names, selected.classes)
    tested = _test(work, adapted, source, selected, classes, mapping)
    return record_transfer(work, trained, tested)


def _adapted_state(
    head: Folder, adapted: AdaptedEncoder, source: Extension | None
) -> Mapping[str, torch.Tensor]:
    """The adapted encoder's tensors in an ID cell's output. Raises StageError."""
    card = adapted.encoder.card
    try:
        if adapted.method.adapt == "ft":
            return load(head, source=source).model.state_dict()
        remedy = "delete that cell's folder and run it again"
        adapter = records.read(head, ADAPTER_CARD, _AdapterCard, remedy)
        weights = head.read_expected(ADAPTER, adapter.weights_sha256)
    except FileNotFoundError as error:
        raise StageError(
            f"{head.uri} holds no adapted encoder ({error}); run that cell again"
        ) from error
    except AlteredError:
        raise StageError(
            f"{head.uri}/{ADAPTER} is not the file that {ADAPTER_CARD} names; run that cell again"
        ) from None
    if adapter.encoder_weights_sha256 != card.weights_sha256:
        raise StageError(
            f"{head.uri} adapts another encoder, not {card.model} with weights "
            f"{card.weights_sha256[:12]}; run that cell again"
        )
    return safetensors.torch.load(weights)
