"""How each step of a plan stands right now, running and failed ones included, from the store."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.lease import living
from orchestrator.plan import Plan, Standing, assess
from orchestrator.store import Store


@dataclass(frozen=True)
class State:
    """One step's state in a word, with the reason where there is one."""

    word: str  # done, running, failed, missing, drift
    reason: str = ""


def look(plan: Plan, store: Store) -> dict[str, State]:
    """The state of every step. A lease tells a running step, a kept error a failed one."""
    leased = living(store.root)
    errors = {
        name.rpartition("@")[0]: name
        for name, _ in (store.root / ".scratch").files()
        if name.endswith("/error.txt")
    }
    found: dict[str, State] = {}
    for address, assessment in assess(plan, store).items():
        if assessment.standing is Standing.DONE:
            found[address] = State("done")
        elif assessment.standing is Standing.DRIFT:
            found[address] = State("drift", assessment.reason)
        elif address in leased:
            found[address] = State("running")
        elif address in errors:
            text = (store.root / ".scratch").read_bytes(errors[address]).decode(errors="replace")
            found[address] = State("failed", text.strip().splitlines()[-1])
        else:
            found[address] = State("missing")
    return found
