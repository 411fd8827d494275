"""The model names that the installed timm and open_clip know, without importing them.

Takes the name of a model and gives what is wrong with it. Reads the names from the packages' files:
timm's registered functions, open_clip's configuration files. Never builds a model, so a known name
may still have options that do not fit.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

IN_PLACE = ("embed_dim", "vision_cfg", "text_cfg")
"""The fields that `model_options` must have to be a whole open_clip configuration."""

_WEIGHTS = re.compile(r"""^\s+['"](\w+)\.([\w-]+)['"]\s*:""", re.MULTILINE)
_REGISTERED = re.compile(r"^@register_model\b.*\n(?:@.*\n)*def (\w+)\(", re.MULTILINE)


@cache
def timm_models() -> frozenset[str]:
    """Names that `timm.create_model` knows; empty when timm is not installed."""
    files = _package_folder("timm", "models").glob("*.py")
    return frozenset(
        name for file in files for name in _REGISTERED.findall(file.read_text(encoding="utf-8"))
    )


@cache
def open_clip_models() -> frozenset[str]:
    """Names of open_clip's model configurations; empty when it is not installed."""
    return frozenset(
        file.stem for file in _package_folder("open_clip", "model_configs").glob("*.json")
    )


@cache
def _sigmoid_models() -> frozenset[str]:
    """Names of the open_clip models made for a sigmoid loss."""
    files = _package_folder("open_clip", "model_configs").glob("*.json")
    return frozenset(f.stem for f in files if '"init_logit_bias"' in f.read_text(encoding="utf-8"))


def check_timm(model: str) -> str | None:
    """What is wrong with a timm model's name, and the nearest names; None when it is known."""
    return unknown(model, "timm", timm_models())


def check_open_clip(model: str, model_options: Mapping[str, Any]) -> str | None:
    """What is wrong with an open_clip model to be trained; None when it can be built."""
    if model_options:
        missing = [field for field in IN_PLACE if field not in model_options]
        if missing:
            return (
                f"model_options of {model!r} lack {', '.join(missing)}; give a whole open_clip "
                f"configuration, or name a known model and give none"
            )
        sigmoid = "init_logit_bias" in model_options
    else:
        complaint = unknown(model, "open_clip", open_clip_models())
        if complaint is not None:
            return complaint
        sigmoid = model in _sigmoid_models()
    if sigmoid:
        return (
            f"{model!r} has a logit bias (init_logit_bias): it is made for SigLIP's loss, but "
            f"pre-training here uses CLIP's; choose a model without one"
        )
    return None


@cache
def timm_tags() -> dict[str, frozenset[str]]:
    """Model -> the tags of its pretrained weights, where timm's files list them one by one."""
    found: dict[str, set[str]] = {}
    for file in _package_folder("timm", "models").glob("*.py"):
        for model, tag in _WEIGHTS.findall(file.read_text(encoding="utf-8")):
            found.setdefault(model, set()).add(tag)
    return {model: frozenset(tags) for model, tags in found.items()}


def unknown(name: str, package: str, known: frozenset[str]) -> str | None:
    """What is wrong with a model's name, and the nearest names; None when the package knows it."""
    if name in known:
        return None
    if not known:
        return f"{package} is not installed, so model {name!r} cannot be built; install {package}"
    folded: dict[str, list[str]] = {}
    for candidate in sorted(known):
        folded.setdefault(candidate.lower(), []).append(candidate)
    near = get_close_matches(name.lower(), folded, n=3, cutoff=0.5)
    names = [candidate for match in near for candidate in folded[match]][:3]
    advice = f"; did you mean {', '.join(names)}?" if names else f"; see {package}'s list of models"
    return f"{package} knows no model {name!r}{advice}"


def _package_folder(package: str, below: str) -> Path:
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return Path("/nonexistent")
    return Path(next(iter(spec.submodule_search_locations))) / below
