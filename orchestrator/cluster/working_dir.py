"""Chooses, measures and copies the files that are sent with a submitted sweep.

In a git checkout these are the files that git tracks or would track. Elsewhere they are all files
but environments, caches, stores and tracking databases. Data is never sent: it belongs on storage
that the cluster sees. Files above the limit are refused; the error names the largest.
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
class WorkingDir:
    """The files of a folder that are sent, by relative path."""

    folder: Path
    files: tuple[Path, ...]
    bytes: int

    def copy(self, target: Path) -> None:
        """Copy the files to an empty folder, with the same relative paths."""
        for file in self.files:
            copied = target / file
            copied.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(self.folder / file, copied)


def working_dir(folder: Path, limit_mb: float = LIMIT_MB) -> WorkingDir:
    """The files to send from a folder. Raises UserError above the limit (in MB)."""
    sizes = {file: (folder / file).stat().st_size for file in sorted(_chosen(folder))}
    total = sum(sizes.values())
    if total > limit_mb * 1e6:
        largest = sorted(sizes, key=lambda file: -sizes[file])[:3]
        listed = ", ".join(f"{file} {sizes[file] / 1e6:.0f} MB" for file in largest)
        raise UserError(
            f"{folder} holds {total / 1e6:.0f} MB to send, the limit is {limit_mb:g} MB (largest: "
            f"{listed}); move data to the cluster's storage, or name it in .gitignore"
        )
    return WorkingDir(folder, tuple(sizes), total)


def _chosen(folder: Path) -> Iterator[Path]:
    tracked = _git_files(folder)
    for file in tracked if tracked is not None else _source_files(folder):
        if (folder / file).is_file() and not _is_excluded(file):
            yield file


def _is_excluded(file: Path) -> bool:
    return bool(_NEVER.intersection(file.parts)) or file.name.startswith(_NEVER_FILES)


def _git_files(folder: Path) -> list[Path] | None:
    """The files below a folder that git tracks or would track; None outside a checkout."""
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


def _source_files(folder: Path) -> Iterator[Path]:
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
