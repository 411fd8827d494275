"""Which cells can train as one stack: those that differ in method, label noise and seed alone."""

from __future__ import annotations

from jobs.contract import Work
from jobs.tuning.methods import GIVEN
from jobs.tuning.trained import step_of


def sibling_key(work: Work) -> tuple[str, ...]:
    """A key that is equal for cells that can train as one stack."""
    step = step_of(work)
    if step.method.head in GIVEN or step.part or step.settings.search == "optuna":
        return (work.address,)
    own = {"method", "method_name", "label_noise", "label_noise_classes", "seed"}
    same = step.model_dump_json(exclude=own)
    method = step.method.model_dump_json(include={"head", "residual", "views"})
    return work.inputs["features"].uri, method, same
