"""The settings of images in an experiment file: the encoder's input, augmentation, views, shifts.

Sizes are in pixels. Every random change is drawn from a seed, the sample's key and, in training,
the epoch alone.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from jobs.contract import SILENT, Spec

MOST_PIXELS = 1 << 30
"""Width x height of the largest image that is ever decoded; a corpus's `max_pixels` is smaller."""


class ImageInput(Spec):
    """How decoded pixels become the encoder's input tensor."""

    size: int = Field(224, ge=8, le=1024, description="side in pixels after resizing")
    channels: Literal[1, 3] = Field(3, description="1: grey, 3: colour")
    mean: tuple[float, ...] = Field((0.485, 0.456, 0.406), description="of pixels in [0, 1]")
    std: tuple[float, ...] = Field((0.229, 0.224, 0.225), description="of pixels in [0, 1]")
    crop_pct: float | None = Field(
        None,
        gt=0,
        le=2,
        description="outside training: the shorter side becomes size / crop_pct and the centre "
        "is cut out, as timm and open_clip (1.0) do; none: the whole image, its sides made equal",
    )
    interpolation: Literal["bilinear", "bicubic"] = Field(
        "bilinear", description="how an image is resized"
    )

    kind: ClassVar[str] = "image"
    """The kind of input, as in an encoder's card."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of one row's uint8 pixels, [C, S, S]."""
        return self.channels, self.size, self.size

    @model_validator(mode="after")
    def _check_channels(self) -> ImageInput:
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, self.channels):
                raise ValueError(
                    f"{name} needs one number, or one for each of {self.channels} channels, "
                    f"not {len(values)}"
                )
        if min(self.std) <= 0:
            raise ValueError(f"std must be above 0, not {min(self.std):g}")
        return self


class Shrink(Spec):
    """How images that are larger than needed are stored: smaller, as JPEGs."""

    shorter_side: int = Field(
        ge=8, le=8192, description="pixels; an image whose shorter side is longer is stored at this"
    )
    quality: int = Field(92, ge=1, le=100, description="of the JPEG")


class Affine(Spec):
    """Random changes of decoded pixels, drawn from the seed, the epoch and the key alone."""

    degrees: float = Field(0, ge=0, le=180, description="rotation, uniform in +-degrees")
    translate: float = Field(0, ge=0, lt=1, description="shift, share of the side")
    scale: tuple[float, float] = Field((1.0, 1.0), description="least and most factor of the size")
    flip: bool = Field(False, description="mirror half of the images, drawn at random")

    @model_validator(mode="after")
    def _check_scale(self) -> Affine:
        _check_range("scale", self.scale)
        return self

    @property
    def moves(self) -> bool:
        """Whether this changes anything."""
        return bool(self.degrees or self.translate or self.flip) or self.scale != (1.0, 1.0)


Share = Annotated[float, Field(ge=0, le=1)]


_RAND_AUGMENT = r"^rand(-(m\d+|n\d+|p\d*\.?\d+|mstd\d*\.?\d+|mmax\d+|inc[01]|t[a-z0-9]+))*$"


class Augment(Affine):
    """All random changes of a training image, drawn from the seed, the epoch and the key alone.

    Crop, RandAugment and colour jitter are timm's and read the source image, so a recipe with one
    of them streams its corpus instead of keeping decoded pixels in memory. The affine changes come
    after them, erasing after normalisation.
    """

    crop: tuple[Share, Share] | None = Field(
        None, description="random resized crop: smallest and largest share of the area that is kept"
    )
    crop_ratio: tuple[float, float] = Field((3 / 4, 4 / 3), description="width over height")
    crop_interpolation: Literal["random", "bilinear", "bicubic"] = Field(
        "random", description="random: bilinear or bicubic, drawn for each image, timm's default"
    )
    rand_augment: str | None = Field(
        None, pattern=_RAND_AUGMENT, description="timm's own notation: rand-m7-mstd0.5-inc1"
    )
    color_jitter: float = Field(
        0, ge=0, description="multiplies brightness, contrast and saturation by 1 +- this"
    )
    erase: Share = Field(0, description="share of the images in which a rectangle is erased")
    erase_mode: Literal["const", "rand", "pixel"] = Field(
        "pixel", description="fills with the mean, with one random colour, with noise"
    )

    @model_validator(mode="after")
    def _check_ranges(self) -> Augment:
        for name in ("crop", "crop_ratio"):
            span = getattr(self, name)
            if span is not None:
                _check_range(name, span)
        return self


def _check_range(name: str, span: tuple[float, float]) -> None:
    if not 0 < span[0] <= span[1]:
        raise ValueError(f"{name} needs two numbers above 0, the smaller first, not {span}")


class Shift(Spec):
    """A declared change of every test image, drawn from the seed and the key alone."""

    kind: Literal["rotate", "blur", "invert", "noise"] = Field(description="which change")
    strength: float = Field(
        1.0,
        gt=0,
        description="rotate: degrees, the sign drawn by key; blur: Gaussian sigma in source "
        "pixels; noise: standard deviation, as a share of the full range; invert: share of the "
        "way to the negative",
    )
    seed: int = Field(0, ge=0, description="of the draws of rotate and noise")

    @model_validator(mode="after")
    def _check_strength(self) -> Shift:
        if self.kind == "invert" and self.strength > 1:
            raise ValueError(
                f"invert goes to the negative at most: strength 1, not {self.strength:g}"
            )
        return self


class Grid(Spec):
    """How the patches of an image become features, for tasks whose labels are masks."""

    size: Annotated[int | None, Field(ge=8, le=1024)] = Field(
        None, description="side in pixels to which whole images are resized; none: the encoder's"
    )
    layer: int | None = Field(
        None,
        description="which of the model's stages or blocks gives the map, as an index of timm's "
        "`forward_intermediates` (-2: the one before the last); none: its last map",
    )


class Views(Spec):
    """Seeded augmented views of the training part, shared by all methods of all cells.

    Default: two views of images, shifted and scaled a little, which changes no task's classes, and
    none of texts.
    """

    count: int = Field(2, ge=0, le=1024, description="copies of each training sample; 0: none")
    augment: Affine = Field(
        Affine(translate=0.08, scale=(0.9, 1.1)), description="of images: how a copy is changed"
    )
    seed: int = Field(0, ge=0, description="of the draws")
    mask: Annotated[float, SILENT] = Field(
        0,
        ge=0,
        lt=1,
        description="of texts: the share of tokens that the mask token replaces; 0: no views",
    )

    @model_validator(mode="before")
    @classmethod
    def _clear_augment_without_views(cls, given: object) -> object:
        if isinstance(given, dict) and given.get("count") == 0:
            return {"augment": {}, **given}
        return given

    @model_validator(mode="after")
    def _check_augment(self) -> Views:
        if self.count and not self.augment.moves and not self.mask:
            raise ValueError(
                f"{self.count} views that change nothing are copies of the plain image; give "
                f"augment degrees, translate, scale or flip (of texts: mask), or set count to 0"
            )
        return self

    def of(self, kind: str) -> Views:
        """The views of one kind of input (`image`, `text`): what changes the other is left out."""
        if kind == "text":
            if not self.count or not self.mask:
                return Views(count=0)
            return self.model_copy(update={"augment": Affine()})
        if self.count and not self.augment.moves:
            return Views(count=0)
        return self.model_copy(update={"mask": 0.0})
