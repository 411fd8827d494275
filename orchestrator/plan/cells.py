"""The cells that a plan has for each encoder, and what their methods need of it.

Takes an experiment, a task and a method; gives cells without their encoder, which all encoders with
the same tuning seeds share. What cannot be planned is a UserError.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product

from jobs.corpus.form import Modality
from jobs.encoders.api import ApiEncoder
from jobs.encoders.spec import GivenEncoder
from jobs.extensions.spec import Extension
from jobs.tasks.spec import Task
from jobs.tuning.spec import EncoderTuning, TuneStep
from orchestrator.errors import UserError
from orchestrator.experiment.model import Experiment
from orchestrator.step.address import CorpusAddress, PretrainedAddress, Trial


@dataclass(frozen=True)
class Cell:
    """A cell without its encoder. 50,000 cells share a few hundred specs this way."""

    trial: Trial  # of its address
    labels: Mapping[str, str | float | int]
    spec: TuneStep


def cells_of(
    experiment: Experiment,
    task: Task,
    name: str,
    seeds: tuple[int, ...],
    drops: bool,
    source: Extension | None = None,
    encoder_source: Extension | None = None,
) -> Iterator[Cell]:
    """The cells of a task and method with some tuning seeds, without their encoder.

    `source`: the extension that has the method's head; `encoder_source`: the one that has the
    function of the encoder, for a method that trains it.
    """
    tuning, method = experiment.tuning, experiment.tuning.methods[name]
    trains = method.trains_encoder
    encoder = _encoder_tuning(experiment, task, encoder_source) if trains else None
    _check_views(experiment, task, name)
    settings = tuning.settings(method)
    axes: tuple[tuple[float, ...], tuple[float, ...], tuple[int, ...]]
    axes = tuning.fractions, tuning.label_noise, seeds
    if method.head == "zero_shot":  # reads no training row, so one cell is enough
        axes = (max(tuning.fractions),), (0.0,), seeds[:1]
    for fraction, label_noise, seed in product(*axes):
        yield Cell(
            trial=Trial(name, fraction, label_noise, seed),
            labels={
                "task": task.name,
                "domain": task.domain,
                "method": name,
                "fraction": fraction,
                "label_noise": label_noise,
                "tuning_seed": seed,
            },
            spec=TuneStep(
                task=task,
                method_name=name,
                method=method,
                fraction=fraction,
                seed=seed,
                label_noise=label_noise,
                label_noise_classes=tuning.label_noise_classes if label_noise else "others",
                settings=settings,
                source=source,
                drop_overlap=drops,
                encoder=encoder,
            ),
        )


def encoder_inputs(task: Task, method: str, encoder: str | GivenEncoder) -> dict[str, str]:
    """The inputs of a method that trains the encoder itself; UserError if there is no encoder to
    train.
    """
    if isinstance(encoder, GivenEncoder) or task.corpus is None:
        whose = f"encoder {encoder.name}" if isinstance(encoder, GivenEncoder) else task.name
        raise UserError(
            f"tuning.methods.{method} trains the encoder itself, and {whose} gives features alone; "
            f"leave the method out"
        )
    return {"encoder": encoder, "corpus": str(CorpusAddress(task.scope))}


def check_api(experiment: Experiment, encoder: ApiEncoder) -> None:
    """Raise UserError for what an encoder behind an API cannot do: nobody here has its weights."""
    for name, method in experiment.tuning.methods.items():
        if method.trains_encoder:
            raise UserError(
                f"tuning.methods.{name} trains the encoder itself, and encoder {encoder.name} "
                f"stays behind an API; leave the method out, or put {encoder.name} in an "
                f"experiment of its own"
            )
    if experiment.features.views.of("text").count:
        raise UserError(
            f"features.views.mask hides tokens by an encoder's own tokenizer, and encoder "
            f"{encoder.name} stays behind an API; leave the mask out, or put {encoder.name} in an "
            f"experiment of its own"
        )


def zero_shot_encoder(experiment: Experiment, method: str, encoder: str | GivenEncoder) -> str:
    """The encoder whose text tower makes a zero-shot head; UserError if it has none."""
    pretrained = {str(PretrainedAddress(each.name)): each for each in experiment.encoders}
    if isinstance(encoder, str):
        known = pretrained.get(encoder)
        if known is None:  # trained here
            recipe = experiment.pretrain.recipe if experiment.pretrain else None
            reads = recipe is not None and recipe.objective == "contrastive"
        else:
            reads = known.kind == "open_clip" or getattr(known, "family", None) == "open_clip"
        if reads:
            return encoder
    whose = encoder if isinstance(encoder, str) else PretrainedAddress(encoder.name)
    raise UserError(
        f"tuning.methods.{method}: zero_shot needs an encoder with an image and a text tower "
        f"(open_clip), and {whose} is none; leave the method out"
    )


def modality_of(task: Task) -> Modality:
    """What the samples of a task are, which an encoder reads."""
    if task.modality is None:
        raise TypeError(f"task {task.name} has given features")
    return task.modality


def _check_views(experiment: Experiment, task: Task, name: str) -> None:
    """Raise UserError when a method wants more views of a text than there are."""
    views = experiment.tuning.methods[name].views
    if task.modality != "text" or not views:
        return
    count = experiment.features.views.of("text").count
    if views > count:
        raise UserError(
            f"tuning.methods.{name}.views is {views}, and task {task.name} has texts, of which "
            f"there are {count} views; set features.views.mask, or leave views out"
        )


def _encoder_tuning(experiment: Experiment, task: Task, source: Extension | None) -> EncoderTuning:
    """Views and precision as frozen methods get them from the features."""
    settings = experiment.features
    if settings.precision == "float16":
        raise UserError(
            "features.precision = float16: lora and ft cannot train in it without underflow; use "
            "bfloat16 or float32"
        )
    views = settings.views.of(modality_of(task))
    return EncoderTuning(views=views, precision=settings.precision, source=source)
