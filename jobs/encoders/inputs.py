"""The input of a pretrained encoder: the library's own image preparation, as an `ImageInput`.

Takes timm's or open_clip's configuration of the weights and the changes of an experiment file;
gives the `ImageInput` that `jobs/images/pixels.py` applies. Images are prepared as the library
evaluates them: squashing an image instead of cutting out its centre changes the features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Literal

from jobs.contract import StageError
from jobs.encoders.spec import ImageChange
from jobs.images.spec import ImageInput

CLIP_INPUT = {
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
    "resize_mode": "shortest",
}
"""open_clip's defaults, for weights whose configuration does not set them."""


def timm_cfg(model: str) -> dict[str, Any]:
    """timm's configuration of an architecture; empty when timm does not know it."""
    import timm

    try:
        cfg = timm.get_pretrained_cfg(model)
    except RuntimeError:  # an unknown name: building the model raises the error, with the options
        cfg = None
    return declared(cfg) if cfg is not None else {}


def declared(cfg: Any) -> dict[str, Any]:
    """The values that timm's configuration of some weights sets."""
    return {name: value for name, value in asdict(cfg).items() if value is not None}


def image_input(cfg: Mapping[str, Any], change: ImageChange) -> ImageInput:
    """The input that a library's configuration declares, with the experiment file's changes.

    Raises StageError for weights whose library pads images, which is not supported here.
    """
    given = cfg.get("input_size", 224)
    size = given[-1] if isinstance(given, (tuple, list)) else given
    own = {
        "size": size,
        "channels": given[0] if isinstance(given, (tuple, list)) and len(given) == 3 else 3,
        **{name: tuple(cfg[name]) for name in ("mean", "std") if cfg.get(name)},
        "interpolation": cfg.get("interpolation", "bicubic"),
    }
    changes = change.model_dump(exclude_none=True)
    crop = changes.pop("crop_pct") if "crop_pct" in changes else _crop_pct(cfg)
    return ImageInput(**{**own, **changes}, crop_pct=None if crop == "whole" else crop)


def _crop_pct(cfg: Mapping[str, Any]) -> float | Literal["whole"]:
    """The `crop_pct` for the way timm (`crop_mode`) or open_clip (`resize_mode`) squares an image.

    A few of timm's weights squash the image and then cut off its border; here the border stays.
    """
    mode = cfg.get("crop_mode") or cfg.get("resize_mode") or "center"
    if mode == "center":
        return float(cfg.get("crop_pct", 0.875))  # timm's own default
    if mode == "shortest":
        return 1.0
    if mode == "squash":
        return "whole"
    raise StageError(
        f"these weights need images padded to a square ({mode}), which is not supported; set the "
        f"encoder's image.crop_pct to whole (make the sides equal) or to 1.0 (cut out the centre)"
    )
