"""Import a pretrained encoder into the store, in the form that pre-training writes.

Takes an `EncoderStep`; writes the files that `jobs/encoders/encoder.py` describes: the weights as
safetensors, and a card without training hashes, whose `source` names where the weights came from.
timm and open_clip load the weights of a tag, through their own cache. A file is never downloaded.
`pretrained_text.py` imports text models.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, cast

import torch

from jobs.contract import Outcome, StageError, Work
from jobs.encoders import encoder, weights
from jobs.encoders.api import ApiEncoder, ApiInput
from jobs.encoders.encoder import CARD, Architecture, EncoderCard
from jobs.encoders.imported import Imported, misfit_error, unavailable_error
from jobs.encoders.inputs import CLIP_INPUT, declared, image_input, timm_cfg
from jobs.encoders.pretrained_text import import_transformers, own_input
from jobs.encoders.spec import (
    EncoderStep,
    FileEncoder,
    OpenClipEncoder,
    OwnEncoder,
    OwnTextEncoder,
    TimmEncoder,
    TransformersEncoder,
)
from jobs.images.spec import ImageInput
from jobs.storage.folder import Folder
from jobs.text.spec import OwnTextInput


def import_encoder(work: Work) -> Outcome:
    """Write the step's encoder into `work.output`, and load it once to check it.

    Counts: parameters, dim, tensors_left_out. Raises StageError for weights that are not available
    or do not fit.
    """
    spec = cast(EncoderStep, work.spec).encoder
    if isinstance(spec, ApiEncoder):
        return _describe_api(spec, work.output)
    logging.getLogger("timm").setLevel(logging.ERROR)
    with torch.random.fork_rng(devices=[]):  # building draws weights, which the import replaces
        match spec:
            case TimmEncoder():
                imported = _import_timm(spec)
            case OpenClipEncoder():
                imported = _import_open_clip(spec)
            case FileEncoder():
                imported = _import_file(spec)
            case OwnEncoder() | OwnTextEncoder():
                imported = _import_own(spec)
            case TransformersEncoder():
                imported = import_transformers(spec)
    data = encoder.weights_bytes(imported.model)
    architecture = imported.architecture
    card = EncoderCard(
        family=architecture.family,
        model=architecture.model,
        model_options=architecture.model_options,
        input=architecture.input,
        classes=(),
        feature_dim=architecture.feature_dim(imported.model),
        initial_weights_sha256=None,
        order_sha256=None,
        weights_sha256=hashlib.sha256(data).hexdigest(),
        source={"kind": spec.kind, **imported.source},
        files=encoder.digests_of(imported.files),
    )
    encoder.save(work.output, card, data, imported.files)
    if architecture.source is not None:
        architecture.source.keep(work.output)
    del data
    encoder.load(work.output, source=architecture.source)
    return Outcome(
        counts={
            "parameters": sum(value.numel() for value in imported.model.parameters()),
            "dim": card.feature_dim,
            "tensors_left_out": imported.left_out,
        }
    )


def _describe_api(spec: ApiEncoder, output: Folder) -> Outcome:
    """The card of a model that stays behind an API. Asks nothing, so it needs no key."""
    card = EncoderCard(
        family="api",
        model=spec.model,
        model_options={},
        input=ApiInput.of(spec),
        classes=(),
        feature_dim=spec.dimensions or 0,
        initial_weights_sha256=None,
        order_sha256=None,
        weights_sha256="",
        source={"kind": spec.kind, "ledger": spec.ledger},
    )
    output.write_json(CARD, card.as_json())
    return Outcome()


# -- by tag ----------------------------------------------------------------------------------------


def _import_timm(spec: TimmEncoder) -> Imported:
    import timm

    name = spec.model if spec.tag is None else f"{spec.model}.{spec.tag}"
    try:
        cfg = timm.get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError:
        cfg = None
    if cfg is None or not cfg.has_weights:
        tags = [n for n in timm.list_pretrained(f"{spec.model}.*") if n != name]
        raise StageError(
            _unknown_tag_message("timm", spec.model, spec.tag, [t.partition(".")[2] for t in tags])
        )
    image = image_input(declared(cfg), spec.image)
    own_size = cfg.fixed_input_size and image.size != cfg.input_size[-1]
    options: dict[str, Any] = {"img_size": image.size} if own_size else {}
    try:
        model = timm.create_model(name, pretrained=True, num_classes=0, **options)
    except Exception as error:  # hub, cache and library raise nearly anything
        raise unavailable_error("timm", name, error) from error
    source = {"tag": name, "license": cfg.license or "not stated"}
    return Imported(Architecture("timm", name, options, image, 0), model, source)


def _import_open_clip(spec: OpenClipEncoder) -> Imported:
    import open_clip

    known = open_clip.list_pretrained_tags_by_model(spec.model)
    tag = open_clip.get_pretrained_cfg(spec.model, spec.tag)
    if not tag:
        raise StageError(_unknown_tag_message("open_clip", spec.model, spec.tag, known))
    options = _open_clip_options(spec.model, quick_gelu=bool(tag.get("quick_gelu")))
    found = {"input_size": options["vision_cfg"].get("image_size", 224), **tag}
    architecture = Architecture(
        "open_clip", spec.model, options, image_input(found, spec.image), classes=0
    )
    try:
        path = open_clip.download_pretrained(tag)
    except Exception as error:  # as above
        raise unavailable_error("open_clip", f"{spec.model} {spec.tag}", error) from error
    model = architecture.build()
    try:
        open_clip.load_checkpoint(model, path)
    except Exception as error:
        what = f"the weights {spec.tag} of open_clip model {spec.model!r} in {path}"
        remedy = "delete that file, which is then downloaded again, or give another tag"
        raise misfit_error(what, error, remedy) from error
    return Imported(architecture, model, {"tag": f"{spec.model}.{spec.tag}"})


def _open_clip_options(model: str, *, quick_gelu: bool = False) -> dict[str, Any]:
    """A model's whole configuration, without separately downloaded weights of its towers."""
    import open_clip

    options = open_clip.get_model_config(model)
    if options is None:
        near = get_close_matches(model, open_clip.list_models(), n=3, cutoff=0.5)
        raise StageError(
            f"open_clip knows no model {model!r}; did you mean {', '.join(near) or 'another'}?"
        )
    if quick_gelu:
        options["quick_gelu"] = True
    for tower, flag in (
        ("vision_cfg", "timm_model_pretrained"),
        ("text_cfg", "hf_model_pretrained"),
    ):
        if flag in options[tower]:
            options[tower][flag] = False
    return dict(options)


# -- from a file ---------------------------------------------------------------------------------


def _planned_name(file: str, sha256: str | None) -> str:
    """The name of a file of weights. Raises StageError if it is not the one that was planned."""
    folder, name = Folder.holding(file)
    try:
        if folder.sha256(name) != sha256:
            raise StageError(f"{file} is not the file that was planned (other sha256); run again")
    except FileNotFoundError:
        raise StageError(
            f"{file} does not exist where this step runs; put it there, or on storage that "
            f"every node sees"
        ) from None
    return name


def _import_own(spec: OwnEncoder | OwnTextEncoder) -> Imported:
    files: dict[str, bytes] = {}
    read: ImageInput | OwnTextInput
    if isinstance(spec, OwnEncoder):
        read = spec.image
    else:
        read, files = own_input(spec)
    architecture = Architecture("extension", spec.model, spec.model_options, read, 0, spec.source)
    torch.manual_seed(0)  # for weights that no file gives
    model: Any = architecture.build()
    if spec.file is None:
        return Imported(architecture, model, architecture.made_with, files=files)
    name = _planned_name(spec.file, spec.sha256)
    wanted = model.encoder.state_dict()
    filled, left_out = weights.by_name(weights.read(spec.file), wanted, spec.leave_out)
    model.encoder.load_state_dict(filled)
    source = {**architecture.made_with, "weights": name, "weights_sha256": spec.sha256}
    return Imported(architecture, model, source, left_out, files)


def _import_file(spec: FileEncoder) -> Imported:
    name = _planned_name(spec.file, spec.sha256)
    options: dict[str, Any] = dict(spec.model_options)
    cfg: Mapping[str, Any] = {}
    leave_out = list(spec.leave_out)
    if spec.family == "open_clip":
        options = options or _open_clip_options(spec.model)
        cfg = {"input_size": options.get("vision_cfg", {}).get("image_size", 224), **CLIP_INPUT}
    else:
        cfg = timm_cfg(spec.model)
        named = cfg.get("classifier") or ()
        leave_out += [f"{n}." for n in ((named,) if isinstance(named, str) else named)]
    architecture = Architecture(spec.family, spec.model, options, image_input(cfg, spec.image), 0)
    model = architecture.build()
    tensors, wanted = weights.read(spec.file), model.state_dict()
    if spec.match == "order":
        filled, left_out = weights.by_order(tensors, wanted, architecture.feature_dim(model))
    else:
        filled, left_out = weights.by_name(tensors, wanted, leave_out, ", or try match: order")
    model.load_state_dict(filled)
    return Imported(architecture, model, {"file": name, "sha256": spec.sha256}, left_out)


# -- errors of all kinds --------------------------------------------------------------------------


def _unknown_tag_message(library: str, model: str, tag: str | None, known: list[str]) -> str:
    if not known:
        return f"{library} has no pretrained weights for {model!r}; see its list of models"
    near = get_close_matches(tag or "", known, n=3, cutoff=0.5) or known[:8]
    return (
        f"{library} has no weights {tag!r} for {model!r}; did you mean {', '.join(near)}?"
        if tag
        else f"{library} has no default weights for {model!r}; give a tag, as in {near[0]}"
    )
