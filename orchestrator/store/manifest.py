"""The record of a finished step: the manifest, and its short form for the index."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, BaseModel, ConfigDict
from pydantic_core import to_json

from jobs import records
from jobs.committed import MANIFEST as MANIFEST

FORMAT: Literal[1] = 1
VOLATILE = ("timings.parquet",)  # the machine's speed, which no step reads
ADDED = ("features-train.parquet", "features-validation.parquet")  # to features of a test part
ERROR = "error.txt"  # in a step's scratch: the traceback of its last failure, its sentence last


class FileRecord(BaseModel):
    """The record of one file."""

    model_config = ConfigDict(frozen=True)

    bytes: int
    sha256: str


def _with_spec(fields: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(fields.get("spec", {}), dict):
        raise ValueError("spec is not a mapping")
    return fields


def _with_times(provenance: dict[str, Any]) -> dict[str, Any]:
    for name in ("started", "finished"):
        moment = provenance.get(name, "2000-01-01")
        if not isinstance(moment, str):
            raise ValueError(f"{name} is not a time")
        datetime.fromisoformat(moment)
    if type(provenance.get("seconds", 0.0)) not in (int, float):
        raise ValueError("seconds is not a number")
    return provenance


class Manifest(BaseModel):
    """The record of a step's finished output."""

    model_config = ConfigDict(frozen=True)

    format: Literal[1] = FORMAT
    address: str
    kind: str
    fingerprint: str  # sha256 of `fields` in canonical JSON
    # What bears identity: spec, protocol, fingerprints of the inputs.
    fields: Annotated[dict[str, Any], AfterValidator(_with_spec)]
    files: dict[str, FileRecord]  # name below the step's folder -> size and digest
    counts: dict[str, int]  # rows read, kept, skipped and why
    metrics: dict[str, float]  # summary numbers
    # Versions, commit, argv, host, times; never bears identity.
    provenance: Annotated[dict[str, Any], AfterValidator(_with_times)]
    read: dict[str, str] = {}  # role -> `content` of the step read; older versions lack it

    @property
    def content(self) -> str:
        """A digest of the files that another step may read."""
        return self._content(VOLATILE)

    @property
    def before(self) -> str:
        """The content before parts were added to it; empty where none can have been."""
        added = self.kind == "features" and not self.files.keys().isdisjoint(ADDED)
        return self._content((*VOLATILE, *ADDED)) if added else ""

    def _content(self, without: Sequence[str]) -> str:
        files = [(n, f.sha256) for n, f in sorted(self.files.items()) if n not in without]
        return hashlib.sha256(json.dumps(files).encode()).hexdigest()[:16]


CELL_TABLE = "cell.parquet"  # the one file of a step whose rows the index has too


Stamp = tuple[int, int]
"""Size in bytes and time of writing in nanoseconds of a manifest, by the store."""


@dataclass(frozen=True)
class Facts:
    """What the short form keeps of a manifest as JSON."""

    counts: Mapping[str, int]
    metrics: Mapping[str, float]
    files: Sequence[str]
    seconds: float = 0.0  # older indices lack it, and what follows
    content: str = ""
    read: Mapping[str, str] = field(default_factory=dict)
    before: str = ""


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
        facts = Facts(
            manifest.counts,
            manifest.metrics,
            sorted(manifest.files),
            float(manifest.provenance.get("seconds", 0.0)),
            manifest.content,
            manifest.read,
            manifest.before,
        )
        return Record(
            manifest.address,
            manifest.kind,
            manifest.fingerprint,
            str(manifest.provenance.get("finished", "")),
            sum(file.bytes for file in manifest.files.values()),
            to_json(asdict(facts)).decode(),
        )

    @property
    def counts(self) -> Mapping[str, int]:
        """Rows read, kept, skipped and why."""
        return parsed(self.facts).counts

    @property
    def metrics(self) -> Mapping[str, float]:
        """The step's summary numbers."""
        return parsed(self.facts).metrics

    @property
    def seconds(self) -> float:
        """Of work (`Outcome.seconds`), else from its start to its end; 0 if there are no times."""
        return parsed(self.facts).seconds

    @property
    def content(self) -> str:
        """See `Manifest.content`; empty in an index of an older version."""
        return parsed(self.facts).content

    @property
    def before(self) -> str:
        """See `Manifest.before`; empty in an index of an older version."""
        return parsed(self.facts).before

    @property
    def read(self) -> Mapping[str, str]:
        """See `Manifest.read`."""
        return parsed(self.facts).read

    @property
    def files(self) -> Sequence[str]:
        """Names of the step's files."""
        return parsed(self.facts).files


@lru_cache(maxsize=1024)
def parsed(facts: str) -> Facts:
    """The facts of a record's JSON. Raises ValueError when it is broken."""
    return records.parse(facts, Facts)
