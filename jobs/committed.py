"""The output of a finished step, as the steps that read it see it: every file is checked.

Takes a step's folder and the sha256 of the manifest that the driver has seen. The process that
reads a file compares it with its record in that manifest, before it uses the first byte; so no
stage can forget it. A process hashes a file once, and again when its size, times or inode change.
Never writes, and never decides what to do about a damaged step.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from jobs.contract import StageError
from jobs.storage.folder import AlteredError, Folder

MANIFEST = "manifest.json"
"""The file that makes a step finished: `files` has the size and sha256 of every other one."""


@dataclass(frozen=True)
class Committed(Folder):
    """The folder of a finished step, to be read.

    Every way of reading raises StageError for a file that is not the one the manifest records, and
    when the step has been done again since; FileNotFoundError for a file that the step never had.
    """

    address: str
    manifest_sha256: str  # short, as it travels with every step that reads this one

    def check(self, name: str) -> None:
        """Raise StageError unless the file is the one that the manifest records."""
        record = self._record(name)
        with self._blaming(name):
            size = self.stamp(name)[0]
            if size != record["bytes"]:
                raise AlteredError(f"{size:,} bytes instead of {record['bytes']:,}")
            self.expect(name, record["sha256"])

    def check_bytes(self, name: str, data: bytes) -> None:
        """As `check`, of a content that has been read: what was hashed is what is used."""
        with self._blaming(name):
            if hashlib.sha256(data).hexdigest() != self._record(name)["sha256"]:
                raise AlteredError("another sha256")

    def read_bytes(self, name: str) -> bytes:
        """The whole content of a file."""
        self._record(name)
        with self._blaming(name):
            return super().read_bytes(name)

    def read_expected(self, name: str, sha256: str) -> bytes:
        """The whole content of a file. It is hashed once: the manifest's digest is compared."""
        data = self.read_bytes(name)
        if (found := self._record(name)["sha256"]) != sha256:
            raise AlteredError(f"sha256 {found[:12]}... instead of {sha256[:12]}...")
        return data

    def exists(self, name: str) -> bool:
        """Whether the step has a file of that name."""
        return name == MANIFEST or name in _files(self)

    def _record(self, name: str) -> Mapping[str, Any]:
        """The manifest's record of a file; FileNotFoundError when it has none."""
        if name not in _files(self):
            raise FileNotFoundError(f"{self.uri}/{name}")
        return _files(self)[name]

    @contextmanager
    def _blaming(self, name: str) -> Iterator[None]:
        """Say of what goes wrong which file of which step it is, and what to do."""
        try:
            yield
        except FileNotFoundError:
            raise self._damaged(name, "it is missing") from None
        except AlteredError as error:
            raise self._damaged(name, str(error)) from None

    def _damaged(self, name: str, how: str) -> StageError:
        _files.cache_clear()
        _files(self)  # raises another error if the step has been done again meanwhile
        return damaged(self.address, name, how)


def damaged(address: str, name: str, how: str) -> StageError:
    """The error for a file of a finished step that is missing or has changed."""
    kind = address.partition("/")[0]  # a file of these alone is no experiment for a sweep
    build = f"`nml-orch {kind} build` or " if kind in ("corpus", "noise") else ""
    return StageError(
        f"{name} of {address} is not the file that the step wrote ({how}); put the file back, or "
        f"do the step again: {build}`nml-orch sweep` with the same options and --redo {address}"
    )


@lru_cache(maxsize=4096)
def _files(folder: Committed) -> Mapping[str, Mapping[str, Any]]:
    """The manifest's records by file name; StageError when it is not the one that was seen."""
    try:
        data = Folder(folder.uri).read_bytes(MANIFEST)
    except FileNotFoundError:
        data = b""
    if hashlib.sha256(data).hexdigest() != folder.manifest_sha256:
        raise StageError(
            f"{folder.address} was done again or removed while its files were read; when nothing "
            f"else writes to this store, run the same command again"
        )
    files: Mapping[str, Mapping[str, Any]] = json.loads(data)["files"]
    return files
