"""The ledger: every vector that an API has given, by the sha256 of the exact text that was sent.

It lies at `.embeddings/<identity>/` below the storage root, outside all steps, so it survives
`--force`, new tasks, new experiments and every kill. A ledger only grows. An answer is one Arrow
file in `answers/`, whole or absent, on the disk before `add` returns:

    <time in ns>-<sha256 of its bytes>.arrow    text (32 bytes), vector (float32 [D])

Its metadata has what was paid for it (`Paid`). `compact` writes many small files as one, which
names the files that it replaces; readers leave these out from then on, and only then they are
deleted. One process writes (it holds the lease of the ledger's name); any number read. Where two
files have one text, the older one is right. Nothing here asks a server.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from jobs import records
from jobs.contract import StageError
from jobs.encoders.api import ApiEncoder
from jobs.storage.folder import AlteredError, Folder

LEDGERS = ".embeddings"
IDENTITY = "identity.json"
ANSWERS, DRIFTS = "answers", "drift"
COMPACT_ROWS = 16_384  # vectors of a file that is not written again: 100 MB at 1,536 dimensions
_FACTS = b"paid"
_DRIFT = re.compile(r"\d{20}\.json")
_REMEDY = "restore it from a copy; what it held would have to be paid for again"

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Paid:
    """What some answers cost."""

    requests: int = 0
    counted: int = 0  # tokens, by our table
    usage: int = 0  # tokens, as the server reported; 0 if it reports none
    counted_with_usage: int = 0  # tokens by our table of the requests whose usage is known
    price: float = 0.0  # by price_per_million at that time

    def __add__(self, other: Paid) -> Paid:
        """The sum."""
        mine, theirs = asdict(self), asdict(other)
        return Paid(**{name: mine[name] + theirs[name] for name in mine})

    @property
    def scale(self) -> float:
        """Tokens that the server counts for one of ours; 1 while it has reported none."""
        return self.usage / self.counted_with_usage if self.counted_with_usage else 1.0


@dataclass(frozen=True)
class _Facts:
    """The metadata of a file of answers."""

    paid: Paid
    replaces: list[str]  # the files whose answers this one has too


@dataclass(frozen=True)
class _Piece:
    """One file of answers."""

    name: str
    rows: int
    paid: Paid


@dataclass(frozen=True)
class Drift:
    """A change of the model behind its name that was accepted."""

    time: str
    cosine: float  # of the canary's vectors before and after
    vector: tuple[float, ...]  # of the canary, from then on


class Ledger:
    """The answers of one identity. `load` reads what is there; `add` adds."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self._pieces: list[_Piece] = []
        self._where: dict[bytes, tuple[int, int]] = {}  # text -> piece, row
        self.dim: int | None = None
        self._adding = threading.Lock()
        self.load()

    @staticmethod
    def of(root: Folder, encoder: ApiEncoder) -> Ledger:
        """The ledger of an encoder in a store."""
        return Ledger(root / LEDGERS / encoder.ledger)

    # -- reading ---------------------------------------------------------------------------------

    def load(self) -> None:
        """Read which texts are there."""
        for attempt in range(5):
            try:
                self._load()
                return
            except FileNotFoundError:  # another process has just compacted it
                if attempt == 4:
                    raise

    def _load(self) -> None:
        found = [
            (name, *self._header(name))
            for name, _ in (self.folder / ANSWERS).files()
            if name.endswith(".arrow")
        ]
        replaced = {old for *_, facts in found for old in facts.replaces}
        self._pieces, self._where, self.dim = [], {}, None
        for name, keys, dim, facts in found:
            if name not in replaced:
                self._append(_Piece(name, len(keys), facts.paid), keys, dim)

    def _header(self, name: str) -> tuple[list[bytes], int, _Facts]:
        """A file's texts, the length of its vectors, and its facts."""
        try:
            with (self.folder / ANSWERS).opening(name) as source:
                options = pa.ipc.IpcReadOptions(included_fields=[0])
                whole = pa.ipc.open_file(source)
                vector = whole.schema.types[-1] if len(whole.schema) else pa.null()
                if not pa.types.is_fixed_size_list(vector) or whole.schema != _schema(vector):
                    raise ValueError("its columns are others")
                facts = records.parse((whole.schema.metadata or {})[_FACTS], _Facts)
                table = pa.ipc.open_file(source, options=options).read_all()
                return table["text"].to_pylist(), vector.list_size, facts
        except (pa.ArrowException, KeyError, ValueError) as error:
            raise self._damaged(name, str(error)) from None
        except OSError as error:
            if error.errno is not None:  # a disk's own, or the file is gone
                raise
            raise self._damaged(name, str(error)) from None

    def _append(self, piece: _Piece, keys: Sequence[bytes], dim: int) -> None:
        if self.dim not in (None, dim):
            raise self._damaged(piece.name, f"vectors of {dim} numbers instead of {self.dim}")
        self.dim = dim
        number = len(self._pieces)
        self._pieces.append(piece)
        for row, key in enumerate(keys):
            self._where.setdefault(key, (number, row))

    def __len__(self) -> int:
        """Texts in the ledger."""
        return len(self._where)

    def __contains__(self, key: object) -> bool:
        return key in self._where

    @property
    def keys(self) -> Collection[bytes]:
        """The texts that are there, as they came."""
        return self._where.keys()

    @property
    def paid(self) -> Paid:
        """What all answers cost."""
        return sum((piece.paid for piece in self._pieces), Paid())

    @property
    def files(self) -> int:
        """Files of answers that count."""
        return len(self._pieces)

    def vectors(self, keys: Sequence[bytes]) -> Vectors:
        """The vectors of texts, float32 [N, D]. Raises KeyError for a text that is not there, and
        StageError for a damaged file.
        """
        for attempt in range(5):
            try:
                return self._vectors(keys)
            except FileNotFoundError:  # as in `load`
                if attempt == 4:
                    raise
                self.load()
        raise AssertionError("unreachable")

    def _vectors(self, keys: Sequence[bytes]) -> Vectors:
        places = np.array([self._where[key] for key in keys], np.int64).reshape(-1, 2)
        found = np.empty((len(keys), self.dim or 0), np.float32)
        for number in np.unique(places[:, 0]):
            mine = places[:, 0] == number
            found[mine] = self._matrix(self._pieces[number].name)[places[mine, 1]]
        return found

    def _matrix(self, name: str) -> Vectors:
        """All vectors of a file, [rows, D], after its bytes were compared with its name."""
        folder = self.folder / ANSWERS
        self._refuse_changed(name)
        with folder.opening(name) as source:
            column = pa.ipc.open_file(source).read_all()["vector"].combine_chunks()
        if isinstance(column, pa.ChunkedArray):
            (column,) = column.chunks
        matrix: Vectors = column.flatten().to_numpy().reshape(len(column), -1)
        return matrix

    def _refuse_changed(self, name: str) -> None:
        """Raise StageError when a file's bytes are not those that its name was made of."""
        try:
            (self.folder / ANSWERS).expect(name, _digest_in(name))
        except AlteredError as error:
            raise self._damaged(name, str(error)) from None

    def _damaged(self, name: str, how: str) -> StageError:
        where = (self.folder / ANSWERS / name).uri
        return StageError(f"{where} is not what an API's answer wrote ({how}); {_REMEDY}")

    # -- writing ---------------------------------------------------------------------------------

    def begin(self, encoder: ApiEncoder) -> None:
        """Write whose answers these are, once; delete what a killed writer has half written."""
        for name, _ in (self.folder / ANSWERS).files():
            if name.endswith(".partial"):
                (self.folder / ANSWERS).delete(name)
        if not self.folder.exists(IDENTITY):
            self.folder.write_json(IDENTITY, encoder.identity)

    def add(self, keys: Sequence[bytes], vectors: Vectors, paid: Paid) -> None:
        """Add an answer: when this returns, it survives everything but the disk's own death.

        Several threads may add at once.
        """
        name = self._write(keys, vectors, paid, replaces=())
        with self._adding:
            self._append(_Piece(name, len(keys), paid), keys, vectors.shape[1])

    def _write(
        self, keys: Sequence[bytes], vectors: Vectors, paid: Paid, replaces: Sequence[str]
    ) -> str:
        kind = pa.list_(pa.field("element", pa.float32(), nullable=False), vectors.shape[1])
        facts = json.dumps({"paid": asdict(paid), "replaces": list(replaces)})
        schema = _schema(kind).with_metadata({_FACTS: facts.encode()})
        flat = pa.array(np.ascontiguousarray(vectors, np.float32).reshape(-1))
        columns = [
            pa.array(keys, pa.binary(32)),
            pa.FixedSizeListArray.from_arrays(flat, type=kind),
        ]
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, schema) as writer:
            writer.write_table(pa.table(columns, schema=schema))
        data = sink.getvalue().to_pybytes()
        name = f"{time.time_ns():020d}-{hashlib.sha256(data).hexdigest()}.arrow"
        folder = self.folder / ANSWERS
        folder.write_bytes(name, data)
        _flush(folder)
        return name

    def compact(self) -> None:
        """Write the small files as few. A kill loses nothing and counts nothing twice."""
        self._delete_replaced()
        small = [piece for piece in self._pieces if piece.rows < COMPACT_ROWS]
        groups: list[list[_Piece]] = [[]]
        for piece in small:
            if sum(one.rows for one in groups[-1]) >= COMPACT_ROWS:
                groups.append([])
            groups[-1].append(piece)
        for group in groups:
            if len(group) > 1:
                self._merge(group)
        self.load()
        self._delete_replaced()

    def _merge(self, group: Sequence[_Piece]) -> None:
        keys: dict[bytes, None] = {}
        for piece in group:
            keys |= dict.fromkeys(self._header(piece.name)[0])
        paid = sum((piece.paid for piece in group), Paid())
        chosen = list(keys)
        names = [piece.name for piece in group]
        self._write(chosen, self.vectors(chosen), paid, replaces=names)

    def _delete_replaced(self) -> None:
        folder = self.folder / ANSWERS
        live = {piece.name for piece in self._pieces}
        for name in live:
            if replaced := self._header(name)[2].replaces:
                self._refuse_changed(name)  # what it names is deleted
                for old in replaced:
                    folder.delete(old)

    # -- the canary ------------------------------------------------------------------------------

    def canary(self, key: bytes) -> Vectors | None:
        """The vector [D] that the model's answers to the canary are compared with."""
        accepted = self.drifts()
        if accepted:
            vector = np.array(accepted[-1].vector, np.float32)
            if self.dim not in (None, len(vector)):
                raise StageError(
                    f"{(self.folder / DRIFTS).uri}: the last accepted vector has {len(vector)} "
                    f"numbers instead of {self.dim}; {_REMEDY}"
                )
            return vector
        return self.vectors([key])[0] if key in self else None

    def drifts(self) -> list[Drift]:
        """The accepted changes of the model, oldest first."""
        return drifts(self.folder)

    def accept(self, drift: Drift) -> None:
        """Record a change of the model. Its vectors before stay."""
        (self.folder / DRIFTS).write_json(f"{time.time_ns():020d}.json", asdict(drift))

    # -- verifying -------------------------------------------------------------------------------

    def faults(self) -> Iterator[str]:
        """What is wrong with the files: each is read whole."""
        for piece in self._pieces:
            try:
                matrix = self._matrix(piece.name)
            except StageError as error:
                yield str(error)
                continue
            finite = np.isfinite(matrix).all(axis=1)
            empty = ~matrix.any(axis=1)
            for what, rows in (("not finite", ~finite), ("all zero", empty)):
                if rows.any():
                    yield f"{piece.name}: {int(rows.sum())} vectors are {what}"


def ledgers(root: Folder) -> Mapping[str, dict[str, Any]]:
    """The ledgers of a store by name, with their identities."""
    names = sorted(
        name.partition("/")[0] for name, _ in (root / LEDGERS).files() if name.endswith(IDENTITY)
    )
    return {
        name: records.read(root / LEDGERS / name, IDENTITY, dict[str, Any], _REMEDY)
        for name in names
    }


def drifts(folder: Folder) -> list[Drift]:
    """The accepted changes of the model of one ledger's folder, oldest first."""
    below = folder / DRIFTS
    names = [name for name, _ in below.files() if _DRIFT.fullmatch(name)]
    return [records.read(below, name, Drift, _REMEDY) for name in names]


def _schema(vector: pa.DataType) -> pa.Schema:
    """The columns of a file of answers."""
    return pa.schema(
        [
            pa.field("text", pa.binary(32), nullable=False),
            pa.field("vector", vector, nullable=False),
        ]
    )


def _digest_in(name: str) -> str:
    return name.removesuffix(".arrow").partition("-")[2]


def _flush(folder: Folder) -> None:
    """Have a local folder's new name on the disk: what was paid for survives a power cut too."""
    if folder.is_local:
        opened = os.open(folder.uri, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)
