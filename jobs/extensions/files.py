"""Finds the files of extensions: by path, or as an entry point of an installed package.

Takes what an experiment names; gives each file's text with its digest. Runs nothing. A file in a
result store or in a bucket is refused: code comes from the person who runs it, never with data.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path

from jobs.contract import StageError
from jobs.extensions.spec import SUFFIX, Extension, is_name
from jobs.storage.bounded import read_text

GROUP = "nml_orch.extensions"
"""The entry points of packages that bring an extension: a name, and the module that is its file."""

_STORE = "store.json"  # marks the root of a result store


def find(named: Sequence[str]) -> dict[str, Extension]:
    """The extensions that an experiment names, by name.

    Raises StageError for a file that cannot be read and for two of one name.
    """
    found: dict[str, Extension] = {}
    for item in named:
        if "://" in item:
            raise StageError(f"{item} is in a bucket, and code is never run from one; copy it here")
        extension = _read(Path(item)) if item.endswith(SUFFIX) else _installed(item)
        known = found.setdefault(extension.name, extension)
        if known.sha256 != extension.sha256:
            raise StageError(
                f"two different files are both called {extension.file}; rename one of them"
            )
    return found


def _read(path: Path) -> Extension:
    if not is_name(path.stem):
        raise StageError(
            f"{path}: an extension is called by its file's name, so {path.stem!r} must be letters, "
            f"digits and underscores; rename the file"
        )
    for folder in path.absolute().parents:
        if (folder / _STORE).exists():
            raise StageError(
                f"{path} is in the result store {folder}, and code is never run from one; give a "
                f"file of your own"
            )
    try:
        return Extension.of(path.stem, read_text(path))
    except FileNotFoundError:
        raise StageError(
            f"{path} does not exist; correct the path, or put the file back (each finished step "
            f"that used it keeps a copy)"
        ) from None
    except (OSError, ValueError) as error:  # ValueError: of a path with NUL, of text not in UTF-8
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise StageError(
            f"{path} cannot be read as text in UTF-8 ({reason}); correct the path or the file"
        ) from None


def _installed(name: str) -> Extension:
    known = {point.name: point for point in entry_points(group=GROUP)}
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else "give a path that ends in .py"
        raise StageError(f"{name} is no file, and no installed package brings it; {hint}")
    return _read(_file_of(known[name]))


def _file_of(point: EntryPoint) -> Path:
    """The file of an entry point's module, found without importing it or its package."""
    inside = Path(*point.module.split(".")).with_suffix(SUFFIX)
    for path in _paths_of(point, inside):
        if path.is_file():
            return path
    raise StageError(
        f"{point.name}: its package has no file {inside}; install it again or in another version, "
        f"or name a file by its path"
    )


def _paths_of(point: EntryPoint, inside: Path) -> Iterator[Path]:
    """Where the file may be: beside the installed package, or where an editable one is imported."""
    if point.dist is not None:
        yield Path(str(point.dist.locate_file(inside)))
    top, *below = inside.parts
    spec = find_spec(top.removesuffix(SUFFIX))
    if spec is not None and spec.submodule_search_locations:
        yield from (Path(folder, *below) for folder in spec.submodule_search_locations)
    elif spec is not None and spec.origin:
        yield Path(spec.origin)
