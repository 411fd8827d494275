"""What an experiment file can say of pre-training.

A recipe is semantic from end to end; the resources it runs on are not: the batch is the global
one, whatever the number of workers.
"""

from __future__ import annotations

from string import Formatter
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, JsonValue, model_validator

from jobs.contract import NOT_SEMANTIC, Slug, Spec


class ImageInput(Spec):
    """How decoded pixels become the encoder's input tensor."""

    size: int = Field(224, ge=8, le=1024, description="side in pixels after resizing")
    channels: Literal[1, 3] = 3
    mean: tuple[float, ...] = Field((0.485, 0.456, 0.406), description="of pixels in [0, 1]")
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    crop_pct: float | None = Field(
        None,
        gt=0,
        le=2,
        description="outside training: the shorter side becomes size / crop_pct and the centre "
        "is cut out, as timm and open_clip (1.0) do; none: the whole image, its sides made equal",
    )
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"

    @model_validator(mode="after")
    def _fit_the_channels(self) -> ImageInput:
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, self.channels):
                raise ValueError(
                    f"{name} needs one number, or one for each of {self.channels} channels, "
                    f"not {len(values)}"
                )
        if min(self.std) <= 0:
            raise ValueError(f"std must be above 0, not {min(self.std):g}")
        return self


def _names_a_class(template: str) -> str:
    try:
        holes = [tuple(hole) for _, *hole in Formatter().parse(template) if hole[0] is not None]
    except ValueError:
        holes = []
    if holes != [("", "", None)]:
        raise ValueError(
            "a template has {} once, where a class's name stands, and no other braces but doubled"
        )
    return template


Template = Annotated[str, AfterValidator(_names_a_class)]
"""What is said of a class, for zero-shot classification: `a photo of a {}.`"""


class Affine(Spec):
    """Random changes of decoded pixels, drawn from the seed, the epoch and the key alone."""

    degrees: float = Field(0, ge=0, le=180, description="rotation, uniform in +-degrees")
    translate: float = Field(0, ge=0, lt=1, description="shift, share of the side")
    scale: tuple[float, float] = (1.0, 1.0)
    flip: bool = False

    @model_validator(mode="after")
    def _scale_rises(self) -> Affine:
        _check_rising("scale", self.scale)
        return self

    @property
    def moves(self) -> bool:
        """Whether these change anything."""
        return bool(self.degrees or self.translate or self.flip) or self.scale != (1.0, 1.0)


Share = Annotated[float, Field(ge=0, le=1)]

_RAND_AUGMENT = r"^rand(-(m\d+|n\d+|p\d*\.?\d+|mstd\d*\.?\d+|mmax\d+|inc[01]|t[a-z0-9]+))*$"


class Augment(Affine):
    """All random changes of a training image, drawn from the seed, the epoch and the key alone.

    Crop, RandAugment and colour jitter are timm's and see the image as it lies in the corpus,
    so a recipe that has one of them streams its corpus instead of keeping decoded pixels. The
    affine changes come after them, erasing after normalisation.
    """

    crop: tuple[Share, Share] | None = Field(
        None, description="random resized crop: share of the area that is kept, from and to"
    )
    crop_ratio: tuple[float, float] = Field((3 / 4, 4 / 3), description="width over height")
    crop_interpolation: Literal["random", "bilinear", "bicubic"] = Field(
        "random", description="random: bilinear or bicubic, image by image, timm's default"
    )
    rand_augment: str | None = Field(
        None, pattern=_RAND_AUGMENT, description="timm's own notation: rand-m7-mstd0.5-inc1"
    )
    color_jitter: float = Field(
        0, ge=0, description="brightness, contrast and saturation, times 1 +- this"
    )
    erase: Share = Field(0, description="share of the images that get a rectangle erased")
    erase_mode: Literal["const", "rand", "pixel"] = Field(
        "pixel", description="with the mean, with one random colour, with noise"
    )

    @model_validator(mode="after")
    def _ranges_rise(self) -> Augment:
        for name in ("crop", "crop_ratio"):
            span = getattr(self, name)
            if span is not None:
                _check_rising(name, span)
        return self


def _check_rising(name: str, span: tuple[float, float]) -> None:
    if not 0 < span[0] <= span[1]:
        raise ValueError(f"{name} needs two numbers above 0, the smaller first, not {span}")


class Schedule(Spec):
    """Optimiser and length of a pre-training run.

    Biases and norms are not decayed: a supervised model's as timm has it, a contrastive one's as
    open_clip does.
    """

    epochs: int = Field(ge=1)
    batch_size: int = Field(ge=1, description="global: over all workers and accumulated steps")
    repeats: int = Field(
        1,
        ge=1,
        description="repeated augmentation: copies of an image that a batch holds side by side, "
        "each augmented on its own; an epoch sees as many images, so fewer different ones",
    )
    optimizer: Literal["sgd", "adamw", "lamb"] = "adamw"
    lr: float = Field(gt=0)
    weight_decay: float = Field(0.0, ge=0)
    momentum: float = Field(0.9, ge=0, lt=1, description="of sgd, which is Nesterov's")
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = Field(
        (0.9, 0.999), description="of adamw and lamb"
    )
    eps: float | None = Field(None, gt=0, description="of adamw and lamb; none: timm's own")
    warmup_epochs: float = Field(0.0, ge=0)
    warmup_lr: float | None = Field(None, ge=0, description="its start; none: a hundredth of lr")
    min_lr: float = Field(0.0, ge=0, description="where the cosine ends")
    cosine: Literal["from_start", "after_warmup"] = Field(
        "from_start", description="where the cosine begins: under the warm-up as timm's, or after"
    )
    clip_grad_norm: float | None = Field(None, gt=0)
    ema_decay: float | None = Field(
        None, gt=0, lt=1, description="the weights' moving average is evaluated and kept instead"
    )
    ema_warmup: bool = Field(False, description="a faster average at the start (timm's)")
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="of autocast; weights and optimiser stay fp32; fp16 scales its loss"
    )


class Mix(Spec):
    """Mixup and CutMix of images and (noisy) labels, timm's.

    Images are mixed inside fixed groups of the global batch, each with a draw of its own from
    the seed, the update and the group's place: the same pairs at every noise level and for every
    number of workers, which therefore must each take whole groups.
    """

    mixup: float = Field(0, ge=0, description="alpha of the beta distribution; 0: none")
    cutmix: float = Field(0, ge=0, description="alpha of the beta distribution; 0: none")
    prob: Share = Field(1, description="of a group to be mixed at all")
    switch_prob: Share = Field(0.5, description="of cutmix when both are on")
    mode: Literal["batch", "pair", "elem"] = Field("batch", description="draws: group, pair, image")
    group: int = Field(64, ge=2, multiple_of=2, description="images; must divide the batch")

    @property
    def on(self) -> bool:
        """Whether anything is mixed."""
        return self.prob > 0 and (self.mixup > 0 or self.cutmix > 0)


class Supervised(Spec):
    """A timm model under cross-entropy, or a binary one for each class, on the (noisy) labels."""

    objective: Literal["supervised"] = "supervised"
    name: Slug
    model: str = Field(description="a timm model name")
    model_options: dict[str, JsonValue] = Field(
        default_factory=dict, description="timm's: drop_path_rate, drop_rate, ..."
    )
    image: ImageInput = ImageInput()
    augment: Augment = Augment()
    mix: Mix = Mix()
    schedule: Schedule
    loss: Literal["ce", "bce"] = "ce"
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    bce_threshold: float | None = Field(
        None, gt=0, lt=1, description="of bce: mixed targets above it count as 1, others as 0"
    )

    @model_validator(mode="after")
    def _parts_fit(self) -> Supervised:
        if self.mix.on and self.schedule.batch_size % self.mix.group:
            raise ValueError(
                f"mix.group {self.mix.group} does not divide schedule.batch_size "
                f"{self.schedule.batch_size}; choose an even divisor of it"
            )
        if self.bce_threshold is not None and self.loss != "bce":
            raise ValueError("bce_threshold belongs to loss: bce; remove it or set the loss")
        return self


class Contrastive(Spec):
    """An open_clip model under its contrastive loss on images and (noisy) captions."""

    objective: Literal["contrastive"] = "contrastive"
    name: Slug
    model: str = Field(description="an open_clip model name, or a label for `model_options`")
    model_options: dict[str, JsonValue] = Field(
        default_factory=dict, description="an open_clip model configuration given in place"
    )
    image: ImageInput = ImageInput()
    augment: Augment = Augment()
    schedule: Schedule
    templates: tuple[Template, ...] = Field(
        ("a photo of a {}.",), min_length=1, description="for zero-shot evaluation by class name"
    )

    @model_validator(mode="after")
    def _no_copies(self) -> Contrastive:
        if self.schedule.repeats > 1:
            raise ValueError(
                "schedule.repeats would set a caption against its own copies in a batch; leave it "
                "out of a contrastive recipe"
            )
        return self


Recipe = Annotated[Supervised | Contrastive, Field(discriminator="objective")]


class Resources(Spec):
    """What each pre-training run is given. Never bears on the result's identity.

    Layout and compilation are here because they compute the same function, like the number of
    workers: results may differ in rounding, not in meaning.
    """

    workers: int = Field(1, ge=1)
    cpus_per_worker: int = Field(1, ge=1)
    gpus_per_worker: float = Field(0, ge=0)
    images_per_pass: int | None = Field(
        None,
        ge=1,
        description="most images a worker holds at once; its share of the batch is "
        "accumulated over as many passes as that takes; none: in one pass",
    )
    channels_last: bool = Field(False, description="lay out images and weights for tensor cores")
    compile: bool = Field(False, description="torch.compile: pays where steps are many and alike")
    decoded_gb: float | None = Field(
        None,
        ge=0,
        description="most that a worker's decoded images may take; a larger part of a corpus is "
        "read and decoded anew in each epoch; none: its part of the memory that is free",
    )
    max_failures: int = Field(
        3,
        ge=0,
        description="errors of the training, and losses of workers without progress, survived",
    )


OnNan = Literal["stop", "skip"]
"""What a loss that is not finite does. `skip` leaves the update out and counts it, up to ten in a
row. It may be chosen late: a run that finishes under `stop` had no such loss, and is the same."""


class Pretrain(Spec):
    """The pre-training section of an experiment file."""

    recipe: Recipe
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field((0,), min_length=1)
    checkpoint_minutes: Annotated[float, NOT_SEMANTIC] = Field(10, gt=0)
    telemetry_steps: Annotated[int, NOT_SEMANTIC] = Field(
        50, ge=1, description="updates between two points of loss, speed, ... over a run"
    )
    on_nan: Annotated[OnNan, NOT_SEMANTIC] = "stop"
    resources: Annotated[Resources, NOT_SEMANTIC] = Resources()

    @model_validator(mode="after")
    def _each_seed_once(self) -> Pretrain:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("one of seeds is given twice; name each once")
        return self


class PretrainStep(Spec):
    """One encoder: one recipe, one noise level (an input step), one seed."""

    # 2: a contrastive model's weight decay is open_clip's; the order is one for held and streamed
    # 3: crops are scaled by torch, to within 1 of 255 of Pillow's
    protocol: ClassVar[int] = 4

    recipe: Recipe
    seed: int
    checkpoint_minutes: Annotated[float, NOT_SEMANTIC] = 10
    telemetry_steps: Annotated[int, NOT_SEMANTIC] = Field(50, ge=1)
    on_nan: Annotated[OnNan, NOT_SEMANTIC] = "stop"
    resources: Annotated[Resources, NOT_SEMANTIC] = Resources()
