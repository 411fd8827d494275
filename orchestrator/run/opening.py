"""Opens a step for work: its lease, its empty folder, and its inputs as the plan saw them.

Decides what is not to be done: a step that another driver does or has done, a step that has been
done with other settings since the plan was made, a reader of a step that was done again with the
same result, and the parts that finished features have. Never runs a stage.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import lru_cache

from jobs.contract import Work
from jobs.storage.folder import Folder
from orchestrator.errors import ReplacedError
from orchestrator.plan.assess import lacking_parts
from orchestrator.plan.plan import Plan
from orchestrator.plan.states import StepState, StepStatus
from orchestrator.step.step import Step, differences
from orchestrator.store.lease import Leases
from orchestrator.store.manifest import Manifest
from orchestrator.store.store import Store

Inputs = Callable[[str, str], tuple[Folder, Manifest]]
"""From an input's address and planned fingerprint to its folder; see `Store.planned`."""

Opened = Work | Manifest | StepStatus | None
"""The work; the manifest of a finished step; the end of a step that is refused; None while another
driver holds the lease."""


class Opener:
    """Opens the steps of one run of a plan. Safe in threads."""

    def __init__(
        self,
        plan: Plan,
        store: Store,
        leases: Leases,
        redo: Collection[str],
        replace: Mapping[str, str],
    ) -> None:
        """See `Executor` for `redo` and `replace`."""
        self._store, self._leases = store, leases
        self._redo, self._replace = set(redo), replace
        self.unsettled = plan.readers(redo) if redo else set[str]()
        """The steps to be done again, and those that read them: these may have to be."""
        self._before: dict[str, str] = {}  # content of the steps that are done again
        self._changed: set[str] = set()  # of these, the ones that have other content now
        self._read: dict[str, dict[str, str]] = {}  # of the steps that are open: see Manifest.read
        self._extended: dict[str, Manifest] = {}  # of the open steps that parts are added to

    def inputs(self) -> Inputs:
        """Finds inputs, each once: a thousand cells share a few."""
        return lru_cache(maxsize=None)(self._store.planned)

    def open(self, inputs: Inputs, step: Step) -> Opened:
        """Take the step's lease and open its folder. The lease is kept with a work only."""
        if not self._leases.acquire(step.address):
            return None
        opened: Opened = None
        try:
            opened = self._open(inputs, step)
        except ReplacedError as error:
            opened = StepStatus(StepState.FAILED, str(error))
        finally:
            if not isinstance(opened, Work):
                self._leases.release(step.address)
        return opened

    def _open(self, inputs: Inputs, step: Step) -> Work | Manifest:
        read = {role: inputs(address, step.read[role]) for role, address in step.inputs.items()}
        now = {role: manifest for role, (_, manifest) in read.items()}
        contents = {role: manifest.content for role, manifest in now.items()}
        folders = {role: folder for role, (folder, _) in read.items()}
        self._extended.pop(step.address, None)
        manifest = self._store.manifest(step.address)
        if manifest is not None:
            found = manifest.fingerprint
            kept = found == step.fingerprint and step.address not in self._redo
            if kept and not self._outdated(step, manifest, now):
                lacks = lacking_parts(step, manifest)
                if not lacks:
                    return manifest
                self._read[step.address] = contents
                self._extended[step.address] = manifest
                return self._store.extend(step, folders, lacks)
            if found not in (step.fingerprint, self._replace.get(step.address)):
                changes = "; ".join(map(str, differences(manifest.fields, step.fields)))
                raise ReplacedError(
                    f"another sweep has done it meanwhile with other settings ({changes}), and "
                    f"those stand; give what changed a new name, or redo it with --force"
                )
            self._before[step.address] = manifest.content
        self._read[step.address] = contents
        return self._store.begin(step, folders)

    def _outdated(self, step: Step, manifest: Manifest, now: Mapping[str, Manifest]) -> bool:
        """Whether a finished step has read other files than its inputs have now."""
        if manifest.read:
            return manifest.read.keys() != now.keys() or any(
                read not in (now[role].content, now[role].before)
                for role, read in manifest.read.items()
            )
        return not self._changed.isdisjoint(step.inputs.values())  # an earlier version's manifest

    def read_by(self, address: str) -> Mapping[str, str]:
        """What an open step reads; see `Manifest.read`."""
        return self._read.get(address, {})

    def extended(self, address: str) -> Manifest | None:
        """What an open step had before parts are added to it; None if it is done whole."""
        return self._extended.get(address)

    def committed(self, manifest: Manifest) -> None:
        """A step has just been committed: compare it with what was there before."""
        self._redo.discard(manifest.address)
        if self._before.get(manifest.address, manifest.content) != manifest.content:
            self._changed.add(manifest.address)
