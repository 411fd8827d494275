"""The settings of pre-training in an experiment file, and the spec of its step.

Every field of a recipe is semantic. Resources are not: the batch is the global one, for any number
of workers.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, JsonValue, model_validator

from jobs.contract import NOT_SEMANTIC, SILENT, Slug, Spec
from jobs.encoders import catalogue
from jobs.encoders.templates import Template
from jobs.extensions.spec import Extension, extension_of
from jobs.images.spec import Augment, ImageInput, Share


class Schedule(Spec):
    """Optimizer and length of a pre-training run.

    Biases and norms have no weight decay, by timm's rule in supervised models and by open_clip's in
    contrastive ones.
    """

    epochs: int = Field(ge=1, description="passes over the training part")
    batch_size: int = Field(ge=1, description="global: over all workers and accumulated steps")
    repeats: int = Field(
        1,
        ge=1,
        description="repeated augmentation: adjacent copies of an image in a batch, each with its "
        "own augmentation; an epoch keeps its length, so it has fewer different images",
    )
    optimizer: Literal["sgd", "adamw", "lamb"] = Field("adamw", description="the update rule")
    lr: float = Field(gt=0, description="the learning rate after the warm-up")
    weight_decay: float = Field(0.0, ge=0, description="of all weights but biases and norms")
    momentum: float = Field(0.9, ge=0, lt=1, description="of sgd (Nesterov)")
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = Field(
        (0.9, 0.999), description="of adamw and lamb"
    )
    eps: float | None = Field(None, gt=0, description="of adamw and lamb; none: timm's own")
    warmup_epochs: float = Field(
        0.0, ge=0, description="epochs in which lr rises to its full value"
    )
    warmup_lr: float | None = Field(
        None, ge=0, description="at the start of the warm-up; none: lr / 100"
    )
    min_lr: float = Field(0.0, ge=0, description="at the end of the cosine")
    cosine: Literal["from_start", "after_warmup"] = Field(
        "from_start",
        description="where the cosine begins: with the warm-up, as in timm, or after it",
    )
    clip_grad_norm: float | None = Field(
        None, gt=0, description="gradients are scaled down to this norm; none: they are not"
    )
    ema_decay: float | None = Field(
        None, gt=0, lt=1, description="evaluate and store the weights' moving average instead"
    )
    ema_warmup: bool = Field(
        False, description="timm's warm-up of the average: faster at the start"
    )
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="of autocast; weights and optimizer stay fp32; fp16 scales the loss"
    )

    @model_validator(mode="after")
    def _check_warmup(self) -> Schedule:
        if self.warmup_epochs > self.epochs:
            raise ValueError(
                f"warmup_epochs {self.warmup_epochs:g} is longer than the training of "
                f"{self.epochs} epochs, which would end before it reaches lr; shorten it"
            )
        return self


class Mix(Spec):
    """Mixup and CutMix of images and (noisy) labels, timm's.

    Images are mixed within fixed groups of the global batch. Each group's draw comes from the seed,
    the update and the group's number, so pairs are the same at every noise level and for every
    number of workers. Each worker must take whole groups.
    """

    mixup: float = Field(0, ge=0, description="alpha of the beta distribution; 0: none")
    cutmix: float = Field(0, ge=0, description="alpha of the beta distribution; 0: none")
    prob: Share = Field(1, description="probability that a group is mixed")
    switch_prob: Share = Field(0.5, description="probability of cutmix when both are on")
    mode: Literal["batch", "pair", "elem"] = Field(
        "batch", description="one draw for each group, pair or image"
    )
    group: int = Field(64, ge=2, multiple_of=2, description="images; must divide the batch")

    @property
    def on(self) -> bool:
        """Whether anything is mixed."""
        return self.prob > 0 and (self.mixup > 0 or self.cutmix > 0)


class Supervised(Spec):
    """A model trained with cross-entropy, or binary cross-entropy, on the (noisy) labels."""

    objective: Literal["supervised"] = "supervised"
    name: Slug = Field(description="the recipe's name in addresses and tables")
    model: str = Field(
        description="a timm model name, or a function of an extension, as in my_models:small_cnn"
    )
    model_options: dict[str, JsonValue] = Field(
        default_factory=dict,
        description="timm's: drop_path_rate, drop_rate, ...; the arguments of an extension's "
        "function",
    )
    image: ImageInput = Field(ImageInput(), description="how an image becomes the encoder's input")
    augment: Augment = Field(Augment(), description="random changes of the training images")
    mix: Mix = Field(Mix(), description="mixup and CutMix")
    schedule: Schedule = Field(description="optimizer and length of the training")
    loss: Literal["ce", "bce"] = Field(
        "ce", description="ce: cross-entropy; bce: binary cross-entropy of each class"
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="share of a target that is spread over all classes"
    )
    bce_threshold: float | None = Field(
        None, gt=0, lt=1, description="of bce: mixed targets above it count as 1, others as 0"
    )

    @model_validator(mode="after")
    def _check_mix_and_loss(self) -> Supervised:
        if self.mix.on and self.schedule.batch_size % self.mix.group:
            raise ValueError(
                f"mix.group {self.mix.group} does not divide schedule.batch_size "
                f"{self.schedule.batch_size}; choose an even divisor of it"
            )
        if self.bce_threshold is not None and self.loss != "bce":
            raise ValueError("bce_threshold belongs to loss: bce; remove it or set the loss")
        return self

    @property
    def extension(self) -> str | None:
        """The extension that has the model's function; None for a model of timm's."""
        return extension_of(self.model)

    def model_fault(self) -> str | None:
        """What is wrong with the model's name, and the nearest names; None when timm knows it."""
        return None if self.extension else catalogue.check_timm(self.model)


class Contrastive(Spec):
    """An open_clip model trained with its contrastive loss on images and (noisy) captions."""

    objective: Literal["contrastive"] = "contrastive"
    name: Slug = Field(description="the recipe's name in addresses and tables")
    model: str = Field(description="an open_clip model name, or a label for `model_options`")
    model_options: dict[str, JsonValue] = Field(
        default_factory=dict, description="an open_clip model configuration given in place"
    )
    image: ImageInput = Field(ImageInput(), description="how an image becomes the encoder's input")
    augment: Augment = Field(Augment(), description="random changes of the training images")
    schedule: Schedule = Field(description="optimizer and length of the training")
    templates: tuple[Template, ...] = Field(
        ("a photo of a {}.",), min_length=1, description="for zero-shot evaluation by class name"
    )

    @model_validator(mode="after")
    def _check_repeats(self) -> Contrastive:
        if self.schedule.repeats > 1:
            raise ValueError(
                "schedule.repeats would contrast a caption with its own copies in a batch; leave "
                "it out of a contrastive recipe"
            )
        return self

    def model_fault(self) -> str | None:
        """What is wrong with the model; None when open_clip can build it for CLIP's loss."""
        return catalogue.check_open_clip(self.model, self.model_options)


Recipe = Annotated[Supervised | Contrastive, Field(discriminator="objective")]


class Resources(Spec):
    """The resources of each pre-training run. They never affect the result's identity.

    Layout and compilation are here because, like the number of workers, they compute the same
    function: results may differ in rounding, not in meaning.
    """

    workers: int = Field(1, ge=1, description="processes that train a run together")
    cpus_per_worker: int = Field(1, ge=1, description="CPUs of each; they decode and augment too")
    gpus_per_worker: float = Field(0, ge=0, description="GPUs of each; 0: it trains on CPUs")
    images_per_pass: int | None = Field(
        None,
        ge=1,
        description="most images in one pass of a worker; its share of the batch is accumulated "
        "over several passes of equal size; none: one pass",
    )
    channels_last: bool = Field(
        False, description="memory layout of images and weights for tensor cores"
    )
    compile: bool = Field(False, description="torch.compile: pays off in long runs of equal steps")
    decoded_gb: float | None = Field(
        None,
        ge=0,
        description="most memory for a worker's decoded images; a larger part of a corpus is read "
        "and decoded again in each epoch; none: the worker's share of the free memory",
    )
    together: Literal["auto"] | Annotated[int, Field(ge=1)] = Field(
        "auto",
        description="most runs that differ in noise alone that a worker group trains side by side, "
        "from images read and decoded once; auto: as many as memory holds",
    )
    deterministic: bool = Field(
        True,
        description="on a GPU: kernels that give the same bytes twice, some of them slower; a CPU "
        "always has them",
    )
    max_failures: int = Field(
        3,
        ge=0,
        description="most restarts after errors of the training and lost workers without progress",
    )


OnNan = Literal["stop", "skip"]
"""What happens at a loss that is not finite. `skip` skips the update and counts it, up to ten in a
row. Not semantic: a run that finishes under `stop` had no such loss, so `skip` gives the same."""


class PretrainSettings(Spec):
    """What every run of an experiment has in common."""

    recipe: Recipe = Field(description="what is trained, and how")
    checkpoint_minutes: Annotated[float, NOT_SEMANTIC] = Field(
        10, gt=0, description="minutes between two checkpoints, from which a killed run continues"
    )
    telemetry_steps: Annotated[int, NOT_SEMANTIC] = Field(
        50, ge=1, description="updates between two points of loss, speed, ... over a run"
    )
    on_nan: Annotated[OnNan, NOT_SEMANTIC] = Field(
        "stop",
        description="at a loss that is not finite: stop the run, or skip the update and count it, "
        "up to ten in a row",
    )
    max_damaged: Annotated[int, NOT_SEMANTIC] = Field(
        10,
        ge=0,
        description="most images of a run that cannot be decoded; they are grey, and counted",
    )
    resources: Annotated[Resources, NOT_SEMANTIC] = Field(
        Resources(), description="what each run may use"
    )


class Pretrain(PretrainSettings):
    """The pre-training section of an experiment file."""

    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (0,), min_length=1, description="one replicate each; three give intervals and verdicts"
    )

    @model_validator(mode="after")
    def _check_seeds(self) -> Pretrain:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("one of seeds is given twice; name each once")
        return self


class PretrainStep(PretrainSettings):
    """One encoder: one recipe, one noise level (an input step), one seed."""

    # 2: weight decay of contrastive models by open_clip's rule; one order in memory and streamed
    # 3: torch scales crops, to within 1 of 255 of Pillow's
    protocol: ClassVar[int] = 4

    seed: int
    source: Annotated[Extension | None, SILENT] = None  # the file that has the model's function

    def circumstances(self) -> dict[str, Any]:
        """The kernels of a run on GPUs; a CPU has one kind."""
        if not self.resources.gpus_per_worker:
            return {}
        return {"kernels": "deterministic" if self.resources.deterministic else "fastest"}
