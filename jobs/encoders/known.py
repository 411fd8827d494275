"""Whether the installed libraries know a pretrained encoder, checked before anything runs.

Takes an encoder of an experiment file; gives what is wrong with its model or tag. Imports neither
timm nor open_clip nor transformers.
"""

from __future__ import annotations

import re
from difflib import get_close_matches
from importlib.util import find_spec

from jobs.encoders.api import ApiEncoder
from jobs.encoders.catalogue import open_clip_models, timm_models, timm_tags, unknown
from jobs.encoders.spec import (
    FileEncoder,
    OpenClipEncoder,
    OwnTextEncoder,
    PretrainedEncoder,
    TimmEncoder,
    TransformersEncoder,
)

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def check_names(encoder: PretrainedEncoder) -> str | None:
    """What is wrong with the model's name or tag, and the nearest names; None when both exist."""
    match encoder:
        case FileEncoder(family="open_clip") if encoder.model_options:
            return None  # it brings its own configuration, under any name
        case OpenClipEncoder() | FileEncoder(family="open_clip"):
            return unknown(encoder.model, "open_clip", open_clip_models())
        case TimmEncoder():
            return unknown(encoder.model, "timm", timm_models()) or _check_tag(encoder)
        case FileEncoder(family="timm"):
            return unknown(encoder.model, "timm", timm_models())
        case TransformersEncoder() | OwnTextEncoder():
            return _check_transformers(encoder)
        case ApiEncoder():
            return _check_api(encoder)
        case _:
            return None


def _check_transformers(encoder: TransformersEncoder | OwnTextEncoder) -> str | None:
    if find_spec("transformers") is None:
        return "a text encoder needs the transformers library; install nml-orch[text]"
    revision = encoder.revision if isinstance(encoder, TransformersEncoder) else None
    if revision is not None and not _HUB_ID.fullmatch(encoder.model):
        return (
            f"model {encoder.model!r} has a revision but is no id of the Hub, as in "
            f"openai-community/gpt2; correct it, or leave out revision for a folder"
        )
    return None


def _check_api(encoder: ApiEncoder) -> str | None:
    needed = ["openai"] + ["bpe_openai"] * (encoder.table != "characters")
    if any(find_spec(name) is None for name in needed):
        return f"an encoder of kind api needs {' and '.join(needed)}; install nml-orch[api]"
    return None


def _check_tag(encoder: TimmEncoder) -> str | None:
    tags = timm_tags().get(encoder.model, frozenset())
    if encoder.tag is None or encoder.tag in tags or not tags:
        return None
    near = get_close_matches(encoder.tag, tags, n=3, cutoff=0.4) or sorted(tags)[:8]
    return (
        f"timm has no weights {encoder.tag!r} for {encoder.model!r}; did you mean "
        f"{', '.join(near)}?"
    )
