"""The files of pretrained encoders, identified by their sha256 when the experiment is planned.

Takes an encoder of an experiment file; gives it with absolute paths and each file's sha256. Only
reads bytes. Imports nothing heavy, because every plan imports it.
"""

from __future__ import annotations

import hashlib

from jobs.contract import StageError
from jobs.encoders.model_folder import ModelFolder, digest_of, locate, tokenizer_of
from jobs.encoders.spec import (
    FileEncoder,
    GivenEncoder,
    OwnEncoder,
    OwnTextEncoder,
    PretrainedEncoder,
    TransformersEncoder,
)
from jobs.storage.folder import Folder


def digest(encoder: PretrainedEncoder) -> PretrainedEncoder:
    """The encoder with the sha256 of each of its files.

    A file that does not exist here keeps its declared sha256, so results can be read on another
    machine. Raises StageError when a file cannot be read or differs from its `sha256`.
    """
    if isinstance(encoder, OwnTextEncoder):
        encoder = encoder.model_copy(update={"tokenizer_sha256": _tokenizer_digest(encoder)})
    match encoder := encoder.with_absolute_paths():
        case FileEncoder() | OwnEncoder() | OwnTextEncoder() if encoder.file is not None:
            sha256 = _file_digest(encoder.file, encoder.sha256, "file")
            return encoder.model_copy(update={"sha256": sha256})
        case GivenEncoder():
            found = {
                task: _file_digest(path, encoder.sha256.get(task), f"files.{task}")
                for task, path in encoder.files.items()
            }
            return encoder.model_copy(update={"sha256": found})
        case TransformersEncoder():
            return encoder.model_copy(update={"sha256": _model_digest(encoder)})
        case _:
            return encoder


def _tokenizer_digest(encoder: OwnTextEncoder) -> str:
    folder, declared = Folder.of(encoder.tokenizer), encoder.tokenizer_sha256
    try:
        found = digest_of({name: folder.sha256(name) for name in tokenizer_of(folder)})
    except (StageError, OSError) as error:
        if declared is not None:
            return declared
        raise StageError(f"tokenizer = {encoder.tokenizer}: {error}") from None
    if declared not in (None, found):
        raise StageError(
            f"tokenizer = {encoder.tokenizer} holds other files (sha256 {found[:12]}...) than its "
            f"tokenizer_sha256 ({declared[:12]}...); restore them, or leave out tokenizer_sha256 "
            f"and give the encoder a new name"
        )
    return found


def _model_digest(encoder: TransformersEncoder) -> str:
    if encoder.revision is not None:
        return hashlib.sha256(f"{encoder.model}@{encoder.revision}".encode()).hexdigest()
    folder = locate(encoder.model)
    parent, name = Folder.holding(folder.uri)
    try:
        if encoder.sha256 is not None and not parent.exists(name):
            return encoder.sha256
        found = ModelFolder.read(folder).sha256()
    except OSError as error:
        raise StageError(
            f"model = {encoder.model} cannot be read ({error}); name a folder with a model"
        ) from None
    if encoder.sha256 is not None and found != encoder.sha256:
        raise StageError(
            f"model = {encoder.model} holds other files (sha256 {found[:12]}...) than its sha256 "
            f"({encoder.sha256[:12]}...); restore them, or leave out sha256 and give the encoder a "
            f"new name"
        )
    return found


def _file_digest(path: str, declared: str | None, field: str) -> str:
    folder, name = Folder.holding(path)
    try:
        found = folder.sha256(name)
    except FileNotFoundError:
        if declared is None:
            raise StageError(
                f"{field} = {path} does not exist; correct the path, or give its sha256 to plan "
                f"without the file"
            ) from None
        return declared
    except OSError as error:
        raise StageError(f"{field} = {path} cannot be read ({error}); give a file") from None
    if declared is not None and found != declared:
        raise StageError(
            f"{field} = {path} holds other bytes (sha256 {found[:12]}...) than its sha256 "
            f"({declared[:12]}...); restore the file, or leave out its sha256 and give the "
            f"encoder a new name"
        )
    return found
