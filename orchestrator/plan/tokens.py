"""How many tokens of text a plan still has to encode, where texts and tokenizer are here.

Reads the first rows of finished corpora and each encoder's `tokenizer.json`. A corpus that is not
built yet, and an encoder whose tokenizer is not here, are left out: their rows are counted alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress

from jobs.contract import StageError
from jobs.encoders.model_folder import locate
from jobs.encoders.spec import EncoderStep, TransformersEncoder
from orchestrator.plan.assess import Assessment
from orchestrator.plan.counting import samples_of
from orchestrator.plan.plan import Plan
from orchestrator.plan.states import StepState
from orchestrator.step.step import Step
from orchestrator.store.store import Store

TOKENIZER = "tokenizer.json"


def tokens_lines(plan: Plan, store: Store, assessments: Mapping[str, Assessment]) -> Iterator[str]:
    """A line for each encoder of texts that has some left to encode."""
    done = {a for a, found in assessments.items() if found.state is StepState.DONE}
    for step in plan.of_kind("encoder"):
        spec = step.spec.encoder if isinstance(step.spec, EncoderStep) else None
        if not isinstance(spec, TransformersEncoder):
            continue
        readers = [
            one
            for one in plan.of_kind("features")
            if one.inputs.get("encoder") == step.address and one.address not in done
        ]
        built = [one for one in readers if one.inputs["corpus"] in done]
        tokenizer = _tokenizer(store, step.address, spec, done) if built else None
        if tokenizer is None:
            continue
        mean = _means(store, built, tokenizer, spec)
        total = sum(
            (samples_of(plan, [one], assessments) or 0) * mean[one.address] for one in built
        )
        left = len(readers) - len(built)
        without = f", without {left} data sets that are not built" if left else ""
        yield f"To encode with {spec.name}: about {total:,.0f} tokens{without}"


def _means(
    store: Store, steps: Sequence[Step], tokenizer: bytes, spec: TransformersEncoder
) -> Mapping[str, float]:
    """The mean tokens of a row, by the address of the features step that encodes it."""
    from jobs.text.count import tokens_per_row

    return {
        step.address: tokens_per_row(
            store.committed(step.inputs["corpus"]), tokenizer, spec.max_length
        )
        for step in steps
    }


def _tokenizer(
    store: Store, address: str, spec: TransformersEncoder, done: Collection[str]
) -> bytes | None:
    """The tokenizer of a finished encoder, or of its model's folder; None where neither is here."""
    with suppress(OSError, StageError):
        if address in done:
            return store.committed(address).read_bytes(TOKENIZER)
        if spec.revision is None:
            return locate(spec.model).read_bytes(TOKENIZER)
    return None
