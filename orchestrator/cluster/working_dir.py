"""The files that a submitted sweep takes along: chosen, measured, copied, and sent as they are.

In a git checkout they are what git tracks or would track; elsewhere everything but what is plainly
not source (environments, caches, stores, tracking databases). Data never travels: it belongs on
storage that the cluster sees. A parcel above the limit is refused with its largest files.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import UserError

LIMIT_MB = 50.0

_NEVER = {".git", ".venv", "venv", "node_modules", "__pycache__", "mlruns", "mlartifacts"}
_NEVER_FILES = ("mlflow.db",)


@dataclass(frozen=True)
class Parcel:
    """Files below a folder, by relative path."""

    folder: Path
    files: tuple[Path, ...]
    bytes: int

    def copy(self, target: Path) -> None:
        """Put the files below an empty folder, as they lie below their own."""
        for file in self.files:
            copied = target / file
            copied.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(self.folder / file, copied)


def pack(folder: Path, limit_mb: float = LIMIT_MB) -> Parcel:
    """What goes along from a folder; UserError above the limit."""
    sizes = {file: (folder / file).stat().st_size for file in sorted(_chosen(folder))}
    total = sum(sizes.values())
    if total > limit_mb * 1e6:
        largest = sorted(sizes, key=lambda file: -sizes[file])[:3]
        named = ", ".join(f"{file} {sizes[file] / 1e6:.0f} MB" for file in largest)
        raise UserError(
            f"{folder} holds {total / 1e6:.0f} MB to send, the limit is {limit_mb:g} MB (largest: "
            f"{named}); move data to the cluster's storage, or name it in .gitignore"
        )
    return Parcel(folder, tuple(sizes), total)


def _chosen(folder: Path) -> Iterator[Path]:
    tracked = _of_git(folder)
    for file in tracked if tracked is not None else _walked(folder):
        if (folder / file).is_file() and not _left_out(file):
            yield file


def _left_out(file: Path) -> bool:
    return bool(_NEVER.intersection(file.parts)) or file.name.startswith(_NEVER_FILES)


def _of_git(folder: Path) -> list[Path] | None:
    """What git tracks below the folder, or would if it were added; None outside a checkout."""
    try:
        listed = subprocess.run(
            ["git", "-C", str(folder), "ls-files", "-z", "-c", "-o", "--exclude-standard"],
            capture_output=True,
            check=True,
            timeout=60,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return [Path(os.fsdecode(name)) for name in listed.split(b"\0") if name]


def _walked(folder: Path) -> Iterator[Path]:
    for root, folders, files in os.walk(folder):
        here = Path(root)
        folders[:] = [
            name
            for name in folders
            if name not in _NEVER
            and not name.startswith(".")
            and not (here / name / "store.json").exists()  # a result store
            and not (here / name / "pyvenv.cfg").exists()  # a virtual environment
        ]
        yield from ((here / name).relative_to(folder) for name in files)
