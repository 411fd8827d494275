"""Folders as finished steps leave them, for tests of what reads them."""

import hashlib
from pathlib import Path

from jobs.committed import MANIFEST, Committed
from jobs.storage.folder import Folder


def seal(folder: Path, address: str) -> Committed:
    """The folder as a finished step: with a manifest of the files that it has now."""
    (folder / MANIFEST).unlink(missing_ok=True)
    found = Folder.of(folder)
    files = {n: {"bytes": size, "sha256": found.sha256(n)} for n, size in found.files()}
    found.write_json(MANIFEST, {"address": address, "files": files})
    seen = hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
    return Committed(found.uri, address, seen)
