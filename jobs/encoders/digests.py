"""Files that named encoders are made of: known by their digest before anything is run.

Takes an encoder of an experiment file, gives it with absolute paths and every file's sha256.
Reads bytes alone; imports nothing heavy, for every plan pays for it.
"""

from __future__ import annotations

from jobs.contract import StageError
from jobs.encoders.spec import FileEncoder, GivenEncoder, NamedEncoder
from jobs.storage.folder import Folder


def pin(encoder: NamedEncoder) -> NamedEncoder:
    """The encoder, its files known by content.

    Raises StageError when a file cannot be read or is not the one that `sha256` says. A file that
    is absent here is taken at its declared sha256, so that results can be looked at elsewhere.
    """
    match encoder := encoder.with_absolute_paths():
        case FileEncoder():
            sha256 = _digest(encoder.file, encoder.sha256, "file")
            return encoder.model_copy(update={"sha256": sha256})
        case GivenEncoder():
            found = {
                task: _digest(path, encoder.sha256.get(task), f"files.{task}")
                for task, path in encoder.files.items()
            }
            return encoder.model_copy(update={"sha256": found})
        case _:
            return encoder


def _digest(path: str, declared: str | None, field: str) -> str:
    folder, name = Folder.holding(path)
    try:
        found = folder.sha256(name)
    except FileNotFoundError:
        if declared is None:
            raise StageError(
                f"{field} = {path} does not exist; correct the path, or give its sha256 to plan "
                f"without it"
            ) from None
        return declared
    except OSError as error:
        raise StageError(f"{field} = {path} cannot be read ({error}); give a file") from None
    if declared is not None and found != declared:
        raise StageError(
            f"{field} = {path} holds other bytes (sha256 {found[:12]}...) than sha256 says "
            f"({declared[:12]}...); restore it, or give the encoder a new name"
        )
    return found
