"""Do two runs differ in noise alone? Told from what the store recorded of them.

Takes two places in stores (an address, a folder of addresses, or a whole store); pairs the finished
steps below them by the rest of their address; compares every pair field by field, with the steps
that they read, the circumstances that both and what they read of an encoder were made in, and the
encoder's own card. Fields of a noise step are *noise*, what came out (digests, sizes, metrics) is a
*result* and proves nothing, everything else must be *identical*. Manifests and cards alone are
read; nothing heavy is imported.
"""

from __future__ import annotations

import difflib
import gc
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from jobs.storage.folder import Folder
from orchestrator.errors import UserError
from orchestrator.step.address import (
    CellAddress,
    CorpusAddress,
    FeaturesAddress,
    RunAddress,
    kind_of,
    parse_step,
)
from orchestrator.step.step import KINDS, Difference, differences
from orchestrator.store.manifest import MANIFEST, Manifest
from orchestrator.store.store import Store

Group = Literal["noise", "differs", "result"]

CARD = "encoder.json"  # of an encoder: jobs/encoders/encoder.py
_RESULTS_OF_CARD = ("weights_sha256",)
_CIRCUMSTANCES = ("versions", "python", "platform", "cpu", "instruction_set", "commit", "dirty")
_TRAINED = ("encoder", "features", "head")  # what is read and depends on arithmetic
_ABSENT = "absent"


@dataclass(frozen=True)
class Found:
    """A step that a store holds."""

    store: Store
    manifest: Manifest

    @property
    def address(self) -> str:
        """Its address in its store."""
        return self.manifest.address


@dataclass(frozen=True)
class Pair:
    """Two steps, and every field in which they differ."""

    first: str
    second: str
    noise: tuple[Difference, ...]
    differs: tuple[Difference, ...]
    results: tuple[Difference, ...]
    beside: tuple[str, ...]  # what to know beside it, and what the records do not show
    record: Mapping[str, Any] = field(repr=False, compare=False)  # all that is known of the first
    changed: frozenset[str] = field(repr=False, compare=False)  # paths in it

    @property
    def identical(self) -> tuple[str, ...]:
        """Fields that are the same; found when asked, as a page of 10,000 pairs shows a few."""
        return tuple(sorted(path for path in _paths(self.record) if path not in self.changed))

    def as_dict(self) -> dict[str, Any]:
        """What a machine reads."""
        return {
            "first": self.first,
            "second": self.second,
            "identical": self.identical,
            "noise": [asdict(one) for one in self.noise],
            "differs": [asdict(one) for one in self.differs],
            "results": [asdict(one) for one in self.results],
            "beside": self.beside,
        }


@dataclass(frozen=True)
class Comparison:
    """All pairs, and the steps without a partner."""

    pairs: tuple[Pair, ...]
    alone: tuple[str, ...] = field(default=())

    @property
    def noise_alone(self) -> bool:
        """Whether every step has its partner, and differs from it in noise at most."""
        return not self.alone and not any(pair.differs for pair in self.pairs)

    def verdict(self) -> str:
        """The answer in a sentence."""
        if self.noise_alone:
            levels = sorted({str(d) for pair in self.pairs for d in pair.noise})
            if not levels:
                return "These two runs do not differ, not even in noise."
            return "These two runs differ in noise alone."
        paths = list(dict.fromkeys(d.path for pair in self.pairs for d in pair.differs))
        shown = ", ".join(paths[:5]) + (f" and {len(paths) - 5} more" if len(paths) > 5 else "")
        if self.alone:
            steps = f"{len(self.alone)} steps without a partner"
            shown = f"{shown}, {steps}" if shown else steps
        return f"These two runs differ in more than noise: {shown}."


def compare(first: str, second: str, storage: Folder) -> Comparison:
    """Compare two places: addresses in `storage`, or paths to stores or to folders in them.

    Raises UserError for a place without a finished step (with the nearest addresses).
    """
    left, right = _steps(first, storage), _steps(second, storage)
    gc.freeze()  # 50,000 manifests stay until the end; no search for garbage need visit them again
    seen = _Seen()
    pairs = [_pair(left[rest], right[rest], seen) for rest in left if rest in right]
    alone = [left[rest].address for rest in left if rest not in right]
    alone += [right[rest].address for rest in right if rest not in left]
    if not pairs:
        raise UserError(
            f"{first} and {second} have no step in common; name two steps of a kind, or two "
            f"folders with the same steps below them"
        )
    return Comparison(tuple(pairs), tuple(alone))


# -- finding the steps -----------------------------------------------------------------------------


def _steps(name: str, storage: Folder) -> dict[str, Found]:
    """The finished steps at or below a place, by the rest of their address."""
    store, address = _located(name, storage)
    if address and kind_of(address) not in KINDS:  # a report has a manifest, and is none
        raise UserError(_nowhere(name, address, store))
    one = store.manifest(address) if address else None
    if one is not None:
        return {"": Found(store, one)}
    found = {
        at.removeprefix(address).strip("/"): Found(store, manifest)
        for at in _addresses(store, address)
        if (manifest := store.manifest(at)) is not None
    }
    if not found:
        raise UserError(_nowhere(name, address, store))
    return found


def _located(name: str, storage: Folder) -> tuple[Store, str]:
    """The store that a name lies in, and the address below its root ("" for the whole store)."""
    text = name.rstrip("/")
    if "://" not in text and not Path(text).expanduser().is_dir():
        return Store(storage), text
    folder = Folder.of(text)
    *parents, _ = parts = folder.uri.split("/")
    for length in range(len(parts), max(len(parents) - 12, 0), -1):
        root = Folder("/".join(parts[:length]))
        if root.exists("store.json"):
            return Store(root), "/".join(parts[length:])
    return Store(storage), text


def _addresses(store: Store, below: str) -> list[str]:
    """Addresses of the finished steps below one, in order."""
    tail = f"/{MANIFEST}"
    kinds = [below] if below else list(KINDS)
    return [
        f"{kind}/{name.removesuffix(tail)}"
        for kind in kinds
        for name, _ in (store.root / kind).files()
        if name.endswith(tail)
    ]


def _nowhere(name: str, address: str, store: Store) -> str:
    kind = kind_of(address)
    known = _addresses(store, kind if kind in KINDS else "")
    prefixes = {"/".join(a.split("/")[:n]) for a in known for n in range(1, a.count("/") + 2)}
    near = difflib.get_close_matches(address, sorted(prefixes), n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else "name another with --storage"
    return f"{name}: no finished step lies there in {store.root.uri}; {hint}"


# -- comparing two ---------------------------------------------------------------------------------


def _pair(first: Found, second: Found, seen: _Seen) -> Pair:
    beside: list[str] = []
    ours, theirs = _record(first, beside, seen), _record(second, beside, seen)
    groups: dict[Group, list[Difference]] = {"noise": [], "differs": [], "result": []}
    changed: set[str] = set()
    for one in differences(ours, theirs):
        path = one.path
        changed.add(path)
        named = Difference(path.removeprefix("step."), one.recorded, one.planned)
        groups[_group(path)].append(named)
    if any(one.path.endswith("noise.seed") for one in groups["noise"]):
        beside.append("their noise is drawn by different seeds: their levels are not nested")
    if any(found.manifest.provenance.get("dirty") for found in (first, second)):
        beside.append("made from a checkout with uncommitted changes: its commit is not all")
    return Pair(
        first=first.address,
        second=second.address,
        noise=tuple(groups["noise"]),
        differs=tuple(groups["differs"]),
        results=tuple(groups["result"]),
        beside=tuple(dict.fromkeys(beside)),
        record=ours,
        changed=frozenset(changed),
    )


def _record(found: Found, beside: list[str], seen: _Seen) -> dict[str, Any]:
    """Everything that is known of a step, as nested fields."""
    manifest = found.manifest
    record: dict[str, Any] = {
        "step": _fields(found, beside, seen),
        "made_with": _made_with(found),
        "results": {
            "files": {name: one.sha256 for name, one in manifest.files.items()},
            "counts": manifest.counts,
            "metrics": manifest.metrics,
        },
    }
    if CARD in manifest.files:
        card = found.store.output(manifest.address).read_json(CARD)
        record["results"]["card"] = {name: card.pop(name, None) for name in _RESULTS_OF_CARD}
        record["card"] = card
    return record


def _made_with(found: Found) -> dict[str, Any]:
    """The circumstances of a step."""
    return {name: found.manifest.provenance.get(name, _ABSENT) for name in _CIRCUMSTANCES}


class _Seen:
    """What was read of steps that many others read: thousands of cells share their features."""

    def __init__(self) -> None:
        self._fields: dict[tuple[str, str], tuple[dict[str, Any], list[str]]] = {}
        self._steps: dict[tuple[str, str], Found | None] = {}
        self._names: dict[str, list[str]] = {}

    def fields(self, found: Found, beside: list[str]) -> dict[str, Any]:
        """As `_fields`, which is asked once for each step."""
        place = (found.store.root.uri, found.address)
        if place not in self._fields:
            lines: list[str] = []
            self._fields[place] = (_fields(found, lines, self), lines)
        fields, lines = self._fields[place]
        beside += lines
        return fields

    def step(self, store: Store, address: str) -> Found | None:
        """The finished step at an address."""
        place = (store.root.uri, address)
        if place not in self._steps:
            manifest = store.manifest(address)
            self._steps[place] = None if manifest is None else Found(store, manifest)
        return self._steps[place]

    def folders(self, folder: Folder) -> list[str]:
        """Names of the folders in one."""
        if folder.uri not in self._names:
            self._names[folder.uri] = _folders(folder)
        return self._names[folder.uri]


def _fields(found: Found, beside: list[str], seen: _Seen) -> dict[str, Any]:
    """A step's own fields, each input replaced by the fields of the step that it read."""
    fields = dict(found.manifest.fields)
    inputs: dict[str, Any] = {}
    for role, fingerprint in fields.pop("inputs", {}).items():
        read = _input(found, role, fingerprint, seen)
        if read is None:
            beside.append(f"the {role} that {found.address} read is no longer in its store")
            inputs[role] = {"fingerprint": fingerprint}
        else:
            inputs[role] = seen.fields(read, beside)
            if role in _TRAINED:
                inputs[role] = {**inputs[role], "made_with": _made_with(read)}
    return {**fields, "inputs": inputs}


def _input(found: Found, role: str, fingerprint: str, seen: _Seen) -> Found | None:
    """The step of a fingerprint that another one read, where its address says it must lie."""
    for address in _candidates(found.store.root, found.address, role, seen):
        read = seen.step(found.store, address)
        if read is not None and read.manifest.fingerprint == fingerprint:
            return read
    return None


def _candidates(root: Folder, address: str, role: str, seen: _Seen) -> Iterator[str]:
    """Addresses at which an input of a role can lie, some of them of no step."""
    match role, parse_step(address):
        case "corpus", _:
            yield from (str(CorpusAddress(name)) for name in seen.folders(root / "corpus"))
        case "noise", RunAddress() as run:
            yield str(run.overlay)
        case "encoder", FeaturesAddress(of=of) | CellAddress(of=of):
            yield str(of)
        case "features", CellAddress(of=of):
            names = seen.folders(root / FeaturesAddress.folder(of))
            yield from (str(FeaturesAddress(of, images)) for images in names)
        case "head", CellAddress(of=of, trial=trial):
            names = seen.folders(root / CellAddress.folder(of))
            yield from (str(CellAddress(of, task, trial)) for task in names)


def _folders(folder: Folder) -> list[str]:
    import pyarrow.fs as pafs

    filesystem, path = folder.open()
    found = filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True))
    return sorted(info.base_name for info in found if info.type == pafs.FileType.Directory)


def _group(path: str) -> Group:
    """What a difference at a dotted path means."""
    if path.startswith("results."):
        return "result"
    spec = path.rpartition("inputs.noise.spec.")[2] if "inputs.noise.spec." in path else ""
    own = path.removeprefix("step.spec.") if path.startswith("step.spec.") else ""
    for below in (spec, own):
        if below == "level" or below == "noise" or below.startswith("noise."):
            return "noise"
    return "differs"


def _paths(value: Any, path: str = "") -> Iterator[str]:
    """Every leaf's dotted path, without the results."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            below = f"{path}.{name}" if path else str(name)
            if below != "results":
                yield from _paths(inner, below)
    else:
        yield path
