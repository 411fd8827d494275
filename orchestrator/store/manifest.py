"""The record of a finished step: the manifest, and its short form for the index."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict

from jobs.committed import MANIFEST as MANIFEST

FORMAT = 1
VOLATILE = ("timings.parquet",)  # the machine's speed, which no step reads
ERROR = "error.txt"  # in a step's scratch: the traceback of its last failure, its sentence last


class FileRecord(BaseModel):
    """The record of one file."""

    model_config = ConfigDict(frozen=True)

    bytes: int
    sha256: str


class Manifest(BaseModel):
    """The record of a step's finished output."""

    model_config = ConfigDict(frozen=True)

    format: int = FORMAT
    address: str
    kind: str
    fingerprint: str  # sha256 of `fields` in canonical JSON
    fields: dict[str, Any]  # what bears identity: spec, protocol, fingerprints of the inputs
    files: dict[str, FileRecord]  # name below the step's folder -> size and digest
    counts: dict[str, int]  # rows read, kept, skipped and why
    metrics: dict[str, float]  # summary numbers
    provenance: dict[str, Any]  # versions, commit, argv, host, times; never bears identity
    read: dict[str, str] = {}  # role -> `content` of the step read; older versions lack it

    @property
    def content(self) -> str:
        """A digest of the files that another step may read."""
        files = [(n, f.sha256) for n, f in sorted(self.files.items()) if n not in VOLATILE]
        return hashlib.sha256(json.dumps(files).encode()).hexdigest()[:16]


CELL_TABLE = "cell.parquet"  # the one file of a step whose rows the index has too


Stamp = tuple[int, int]
"""Size in bytes and time of writing in nanoseconds of a manifest, by the store."""


class Record(NamedTuple):
    """The short form of a manifest. A tuple, because reading a store makes 50,000 of them."""

    address: str
    kind: str
    fingerprint: str
    finished: str  # ISO 8601; empty if the manifest has no such time
    bytes: int  # of all the step's files
    facts: str

    @staticmethod
    def of(manifest: Manifest) -> Record:
        """The short form of a manifest."""
        facts = {
            "counts": manifest.counts,
            "metrics": manifest.metrics,
            "files": sorted(manifest.files),
            "seconds": manifest.provenance.get("seconds", 0.0),
            "content": manifest.content,
            "read": manifest.read,
        }
        return Record(
            manifest.address,
            manifest.kind,
            manifest.fingerprint,
            str(manifest.provenance.get("finished", "")),
            sum(file.bytes for file in manifest.files.values()),
            json.dumps(facts, separators=(",", ":")),
        )

    @property
    def counts(self) -> Mapping[str, int]:
        """Rows read, kept, skipped and why."""
        counts: dict[str, int] = _parsed(self.facts)["counts"]
        return counts

    @property
    def metrics(self) -> Mapping[str, float]:
        """The step's summary numbers."""
        metrics: dict[str, float] = _parsed(self.facts)["metrics"]
        return metrics

    @property
    def seconds(self) -> float:
        """From the step's start to its end; 0 if the manifest has no times."""
        seconds: float = _parsed(self.facts).get("seconds", 0.0)  # older indices lack it
        return seconds

    @property
    def content(self) -> str:
        """See `Manifest.content`; empty in an index of an older version."""
        content: str = _parsed(self.facts).get("content", "")
        return content

    @property
    def read(self) -> Mapping[str, str]:
        """See `Manifest.read`."""
        read: dict[str, str] = _parsed(self.facts).get("read", {})
        return read

    @property
    def files(self) -> Sequence[str]:
        """Names of the step's files."""
        files: list[str] = _parsed(self.facts)["files"]
        return files


@lru_cache(maxsize=1024)
def _parsed(facts: str) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(facts)
    return parsed
