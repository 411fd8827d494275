"""Import a pretrained text encoder: a model of the transformers library with its tokenizer.

Takes a `TransformersEncoder`; gives the model with its weights and the tokenizer's files, and an
input in which every setting is resolved. A folder's files are compared with the digest of the plan,
and only these files are used. A model of the Hub comes from the local cache, and is downloaded if
it is not there. Weights are read from safetensors alone; no code of a model is run.
"""

from __future__ import annotations

import hashlib
import logging
import re
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from jobs.contract import StageError
from jobs.encoders import transformers
from jobs.encoders.card import Architecture
from jobs.encoders.imported import Imported, misfit_error, unavailable_error
from jobs.encoders.model_folder import (
    CONFIG,
    PATTERNS,
    PROMPTS,
    ModelFolder,
    digest_of,
    locate,
    tokenizer_of,
)
from jobs.encoders.spec import OwnTextEncoder, TransformersEncoder
from jobs.reach import web_fault
from jobs.storage.folder import Folder
from jobs.text.spec import OwnTextInput, Pooling, TextInput
from jobs.text.tokenizer import open_tokenizer

_STRAY = re.compile(r"(position_ids|attn\.bias|masked_bias|inv_freq)$")
"""Tensors that old versions saved and that are no weights."""


def import_transformers(spec: TransformersEncoder) -> Imported:
    """The model and tokenizer that an experiment file names.

    Raises StageError for files that are not available, do not fit, or need code of their own.
    """
    transformers.require()
    _silence()
    if spec.revision is None:
        name, folder = locate(spec.model).uri.rstrip("/").rpartition("/")[2], _planned(spec)
    else:
        name, folder = spec.model, ModelFolder.read(_from_hub(spec.model, spec.revision))
    transformers.config_of(name, folder.config)
    with tempfile.TemporaryDirectory() as scratch:
        digests = _gather(folder, Path(scratch))
        if spec.revision is None and digest_of(digests) != spec.sha256:
            raise _changed_error(spec)
        model, left_out, drawn = _load(name, Path(scratch))
        files = {n: (Path(scratch) / n).read_bytes() for n in folder.tokenizer}
    own = open_tokenizer(files, folder.config)
    text = _resolved(spec, folder, model, own, digest_of({n: digests[n] for n in files}))
    transformers.check_input(model, text, name)
    if text.pooling == "pooler" and drawn:
        raise StageError(
            f"{name!r} has no weights for its pooler; set the encoder's pooling to cls, mean or "
            f"last"
        )
    architecture = Architecture("transformers", name, folder.config, text, classes=0)
    source = {
        "model": name,
        "sha256": digest_of(digests),
        **({} if spec.revision is None else {"revision": spec.revision}),
    }
    return Imported(architecture, model, source, left_out, files)


def own_input(spec: OwnTextEncoder) -> tuple[OwnTextInput, dict[str, bytes]]:
    """The input of an extension's encoder of texts, and its tokenizer's files.

    Raises StageError for files that are not the planned ones, or no tokenizer.
    """
    transformers.require()
    folder = Folder.of(spec.tokenizer)
    files = {name: folder.read_bytes(name) for name in tokenizer_of(folder)}
    sha256 = digest_of({n: hashlib.sha256(data).hexdigest() for n, data in files.items()})
    if sha256 != spec.tokenizer_sha256:
        raise StageError(
            f"{spec.tokenizer} does not hold the files that were planned (other sha256); run again"
        )
    own = open_tokenizer(files, {})
    shared = ("max_length", "truncate", "pair", "prompt", "pooling", "normalise")
    text = OwnTextInput(
        **{name: getattr(spec, name) for name in shared},
        tokenizer_sha256=sha256,
        vocabulary=len(own),
        padding=0 if own.pad_token_id is None else own.pad_token_id,
    )
    return text, files


def _silence() -> None:
    """Progress bars and warnings of the library: what matters of them is raised or counted here."""
    from transformers.utils import logging as own

    own.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)


# -- the files -------------------------------------------------------------------------------------


def _planned(spec: TransformersEncoder) -> ModelFolder:
    folder = locate(spec.model)
    parent, name = Folder.holding(folder.uri)
    if not parent.exists(name):
        raise StageError(
            f"{spec.model} does not exist where this step runs; put it there, or on storage that "
            f"every node sees"
        )
    return ModelFolder.read(folder)


def _changed_error(spec: TransformersEncoder) -> StageError:
    return StageError(
        f"{spec.model} does not hold the files that were planned (other sha256); run again"
    )


def _from_hub(model: str, revision: str) -> Folder:
    """The folder of the local cache with this revision, downloaded if it is not there."""
    from huggingface_hub import constants, snapshot_download

    patterns = [*PATTERNS, PROMPTS, f"*/{CONFIG}"]
    named: dict[str, Any] = {"revision": revision, "allow_patterns": patterns}
    try:
        found = Folder(snapshot_download(model, local_files_only=True, **named))
        ModelFolder.read(found)
        return found
    except (StageError, OSError, ValueError):  # not there (both), or not all of it
        pass  # what is wrong with it shows below
    try:
        if not constants.HF_HUB_OFFLINE and (fault := web_fault(constants.ENDPOINT)):
            raise ConnectionError(f"{constants.ENDPOINT} does not answer: {fault}")
        return Folder(snapshot_download(model, **named))
    except Exception as error:  # hub, cache and network raise nearly anything
        raise unavailable_error("transformers", f"{model}@{revision}", error) from error


def _gather(folder: ModelFolder, scratch: Path) -> dict[str, str]:
    """Put the used files, and no others, into a local folder; their sha256 by name."""
    digests = {}
    for name in folder.files:
        target = scratch / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if folder.folder.is_local:
            target.symlink_to((folder.folder.local_path() / name).resolve())
        else:
            target.write_bytes(folder.folder.read_bytes(name))
        digests[name] = Folder(str(scratch)).sha256(name)
    return digests


# -- the model -------------------------------------------------------------------------------------


def _load(name: str, folder: Path) -> tuple[Any, int, bool]:
    """(the model, tensors of the file that it has not, whether its pooler has no weights).

    A model trained for another purpose may lack the pooler's weights: they are 0 then.
    """
    from transformers import AutoModel

    loading: dict[str, Any] = {
        "dtype": torch.float32,
        "local_files_only": True,
        "use_safetensors": True,
        "trust_remote_code": False,
        "output_loading_info": True,
    }
    try:
        try:
            model, info = AutoModel.from_pretrained(folder, attn_implementation="sdpa", **loading)
        except ValueError:  # the few models that have no such attention
            model, info = AutoModel.from_pretrained(folder, attn_implementation="eager", **loading)
    except Exception as error:  # the library raises nearly anything for files that do not fit
        what = f"the weights of {name!r}, in the model that its {CONFIG} describes,"
        raise misfit_error(what, error, "copy both again, or use another model") from error
    drawn = sorted(info["missing_keys"])
    missing = [n for n in drawn if not n.startswith("pooler.")]
    wrong = sorted(str(found) for found in info["mismatched_keys"])
    strange = _strange(model, sorted(info["unexpected_keys"]))
    for what, names in (("lacks", missing), ("has another shape of", wrong), ("has too", strange)):
        if names:
            raise StageError(
                f"the weights of {name!r} do not fit its {CONFIG}: the file {what} {len(names)} "
                f"tensors (the first: {names[0]}); copy both from one model"
            )
    with torch.no_grad():
        for parameter in drawn:
            model.get_parameter(parameter).zero_()
    return model.eval(), len(info["unexpected_keys"]), bool(drawn)


def _strange(model: Any, unexpected: Collection[str]) -> list[str]:
    """The unexpected tensors that belong to the model's own parts: they are of another size."""
    parts = {name for name, _ in model.named_children()}
    prefix = f"{model.base_model_prefix}."
    return [
        name
        for name in unexpected
        if name.removeprefix(prefix).partition(".")[0] in parts
        and not _STRAY.search(name)
        and not name.removeprefix(prefix).startswith("pooler.")
    ]


def _resolved(
    spec: TransformersEncoder, folder: ModelFolder, model: Any, own: Any, sha256: str
) -> TextInput:
    """The input with every setting decided: the experiment file's, the folder's, the model's."""
    sentence = folder.sentence
    pooling = spec.pooling
    if pooling == "auto":
        last: Pooling = "last" if transformers.decodes(model.config) else "cls"
        pooling = sentence.pooling or last
    automatic = transformers.default_length(model, own, sentence.max_length)
    return TextInput(
        max_length=spec.max_length or automatic,
        truncate=spec.truncate,
        pair=spec.pair,
        prompt=spec.prompt or sentence.prompt,
        lower_case=sentence.lower_case,
        pooling=pooling,
        normalise=sentence.normalise if spec.normalise is None else spec.normalise,
        layer=spec.layer,
        tokenizer_sha256=sha256,
    )
