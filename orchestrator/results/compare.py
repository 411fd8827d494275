"""Do two runs differ only in noise? Compares the records of their steps in the store.

Takes two names: an address, the beginning of addresses, or a whole store. Pairs the finished steps
below them by the rest of their address, and compares each pair field by field: the step, the steps
that it read, the circumstances (versions, machine, commit) of the step and of what it read from an
encoder, and the encoder's card. Fields of a noise step are *noise*. Digests, sizes and metrics are
*results*, which prove nothing. All other fields must be *identical*. Reads only manifests and
cards, and imports nothing heavy.
"""

from __future__ import annotations

import difflib
import gc
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from jobs import records
from jobs.overlap.spec import limit_of
from jobs.storage.folder import Folder
from orchestrator.errors import UserError
from orchestrator.step.address import (
    CellAddress,
    CorpusAddress,
    FeaturesAddress,
    HashesAddress,
    NoiseAddress,
    OverlapAddress,
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
_CIRCUMSTANCES = (
    "versions",
    "python",
    "platform",
    "cpu",
    "instruction_set",
    "kernels",  # of runs on GPUs
    "commit",
    "dirty",
)
_COMPUTED = ("encoder", "features", "head")  # inputs that depend on arithmetic
_ABSENT = "absent"


@dataclass(frozen=True)
class StoredStep:
    """A finished step in a store."""

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
    beside: tuple[str, ...]  # remarks, and what the records do not show
    record: Mapping[str, Any] = field(repr=False, compare=False)  # all recorded fields of the first
    changed: frozenset[str] = field(repr=False, compare=False)  # paths in `record`

    @property
    def identical(self) -> tuple[str, ...]:
        """Fields that are the same. Computed on demand: few of 10,000 pairs are printed."""
        return tuple(sorted(path for path in _paths(self.record) if path not in self.changed))

    def as_dict(self) -> dict[str, Any]:
        """The pair as JSON values."""
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
        """Whether every step has a partner and differs from it in nothing but noise."""
        return not self.alone and not any(pair.differs for pair in self.pairs)

    def verdict(self) -> str:
        """The answer in a sentence."""
        if self.noise_alone:
            levels = sorted({str(d) for pair in self.pairs for d in pair.noise})
            if not levels:
                return "These two runs do not differ, not even in noise."
            return "These two runs differ only in noise."
        paths = list(dict.fromkeys(d.path for pair in self.pairs for d in pair.differs))
        shown = ", ".join(paths[:5]) + (f" and {len(paths) - 5} more" if len(paths) > 5 else "")
        if self.alone:
            steps = f"{len(self.alone)} steps without a partner"
            shown = f"{shown}, {steps}" if shown else steps
        return f"These two runs differ in more than noise: {shown}."


def compare(first: str, second: str, storage: Folder) -> Comparison:
    """Compare two runs, each named by an address in `storage` or by a path in a store.

    Raises UserError, with the nearest addresses, if a name has no finished step.
    """
    left, right = _steps(first, storage), _steps(second, storage)
    plain = set(left), set(right)
    found = compared(_by_replicate(left, plain[1]), _by_replicate(right, plain[0]))
    if not found.pairs:
        raise UserError(
            f"{first} and {second} have no step in common; name two steps of a kind, or two "
            f"folders with the same steps below them"
        )
    return found


def compared(left: Mapping[str, StoredStep], right: Mapping[str, StoredStep]) -> Comparison:
    """Every pair of steps of the same name, and the steps without a partner."""
    gc.freeze()  # 50,000 manifests live until the end; the garbage collector can skip them
    cache = _Cache()
    pairs = [_pair(left[name], right[name], cache) for name in left if name in right]
    alone = [left[name].address for name in left if name not in right]
    alone += [right[name].address for name in right if name not in left]
    return Comparison(tuple(pairs), tuple(alone))


# -- finding the steps -----------------------------------------------------------------------------


def _steps(name: str, storage: Folder) -> dict[str, StoredStep]:
    """The finished steps at or below a name, by the rest of their address."""
    store, address = _parse_name(name, storage)
    if address and kind_of(address) not in KINDS:  # a report has a manifest but is no step
        raise UserError(_not_found_message(name, address, store))
    one = store.manifest(address) if address else None
    if one is not None:
        return {"": StoredStep(store, one)}
    found = {
        at.removeprefix(address).strip("/"): StoredStep(store, manifest)
        for at in _addresses(store, address)
        if (manifest := store.manifest(at)) is not None
    }
    if not found:
        raise UserError(_not_found_message(name, address, store))
    return found


def _by_replicate(
    steps: Mapping[str, StoredStep], others: Collection[str]
) -> dict[str, StoredStep]:
    """The steps by the rest of their address, without the tuning seed where it is the replicate's.

    A replicate tunes with its own pre-training seed, so the cells of two replicates have different
    seeds in their addresses. Steps whose rest is among `others` keep it whole.
    """

    def key(rest: str, step: StoredStep) -> str:
        if rest in others or step.manifest.kind != "tune":
            return rest
        match parse_step(step.address):
            case CellAddress(of=RunAddress(seed=seed), trial=trial) if trial.seed == seed:
                return f"{rest.rpartition('/')[0]}/seed=that of pre-training"
        return rest

    return {key(rest, step): step for rest, step in steps.items()}


def _parse_name(name: str, storage: Folder) -> tuple[Store, str]:
    """The store that a name is in, and the address in it ("" for the whole store)."""
    text = name.rstrip("/")
    if "://" not in text and not Path(text).expanduser().is_dir():
        return Store(storage), text
    folder = Folder.of(text)
    *parents, _ = parts = folder.uri.split("/")
    for length in range(len(parts), max(len(parents) - 12, 0), -1):
        store = Store(Folder("/".join(parts[:length])))
        with store.reading():
            if store.root.exists("store.json"):
                return store, "/".join(parts[length:])
    return Store(storage), text


def _addresses(store: Store, below: str) -> list[str]:
    """Addresses of the finished steps below an address, in order."""
    tail = f"/{MANIFEST}"
    kinds = [below] if below else list(KINDS)
    with store.reading():
        return [
            f"{kind}/{name.removesuffix(tail)}"
            for kind in kinds
            for name, _ in (store.root / kind).files()
            if name.endswith(tail)
        ]


def _not_found_message(name: str, address: str, store: Store) -> str:
    kind = kind_of(address)
    known = _addresses(store, kind if kind in KINDS else "")
    prefixes = {"/".join(a.split("/")[:n]) for a in known for n in range(1, a.count("/") + 2)}
    near = difflib.get_close_matches(address, sorted(prefixes), n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else "name another with --storage"
    return f"{name}: {store.root.uri} has no finished step of this name; {hint}"


# -- comparing two ---------------------------------------------------------------------------------


def _pair(first: StoredStep, second: StoredStep, cache: _Cache) -> Pair:
    beside: list[str] = []
    ours, theirs = _record(first, beside, cache), _record(second, beside, cache)
    groups: dict[Group, list[Difference]] = {"noise": [], "differs": [], "result": []}
    changed: set[str] = set()
    for one in differences(ours, theirs):
        path = one.path
        changed.add(path)
        named = Difference(path.removeprefix("step."), one.recorded, one.planned)
        groups[_group(path)].append(named)
    if any(one.path.endswith("noise.seed") for one in groups["noise"]):
        beside.append("their noise is of different draws: their levels are not nested")
    if any(step.manifest.provenance.get("dirty") for step in (first, second)):
        beside.append("made from a checkout with uncommitted changes: the commit is not the code")
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


def _record(step: StoredStep, beside: list[str], cache: _Cache) -> dict[str, Any]:
    """All recorded fields of a step, nested."""
    manifest = step.manifest
    record: dict[str, Any] = {
        "step": _fields(step, beside, cache),
        "made_with": _circumstances(step),
        "results": {
            "files": {name: one.sha256 for name, one in manifest.files.items()},
            "counts": manifest.counts,
            "metrics": manifest.metrics,
        },
    }
    if CARD in manifest.files:
        folder = step.store.committed(manifest.address)
        remedy = f"do the step again with --redo {manifest.address}"
        card = records.read(folder, CARD, dict[str, Any], remedy)
        record["results"]["card"] = {name: card.pop(name, None) for name in _RESULTS_OF_CARD}
        record["card"] = card
    return record


def _circumstances(step: StoredStep) -> dict[str, Any]:
    """Versions, machine and commit of a step."""
    return {name: step.manifest.provenance.get(name, _ABSENT) for name in _CIRCUMSTANCES}


class _Cache:
    """Records of steps that many others read: thousands of cells share their features."""

    def __init__(self) -> None:
        self._fields: dict[tuple[str, str], tuple[dict[str, Any], list[str]]] = {}
        self._steps: dict[tuple[str, str], StoredStep | None] = {}
        self._names: dict[str, list[str]] = {}

    def fields(self, step: StoredStep, beside: list[str]) -> dict[str, Any]:
        """The result of `_fields`, computed once for each step."""
        key = (step.store.root.uri, step.address)
        if key not in self._fields:
            lines: list[str] = []
            self._fields[key] = (_fields(step, lines, self), lines)
        fields, lines = self._fields[key]
        beside += lines
        return fields

    def step(self, store: Store, address: str) -> StoredStep | None:
        """The finished step at an address; None if there is none."""
        key = (store.root.uri, address)
        if key not in self._steps:
            manifest = store.manifest(address)
            self._steps[key] = None if manifest is None else StoredStep(store, manifest)
        return self._steps[key]

    def folders(self, folder: Folder) -> list[str]:
        """Names of the folders in a folder."""
        if folder.uri not in self._names:
            self._names[folder.uri] = _folders(folder)
        return self._names[folder.uri]


def _fields(step: StoredStep, beside: list[str], cache: _Cache) -> dict[str, Any]:
    """A step's own fields, with each input replaced by the fields of the step that it read."""
    fields = dict(step.manifest.fields)
    inputs: dict[str, Any] = {}
    for role, fingerprint in fields.pop("inputs", {}).items():
        read = _input(step, role, fingerprint, cache)
        if read is None:
            beside.append(f"the {role} that {step.address} read is no longer in its store")
            inputs[role] = {"fingerprint": fingerprint}
        else:
            inputs[role] = cache.fields(read, beside)
            if role in _COMPUTED:
                inputs[role] = {**inputs[role], "made_with": _circumstances(read)}
    return {**fields, "inputs": inputs}


def _input(step: StoredStep, role: str, fingerprint: str, cache: _Cache) -> StoredStep | None:
    """The step with a fingerprint that another step read, at one of its possible addresses."""
    for address in _candidates(step.store.root, step.address, role, cache):
        read = cache.step(step.store, address)
        if read is not None and read.manifest.fingerprint == fingerprint:
            return read
    return None


def _candidates(root: Folder, address: str, role: str, cache: _Cache) -> Iterator[str]:
    """Possible addresses of an input of a role. Some of them have no step."""
    match role, parse_step(address):
        case "corpus", _:
            yield from (str(CorpusAddress(name)) for name in cache.folders(root / "corpus"))
        case "test" | "training" | "pretraining", OverlapAddress():
            yield from (str(HashesAddress(name)) for name in cache.folders(root / "hashes"))
        case "overlap", CellAddress(of=of, task=task):
            corpus = of.corpus if isinstance(of, RunAddress) else None
            yield str(OverlapAddress(corpus, task, limit_of("drop")))
        case "noise", RunAddress() as run:
            folder = NoiseAddress.folder(run.corpus, run.noise)
            draws = (
                int(n[5:]) for n in cache.folders(root / folder) if re.fullmatch("draw=\\d+", n)
            )
            for draw in (*draws, None):
                yield str(NoiseAddress(run.corpus, run.noise, run.level, draw))
        case "encoder", FeaturesAddress(of=of) | CellAddress(of=of):
            yield str(of)
        case "features", CellAddress(of=of):
            names = cache.folders(root / FeaturesAddress.folder(of))
            yield from (str(FeaturesAddress(of, images)) for images in names)
        case "head", CellAddress(of=of, trial=trial):
            names = cache.folders(root / CellAddress.folder(of))
            yield from (str(CellAddress(of, task, trial)) for task in names)


def _folders(folder: Folder) -> list[str]:
    import pyarrow.fs as pafs

    filesystem, path = folder.open()
    found = filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True))
    return sorted(info.base_name for info in found if info.type == pafs.FileType.Directory)


def _group(path: str) -> Group:
    """The meaning of a difference at a dotted path."""
    if path.startswith("results."):
        return "result"
    spec = path.rpartition("inputs.noise.spec.")[2] if "inputs.noise.spec." in path else ""
    own = path.removeprefix("step.spec.") if path.startswith("step.spec.") else ""
    for below in (spec, own):
        if below == "level" or below == "noise" or below.startswith("noise."):
            return "noise"
    return "differs"


def _paths(value: Any, path: str = "") -> Iterator[str]:
    """The dotted path of every leaf, without the results."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            below = f"{path}.{name}" if path else str(name)
            if below != "results":
                yield from _paths(inner, below)
    else:
        yield path
