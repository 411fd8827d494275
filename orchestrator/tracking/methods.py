"""What the sweep's own run has besides its averages: the experiment's parameters, and for each
method a run whose lines a page draws in one chart. Pure, like `runs.py`.
"""

from __future__ import annotations

from orchestrator.experiment.model import Experiment
from orchestrator.step.address import SweepAddress
from orchestrator.step.fingerprint import fingerprint
from orchestrator.store import provenance
from orchestrator.tracking import naming
from orchestrator.tracking.runs import RunView, SweepRecord, flatten, params_of, step_unit

METHOD = "method"
"""The kind of a method's run. It stands beside the sweep's run: a page's chart shows no nested run
until somebody unfolds it."""

PROTOCOL = 1  # raised when the contents of these runs change


def of_methods(name: str, record: SweepRecord) -> list[RunView]:
    """A run for each method, with its averages by noise level: a page draws their lines in one
    chart. `name` is the experiment's.
    """
    by_method: dict[str, list[tuple[str, float, float]]] = {}
    for metric, level, value in record.points:
        domain, method, measure = naming.split(metric)
        if domain:
            by_method.setdefault(method, []).append((f"{domain}_{measure}", level, value))
    unit, scale = step_unit([level for _, level, _ in record.points])
    now = provenance.now()
    return [
        RunView(
            f"{SweepAddress(name)}/{method}",
            METHOD,
            fingerprint({"protocol": PROTOCOL, "points": points, "unit": unit}),
            method,
            now,
            now,
            labels={"method": method, "step_unit": unit},
            params={"method": method},
            points=[(metric, round(level * scale), value) for metric, level, value in points],
        )
        for method, points in by_method.items()
    ]


def sweep_params(experiment: Experiment) -> dict[str, str]:
    """The experiment's fields as the parameters of the sweep's run: those that bear identity.

    Methods are named only: the runs of their cells have their settings.
    """
    fields = experiment.semantic()
    fields = {name: value for name, value in fields.items() if name not in ("name", "title")}
    fields["tuning"] = {**fields["tuning"], "methods": list(experiment.tuning.methods)}
    flat = {name: value for name, value in flatten(fields).items() if value not in (None, [], {})}
    if experiment.noise is not None:
        flat["noise.levels"] = list(experiment.noise.levels)
    if experiment.pretrain is not None:
        flat["pretrain.seeds"] = list(experiment.pretrain.seeds)
    return params_of({name: _plain(value) for name, value in flat.items()})


def _plain(value: object) -> object:
    """A list as words: "0, 5, 10"."""
    if not isinstance(value, (list, tuple)):
        return value
    return ", ".join(f"{one:g}" if isinstance(one, float) else str(one) for one in value)
