"""Finds the state of each step of a plan, from the store.

`assess` reads what is committed: what a sweep would reuse, do or refuse. `look` also finds running
and failed steps. Nothing here writes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from jobs.features.spec import FeaturesStep, Part
from orchestrator.errors import DriftError
from orchestrator.plan.plan import Plan
from orchestrator.plan.states import StepState, StepStatus, blocked_by
from orchestrator.step.address import SCRATCH, scratch_of
from orchestrator.step.step import Difference, Step, differences
from orchestrator.store.lease import living
from orchestrator.store.manifest import ERROR, Manifest, Record
from orchestrator.store.store import Store

PLANNED = (StepState.DONE, StepState.MISSING, StepState.DRIFT, StepState.BLOCKED)
"""The states that `assess` gives."""


@dataclass(frozen=True)
class Assessment:
    """What a sweep would do with a step: one of PLANNED, with the reason."""

    state: StepState
    reason: str = ""
    differences: tuple[Difference, ...] = ()
    record: Record | None = None  # of the committed step, done or drifted
    outdated: str = ""  # drifted with the planned settings: the input that has other files now


def assess(plan: Plan, store: Store, *, verify: bool = False) -> dict[str, Assessment]:
    """The state of every step of the plan, from committed steps.

    `verify` opens every manifest. A sweep needs that before it runs anything.
    """
    found: dict[str, Assessment] = {}
    records = store.records(plan.steps, verify=verify)
    for step in plan.steps.values():
        record = records.get(step.address)
        if record is not None and record.fingerprint == step.fingerprint:
            outdated = [a for a in step.inputs.values() if found[a].outdated]
            if changed := _changed_input(step, record, records):
                reason = f"read other files of {changed} than it has now"
                found[step.address] = Assessment(StepState.DRIFT, reason, (), record, changed)
            elif outdated:
                reason = f"reads {outdated[0]}, which is out of date"
                found[step.address] = Assessment(StepState.DRIFT, reason, (), record, outdated[0])
            elif lacks := lacking_parts(step, record):
                reason = f"has no {' and '.join(lacks)} part yet"
                found[step.address] = Assessment(StepState.MISSING, reason, record=record)
            else:
                found[step.address] = Assessment(StepState.DONE, record=record)
        elif record is not None and (manifest := store.manifest(step.address)) is not None:
            changes = tuple(_explained(step, differences(manifest.fields, step.fields), found))
            reason = "; ".join(map(str, changes))
            found[step.address] = Assessment(StepState.DRIFT, reason, changes, record)
        else:
            drifted = [
                address
                for address in step.inputs.values()
                if found[address].state in (StepState.DRIFT, StepState.BLOCKED)
            ]
            if drifted:
                found[step.address] = Assessment(StepState.BLOCKED, f"reads {drifted[0]}")
            else:
                found[step.address] = Assessment(StepState.MISSING)
    return found


def _explained(
    step: Step, changes: Iterable[Difference], found: Mapping[str, Assessment]
) -> Iterator[Difference]:
    """The differences; an input that was not changed itself is another step than the one read."""
    for one in changes:
        role = one.path.removeprefix("inputs.")
        address = step.inputs.get(role, "") if role != one.path else ""
        if address and found[address].state not in (StepState.DRIFT, StepState.BLOCKED):
            yield Difference(f"the {role} that it reads", "another", address)
        else:
            yield one


def lacking_parts(step: Step, found: Record | Manifest) -> tuple[Part, ...]:
    """The parts that finished features lack: they were made for tasks that read fewer."""
    return step.spec.lacking(found.counts) if isinstance(step.spec, FeaturesStep) else ()


def _changed_input(step: Step, record: Record, records: Mapping[str, Record]) -> str:
    """The input of a finished step that was done again since, with other files; empty if none."""
    for role, address in step.inputs.items():
        read = record.read.get(role, "")
        now = records[address].content if address in records else ""
        if now and read and now != read and records[address].before != read:
            return address
    return ""


def refuse_drift(assessments: Mapping[str, Assessment]) -> None:
    """Raise DriftError with the differences if any step has drift.

    Steps that drift only because an input did are counted, not listed.
    """
    drifted = {a: s for a, s in assessments.items() if s.state is StepState.DRIFT}
    if not drifted:
        return
    outdated = {a: s for a, s in drifted.items() if s.outdated}
    if len(outdated) == len(drifted):
        raise DriftError(_outdated_message(outdated))
    roots: dict[str, list[str]] = {}
    followers = 0
    for address, assessment in drifted.items():
        own = [d for d in assessment.differences if not d.path.startswith("inputs.")]
        if own:
            roots.setdefault("\n".join(f"    {d}" for d in own), []).append(address)
        else:
            followers += 1
    lines = [f"{len(drifted)} finished steps were made from other settings:"]
    for changes, addresses in roots.items():
        more = f" (and {len(addresses) - 1} more)" if len(addresses) > 1 else ""
        lines += [f"  {addresses[0]}{more}", changes]
    if followers:
        lines.append(f"  {followers} more read a step that changed")
    lines.append(
        "Give what changed a new name (the recipe's, the corpus's, ... `name` field) to keep both, "
        "or redo these steps with --force (of sweep, corpus build and noise build)."
    )
    raise DriftError("\n".join(lines))


def _outdated_message(outdated: Mapping[str, Assessment]) -> str:
    """Steps whose inputs have been done again with another result, one line for each input."""
    first: dict[str, list[str]] = {}
    for address, assessment in outdated.items():
        if assessment.outdated not in outdated:
            first.setdefault(assessment.reason, []).append(address)
    lines = [f"{len(outdated)} finished steps are out of date, because a step was done again:"]
    for reason, addresses in first.items():
        more = f" (and {len(addresses) - 1} more)" if len(addresses) > 1 else ""
        lines.append(f"  {addresses[0]}{more} {reason}")
    if followers := len(outdated) - sum(map(len, first.values())):
        lines.append(f"  {followers} more read one of these")
    return "\n".join(
        [*lines, "Redo these steps with --force (of sweep, corpus build and noise build)."]
    )


_DONE, _RUNNING, _MISSING = map(StepStatus, (StepState.DONE, StepState.RUNNING, StepState.MISSING))


def look(plan: Plan, store: Store) -> dict[str, StepStatus]:
    """The current state of every step, each after the steps it reads.

    A step with a lease is running. A step with a stored error for the same settings has failed. A
    step that reads a failed or drifted step is blocked; the reason names the first such step.
    """
    with store.reading():
        leased = living(store.root)
        scratch = store.root / SCRATCH
        errors = {f"{SCRATCH}/{name}" for name, _ in scratch.files() if name.endswith(ERROR)}
    found: dict[str, StepStatus] = {}
    for address, assessment in assess(plan, store).items():
        step = plan.steps[address]
        if assessment.state is StepState.DONE:
            found[address] = _DONE
        elif assessment.state is StepState.DRIFT:
            found[address] = StepStatus(StepState.DRIFT, assessment.reason)
        elif address in leased:
            found[address] = _RUNNING
        elif f"{scratch_of(address, step.fingerprint)}/{ERROR}" in errors:
            text = store.scratch(step).read_bytes(ERROR).decode(errors="replace")
            found[address] = StepStatus(StepState.FAILED, text.strip().splitlines()[-1])
        else:
            found[address] = _waiting(step, found)
    return found


def _waiting(step: Step, found: Mapping[str, StepStatus]) -> StepStatus:
    """Missing, or blocked by an input. In a chain of blocked steps, the reason names the first."""
    if step.after and (reason := blocked_by(step, step.after[0], found)):
        return StepStatus(StepState.BLOCKED, reason)
    for address in step.inputs.values():
        status = found[address]
        if status.state in (StepState.FAILED, StepState.DRIFT):
            return StepStatus(StepState.BLOCKED, f"reads {address}")
        if status.state is StepState.BLOCKED:
            return status
    return _MISSING


def reasons(found: Mapping[str, StepStatus]) -> Iterator[tuple[StepStatus, str, int]]:
    """Each distinct reason as (status, first address, number of steps), failures first.

    Blocked steps are one line for each step that blocks them, so 50,000 cells fit on a page.
    """
    first: dict[StepStatus, str] = {}
    count: Counter[StepStatus] = Counter()
    for address, status in found.items():
        if status.reason:
            first.setdefault(status, address)
            count[status] += 1
    order = list(StepState)
    for status in sorted(first, key=lambda status: (order.index(status.state), -count[status])):
        yield status, first[status], count[status]
