"""The result store: one folder for each step, committed atomically, on any pyarrow filesystem.

A step's output is in the folder of its address. `manifest.json` is written there last: a folder
without it is unfinished and is done again. The manifest holds the fingerprint, its fields, the size
and sha256 of every file, counts, summary metrics and provenance. Nothing depends on rename, so
object stores work in the same way. On a local disk every file is flushed (fsync) before its name
appears, the manifest after the files that it names. Folders are not flushed: a power cut may undo
the last steps, which are then done again, but never leaves a wrong one.

The store also holds `.scratch/`, what an interrupted step needs to continue; `.leases/`, who writes
what (`lease.py`); `.index/`, the short form of the manifests (`index.py`); `.embeddings/`, what was
bought from APIs (`jobs/embeddings/ledger.py`); `store.json`, the store's identity;
`last-sweep.yaml`, the last experiment (`orchestrator/experiment/last_sweep.py`);
`registered-claims/`, what each experiment registered (`orchestrator/experiment/registered.py`).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from jobs import records
from jobs.committed import Committed
from jobs.contract import Outcome, Spec, Work
from jobs.storage.folder import Folder
from orchestrator.errors import ReplacedError, StoreError
from orchestrator.step.address import kind_of, scratch_of
from orchestrator.step.step import Step
from orchestrator.store.manifest import ADDED, FORMAT, MANIFEST, FileRecord, Manifest
from orchestrator.store.provenance import redact

if TYPE_CHECKING:
    import pyarrow as pa

    from orchestrator.store.manifest import Record, Stamp

READERS = 16  # manifests or tables that are read from an object store at once


IDENTITY = "store.json"


@dataclass(frozen=True)
class _Identity:
    """The record of the store itself."""

    format: int
    id: str


class Store:
    """Step outputs under one root."""

    def __init__(self, root: Folder) -> None:
        self.root = root

    @property
    def identity(self) -> str:
        """The store's own id, made at its first write; empty before. StoreError if it is broken."""
        found = self._identity()
        return found.id if found else ""

    def _identity(self) -> _Identity | None:
        try:
            return records.read(
                self.root,
                IDENTITY,
                _Identity,
                "delete it: the next sweep makes a new one and keeps all results, and `nml-orch "
                "sync` then writes all runs to MLflow again",
            )
        except FileNotFoundError:
            return None
        except records.RecordError as error:
            raise StoreError(str(error)) from None

    def prepare(self) -> None:
        """Create the root if needed and check that it can be written; StoreError otherwise."""
        try:
            if (found := self._identity()) is not None:
                if found.format != FORMAT:
                    raise StoreError(
                        f"storage {self.root.uri} has format {found.format}, this version reads "
                        f"{FORMAT}; name another folder with --set storage=PATH"
                    )
                trial = f".writable-{uuid.uuid4().hex}"  # another driver may be trying too
                self.root.write_bytes(trial, b"")
                self.root.delete(trial)
            else:
                self.root.write_json(IDENTITY, asdict(_Identity(FORMAT, uuid.uuid4().hex)))
        except (OSError, ValueError) as error:
            message = redact(f"storage {self.root.uri} cannot be written ({_reason(error)})")
            raise StoreError(
                f"{message}; name a folder you may write to with --set storage=PATH"
            ) from error

    # -- reading ---------------------------------------------------------------------------------

    @contextlib.contextmanager
    def reading(self, where: str = "") -> Iterator[None]:
        """A context in which a store that cannot be read raises StoreError. An absent file still
        raises FileNotFoundError.
        """
        try:
            yield
        except FileNotFoundError:
            raise
        except ValueError as error:  # also Arrow's, for an unknown scheme
            message = redact(f"storage {self.root.uri} cannot be read{where} ({_reason(error)})")
            raise StoreError(
                f"{message}; name a folder, s3://BUCKET/FOLDER or gs://BUCKET/FOLDER with --storage"
            ) from error
        except OSError as error:
            raise StoreError(
                f"storage {self.root.uri} cannot be read{where} ({_reason(error)}); "
                f"check that it is reachable and that you may read it"
            ) from error

    def output(self, address: str) -> Folder:
        """The folder of a step's output, to be written. To read it, see `committed`."""
        return self.root / address

    def committed(self, address: str) -> Committed:
        """The folder of a finished step, to be read: every file is checked against the manifest.

        Raises ReplacedError if the step is not finished.
        """
        data = self._manifest_bytes(address)
        return Committed(self.output(address).uri, address, hashlib.sha256(data).hexdigest())

    def planned(self, address: str, fingerprint: str) -> tuple[Committed, Manifest]:
        """As `committed`, with the manifest. Raises ReplacedError for another fingerprint too."""
        data = self._manifest_bytes(address)
        manifest = self._parsed(address, data)
        if manifest.fingerprint != fingerprint:
            raise ReplacedError(
                f"{address} was done again with other settings meanwhile, and those stand; "
                f"`nml-orch plan` with the same options shows the difference"
            )
        seen = hashlib.sha256(data).hexdigest()
        return Committed(self.output(address).uri, address, seen), manifest

    def _manifest_bytes(self, address: str) -> bytes:
        try:
            with self.reading(f" at {address}"):
                return self._manifest_data(address)
        except FileNotFoundError:
            raise ReplacedError(
                f"{address} is not finished any more: its {MANIFEST} is gone; when nothing else "
                f"writes to this store, run the same command again"
            ) from None

    def scratch(self, step: Step) -> Folder:
        """The folder of what a step needs to continue after an interruption."""
        return self.root / scratch_of(step.address, step.fingerprint)

    def manifest(self, address: str) -> Manifest | None:
        """The record of a committed step; None if it is unfinished or absent."""
        try:
            with self.reading(f" at {address}"):
                data = self._manifest_data(address)
        except FileNotFoundError:
            return None
        return self._parsed(address, data)

    def _manifest_data(self, address: str) -> bytes:
        try:
            return self.output(address).read_bytes(MANIFEST)
        except IsADirectoryError:
            raise self._useless(address, "it is a folder") from None

    def _useless(self, address: str, why: str) -> StoreError:
        where = (self.output(address) / MANIFEST).uri
        return StoreError(
            f"{where} cannot be used ({why}); delete its folder to have the step redone"
        )

    def _parsed(self, address: str, data: bytes) -> Manifest:
        try:
            found = records.parse(data, Manifest)
        except ValueError as error:
            raise self._useless(address, str(error)) from None
        if found.address != address:
            raise self._useless(address, f"it is the manifest of {found.address}")
        return found

    def stamp(self, address: str) -> Stamp | None:
        """Size and modification time of a step's manifest; None if there is none."""
        if self.root.is_local:
            try:
                found = os.stat(f"{self.root.uri}/{address}/{MANIFEST}")
            except (FileNotFoundError, NotADirectoryError):
                return None
            return found.st_size, found.st_mtime_ns
        filesystem, path = self.output(address).open()
        info = filesystem.get_file_info(f"{path}/{MANIFEST}")
        return (info.size, info.mtime_ns) if info.size is not None else None

    def stamps(self, addresses: Collection[str]) -> dict[str, Stamp]:
        """The stamps of the steps that have a manifest. StoreError when the store cannot be read.

        Needs one `stat` for each step on a local disk, one listing for each kind in an object
        store.
        """
        with self.reading():
            if self.root.is_local:
                return self._local_stamps(addresses)
            return self._listed_stamps(addresses)

    def _local_stamps(self, addresses: Collection[str]) -> dict[str, Stamp]:
        """Like `stamp` for each, but looks at the root only once."""
        root = self.root.uri
        found: dict[str, Stamp] = {}
        for address in addresses:
            try:
                seen = os.stat(f"{root}/{address}/{MANIFEST}")
            except (FileNotFoundError, NotADirectoryError):
                continue
            found[address] = seen.st_size, seen.st_mtime_ns
        return found

    def _listed_stamps(self, addresses: Collection[str]) -> dict[str, Stamp]:
        import pyarrow.fs as pafs

        filesystem, root = self.root.open()
        by_kind: dict[str, list[str]] = {}
        for address in addresses:
            by_kind.setdefault(kind_of(address), []).append(address)
        wanted = set(addresses)
        found: dict[str, Stamp] = {}
        for some in by_kind.values():
            common = os.path.commonpath(some) if len(some) > 1 else some[0]
            selector = pafs.FileSelector(f"{root}/{common}", recursive=True, allow_not_found=True)
            for info in filesystem.get_file_info(selector):
                address, _, name = info.path[len(root) :].lstrip("/").rpartition("/")
                if name == MANIFEST and address in wanted:
                    found[address] = (info.size, info.mtime_ns)
        return found

    def count(self, addresses: Collection[str]) -> int:
        """How many of these steps are finished, with any settings."""
        return len(self.records(addresses))

    def held(self, kind: str) -> list[str]:
        """The addresses of the finished steps of a kind, of whatever experiment, sorted."""
        with self.reading():
            names = [name for name, _ in (self.root / kind).files()]
        ending = f"/{MANIFEST}"
        return [f"{kind}/{name.removesuffix(ending)}" for name in names if name.endswith(ending)]

    def records(self, addresses: Collection[str], *, verify: bool = False) -> dict[str, Record]:
        """The short records of the committed steps; `verify` opens every manifest.

        Entries that the index lacks are read from the manifests and added, if the store is
        writable.
        """
        from orchestrator.store.index import KEEP_ROWS, Index
        from orchestrator.store.manifest import Record

        stamps = self.stamps(addresses)
        index = Index(self.root)
        with self.reading():
            found = {} if verify else index.records(stamps)
        lacking = [address for address in stamps if address not in found]
        with ThreadPoolExecutor(1 if self.root.is_local else READERS) as pool:
            manifests = pool.map(self.manifest, lacking)
            fresh = {m.address: Record.of(m) for m in manifests if m is not None}
        if len(fresh) >= KEEP_ROWS and not verify:
            with contextlib.suppress(OSError):  # a store that may not be written is read slowly
                index.keep(fresh, stamps)
        found.update(fresh)
        return {address: found[address] for address in addresses if address in found}

    def cell(self, address: str) -> pa.Table:
        """The result rows of one finished cell."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        from orchestrator.store.manifest import CELL_TABLE

        data = self.committed(address).read_bytes(CELL_TABLE)
        # One row: handing it to Arrow's threads takes longer than reading it.
        return pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)

    def cells(self, addresses: Collection[str]) -> pa.Table | None:
        """The result rows of finished cells, with the column `address`; None if there are none."""
        from orchestrator.store.index import KEEP_ROWS, Index, addressed, concatenated

        stamps = self.stamps(addresses)
        index = Index(self.root)
        tables = index.cells(stamps)
        lacking = set(stamps).difference(*(table["address"].to_pylist() for table in tables))

        def read(address: str) -> pa.Table:
            return addressed(self.cell(address), address)

        with ThreadPoolExecutor(1 if self.root.is_local else READERS) as pool:
            fresh = list(pool.map(read, sorted(lacking)))
        if len(fresh) >= KEEP_ROWS:
            with contextlib.suppress(OSError):  # as above
                index.keep_cells(fresh, stamps)
        return concatenated([*tables, *fresh]) if tables or fresh else None

    # -- writing ---------------------------------------------------------------------------------

    def begin(self, step: Step, inputs: Mapping[str, Folder] | None = None) -> Work:
        """Empty the step's folder, its manifest first, and return the work.

        `inputs`: the folders of the steps it reads, by role; else `committed` gives them.
        """
        if inputs is None:
            inputs = {role: self.committed(address) for role, address in step.inputs.items()}
        output = self.output(step.address)
        output.delete(MANIFEST)
        output.delete()
        return self._work(step, step.spec, inputs)

    def extend(self, step: Step, inputs: Mapping[str, Folder], parts: Sequence[str]) -> Work:
        """The work that adds parts to a finished step of features, which stays finished meanwhile.

        `commit` with the manifest that it has now ends it.
        """
        return self._work(step, step.spec.model_copy(update={"only": tuple(parts)}), inputs)

    def _work(self, step: Step, spec: Spec, inputs: Mapping[str, Folder]) -> Work:
        return Work(
            address=step.address,
            fingerprint=step.fingerprint,
            spec=spec,
            inputs=inputs,
            output=self.output(step.address),
            scratch=self.scratch(step),
        )

    def commit(
        self,
        step: Step,
        outcome: Outcome,
        provenance: Mapping[str, Any],
        read: Mapping[str, str] | None = None,
        before: Manifest | None = None,
    ) -> Manifest:
        """Record the output in the step's folder as finished, and delete its scratch.

        `read`: the content of each step that it read, by role; see `Manifest.read`. `before`: what
        the step had, if parts were added to it (`extend`).
        """
        output = self.output(step.address)
        kept = {} if before is None else before.files
        files = {
            name: kept.get(name) or FileRecord(bytes=size, sha256=output.sha256(name))
            for name, size in output.files()
            if before is None or name in kept or name in ADDED
        }
        if before is not None:
            outcome = _joined(before, outcome)
        manifest = Manifest(
            address=step.address,
            kind=step.kind,
            fingerprint=step.fingerprint,
            fields=dict(step.fields),
            files=files,
            counts=dict(outcome.counts),
            metrics=dict(outcome.metrics),
            provenance=dict(provenance),
            read=dict(read or {}),
        )
        output.write_json(MANIFEST, manifest.model_dump(mode="json"))
        self.scratch(step).delete()
        return manifest


def _joined(before: Manifest, added: Outcome) -> Outcome:
    """The counts and metrics of features and of the parts added to them; rows add up."""
    counts = dict(before.counts)
    for name, value in added.counts.items():
        counts[name] = value if name == "dim" else counts.get(name, 0) + value
    return Outcome(counts, {**before.metrics, **added.metrics})


def _reason(error: Exception) -> str:
    """The shortest description of an operating system's error."""
    return getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
