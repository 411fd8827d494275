"""The result store: one folder a step, committed atomically, on any filesystem pyarrow knows.

A step's output lies in the folder of its address. `manifest.json` is written there last: a folder
without it is unfinished and is redone. The manifest holds the fingerprint, the fields it was made
from, every file's size and sha256, counts, summary metrics and provenance. Nothing relies on
rename, so the same holds in an object store.

Beside the outputs: `.scratch/` keeps what lets an interrupted step go on, bound to its fingerprint;
`.leases/` says who is writing what (`lease.py`); `store.json` names the store.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from jobs.contract import Outcome, Work
from jobs.place import Place
from orchestrator.errors import StoreError
from orchestrator.plan import Step

FORMAT = 1
MANIFEST = "manifest.json"


class FileRecord(BaseModel):
    """What a manifest says of one file."""

    model_config = ConfigDict(frozen=True)

    bytes: int
    sha256: str


class Manifest(BaseModel):
    """The record that makes a step's output count."""

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


class Store:
    """Step outputs under one root."""

    def __init__(self, root: Place) -> None:
        self.root = root

    @property
    def identity(self) -> str:
        """This store's own name, made when it is first written to; empty before."""
        if not self.root.exists("store.json"):
            return ""
        return str(self.root.read_json("store.json")["id"])

    def prepare(self) -> None:
        """Make the root if need be and prove that it can be written; StoreError otherwise."""
        try:
            if self.root.exists("store.json"):
                found = self.root.read_json("store.json")["format"]
                if found != FORMAT:
                    raise StoreError(
                        f"storage {self.root.uri} has format {found}, this version reads {FORMAT}; "
                        f"name another folder with --set storage=PATH"
                    )
                self.root.write_bytes(".writable", b"")
                self.root.delete(".writable")
            else:
                self.root.write_json("store.json", {"format": FORMAT, "id": uuid.uuid4().hex})
        except (OSError, ValueError, KeyError) as error:
            raise StoreError(
                f"storage {self.root.uri} cannot be written ({_reason(error)}); "
                f"name a folder you may write to with --set storage=PATH"
            ) from error

    # -- reading ---------------------------------------------------------------------------------

    def output(self, address: str) -> Place:
        """The folder of a step's output."""
        return self.root / address

    def scratch(self, step: Step) -> Place:
        """The folder of what lets a step go on after an interruption."""
        return self.root / f".scratch/{step.address}@{step.fingerprint[:12]}"

    def manifest(self, address: str) -> Manifest | None:
        """The record of a committed step; None while it is unfinished or absent."""
        try:
            data = self.output(address).read_bytes(MANIFEST)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError(
                f"storage {self.root.uri} cannot be read at {address} ({_reason(error)}); "
                f"check that it is reachable and yours to read"
            ) from error
        try:
            return Manifest.model_validate_json(data)
        except ValidationError as error:
            raise StoreError(
                f"{self.output(address).uri}/{MANIFEST} is not a manifest of this version; "
                f"delete that folder to have the step redone"
            ) from error

    # -- writing ---------------------------------------------------------------------------------

    def begin(self, step: Step) -> Work:
        """Empty the step's folder, its manifest first, and say where its work goes."""
        output = self.output(step.address)
        output.delete(MANIFEST)
        output.delete()
        return Work(
            address=step.address,
            fingerprint=step.fingerprint,
            spec=step.spec,
            inputs={role: self.output(address) for role, address in step.inputs.items()},
            output=output,
            scratch=self.scratch(step),
        )

    def commit(self, step: Step, outcome: Outcome, provenance: Mapping[str, Any]) -> Manifest:
        """Record the output now in the step's folder as finished, and drop its scratch."""
        output = self.output(step.address)
        files = {
            name: FileRecord(bytes=size, sha256=output.sha256(name))
            for name, size in output.files()
        }
        manifest = Manifest(
            address=step.address,
            kind=step.kind,
            fingerprint=step.fingerprint,
            fields=dict(step.fields),
            files=files,
            counts=dict(outcome.counts),
            metrics=dict(outcome.metrics),
            provenance=dict(provenance),
        )
        output.write_json(MANIFEST, manifest.model_dump(mode="json"))
        self.scratch(step).delete()
        return manifest


def _reason(error: Exception) -> str:
    """The shortest true words for an operating system's error."""
    return getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
