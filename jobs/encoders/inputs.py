"""What a pretrained encoder wants to see: the library's own input preparation, as an `ImageInput`.

Takes what timm or open_clip declares of some weights, with an experiment file's changes; gives what
`jobs/images/pixels.py` does. Weights see images as their library evaluates them: an image that is
squashed where its centre should be cut out is another image.
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
"""Of open_clip's weights that do not say otherwise."""


def timm_cfg(model: str) -> dict[str, Any]:
    """What timm declares of an architecture; nothing of one it does not know."""
    import timm

    try:
        cfg = timm.get_pretrained_cfg(model)
    except RuntimeError:  # a name that timm does not know: building it says so, with the options
        cfg = None
    return declared(cfg) if cfg is not None else {}


def declared(cfg: Any) -> dict[str, Any]:
    """What timm's configuration of some weights says."""
    return {name: value for name, value in asdict(cfg).items() if value is not None}


def image_input(cfg: Mapping[str, Any], change: ImageChange) -> ImageInput:
    """The input that a library's configuration declares, with the file's changes.

    Raises StageError where the library pads images, which nobody does here.
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
    """How timm (`crop_mode`) or open_clip (`resize_mode`) makes an image square.

    A few of timm's weights squash the image and then cut its rim off; here nothing is cut off.
    """
    mode = cfg.get("crop_mode") or cfg.get("resize_mode") or "center"
    if mode == "center":
        return float(cfg.get("crop_pct", 0.875))  # timm's own default
    if mode == "shortest":
        return 1.0
    if mode == "squash":
        return "whole"
    raise StageError(
        f"these weights want their images padded to a square ({mode}), which is not done here; set "
        f"the encoder's image.crop_pct to whole (the sides are made equal) or to 1.0 (the centre)"
    )
