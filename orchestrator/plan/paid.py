"""What a plan still has to buy from embedding APIs, and whether it may.

Reads the ledgers and the finished corpora of a store. A corpus that is not built yet has texts that
nobody can count: its encoder's price is unknown until then.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

from jobs.embeddings.ledger import Ledger
from jobs.embeddings.price import Estimate, estimate, lacking, too_dear
from jobs.encoders.api import ApiEncoder
from jobs.features.spec import FeaturesStep
from orchestrator.errors import UserError
from orchestrator.plan.plan import Plan
from orchestrator.step.step import Step
from orchestrator.store.store import Store


@dataclass(frozen=True)
class Purchase:
    """What is left to buy for one encoder."""

    encoder: ApiEncoder
    left: Estimate  # of the corpora that are built
    unbuilt: tuple[str, ...]  # addresses of the corpora whose texts are not known

    @property
    def line(self) -> str:
        """In words, for `plan`."""
        line = f"To buy of {self.encoder.name} ({self.encoder.model}): {self.left.words}"
        if self.unbuilt:
            line += f", without what is not built yet ({', '.join(self.unbuilt)})"
        return line


def purchases(plan: Plan, store: Store, done: Collection[str]) -> Iterator[Purchase]:
    """What is left to buy of each encoder; `done` are the finished steps."""
    left: dict[str, tuple[ApiEncoder, list[Step]]] = {}
    for step in plan.of_kind("features"):
        if step.address not in done and (api := api_of(step)) is not None:
            left.setdefault(api.name, (api, []))[1].append(step)
    for api, steps in left.values():
        built = [step for step in steps if step.inputs["corpus"] in done]
        unbuilt = {step.inputs["corpus"] for step in steps} - set(done)
        samples = [(store.committed(s.inputs["corpus"]), _parts(s)) for s in built]
        ledger = Ledger.of(store.root, api)
        texts = lacking(api, ledger, samples)
        yield Purchase(api, estimate(api, ledger, texts.values()), tuple(sorted(unbuilt)))


def check_prices(plan: Plan, store: Store, done: Collection[str]) -> None:
    """Raise UserError if what is left to buy costs more than an encoder's `max_price`."""
    limited = [e for e in plan.experiment.encoders if isinstance(e, ApiEncoder) and e.max_price]
    for one in purchases(plan, store, done) if limited else ():
        most, price = one.encoder.max_price, one.left.price
        if most is not None and price is not None and price > most:
            raise UserError(too_dear(one.encoder, f"{one.left.words} are left"))


def uncounted(plan: Plan, done: Collection[str]) -> set[str]:
    """The corpora that have to be built before the price of an encoder with a limit is known."""
    return {
        step.inputs["corpus"]
        for step in plan.of_kind("features")
        if step.address not in done
        and (api := api_of(step)) is not None
        and api.max_price is not None
    } - set(done)


def accepting_drift(plan: Plan) -> Plan:
    """The plan, in which models behind an API may have changed since they were asked last."""
    steps = dict(plan.steps)
    for step in plan.of_kind("features"):
        if (api := api_of(step)) is not None:
            accepting = api.model_copy(update={"accept_drift": True})
            spec = step.spec.model_copy(update={"api": accepting})
            steps[step.address] = replace(step, spec=spec)
    return replace(plan, steps=steps)


def api_of(step: Step) -> ApiEncoder | None:
    """The API that a step asks; None for all other steps."""
    return step.spec.api if isinstance(step.spec, FeaturesStep) else None


def _parts(step: Step) -> tuple[str, ...]:
    assert isinstance(step.spec, FeaturesStep)
    return step.spec.wanted
