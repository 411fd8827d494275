"""How each step of a plan stands right now, running and failed ones included, from the store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from orchestrator.lease import living
from orchestrator.plan import Plan, Standing, assess
from orchestrator.step.address import SCRATCH, scratch_of
from orchestrator.store import ERROR, Store

WORDS = ("done", "running", "failed", "blocked", "drift", "missing")
"""Every state a step can be in, in the order they are told."""


@dataclass(frozen=True)
class State:
    """One step's state in a word, with the reason where there is one."""

    word: str  # one of WORDS
    reason: str = ""


DONE, RUNNING, MISSING = State("done"), State("running"), State("missing")


def look(plan: Plan, store: Store) -> dict[str, State]:
    """The state of every step, each after the ones it reads.

    A lease tells a running step, an error kept of the same settings a failed one; what reads a step
    that failed or has drifted is blocked, by the first such step.
    """
    with store.asked():
        leased = living(store.root)
        scratch = store.root / SCRATCH
        errors = {f"{SCRATCH}/{name}" for name, _ in scratch.files() if name.endswith(ERROR)}
    found: dict[str, State] = {}
    for address, assessment in assess(plan, store).items():
        step = plan.steps[address]
        if assessment.standing is Standing.DONE:
            found[address] = DONE
        elif assessment.standing is Standing.DRIFT:
            found[address] = State("drift", assessment.reason)
        elif address in leased:
            found[address] = RUNNING
        elif f"{scratch_of(address, step.fingerprint)}/{ERROR}" in errors:
            text = store.scratch(step).read_bytes(ERROR).decode(errors="replace")
            found[address] = State("failed", text.strip().splitlines()[-1])
        else:
            found[address] = _waiting(step.inputs, found)
    return found


def _waiting(inputs: Mapping[str, str], found: Mapping[str, State]) -> State:
    """Missing, or blocked by what it reads; a chain of blocks names the step at its root."""
    for address in inputs.values():
        state = found[address]
        if state.word in ("failed", "drift"):
            return State("blocked", f"reads {address}")
        if state.word == "blocked":
            return state
    return MISSING


def reasons(found: Mapping[str, State]) -> Iterator[tuple[str, str, str, int]]:
    """(word, reason, first address, how many) of every reason there is, failures first.

    The blocked are one line a root, so that a page of 50,000 cells says what to mend.
    """
    first: dict[State, str] = {}
    count: Counter[State] = Counter()
    for address, state in found.items():
        if state.reason:
            first.setdefault(state, address)
            count[state] += 1
    for state in sorted(first, key=lambda state: (WORDS.index(state.word), -count[state])):
        yield state.word, state.reason, first[state], count[state]
