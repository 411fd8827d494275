"""The rates that earlier sweeps measured on this machine, for plans of stores that have none.

A small JSON file of the user (`$NML_RATES`, else `nml-orch/rates.json` in the cache folder; none if
NML_RATES is empty) has the rate of the last sweep, by machine, kind of step and subject:

    pretrain   samples a second, by model and image size
    features   samples a second, by the encoders' models
    tune       rows trained on a second (rows x epochs x configurations), by what is adapted

The file is a cache: one that is missing, damaged or not writable costs nothing but the estimate.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from jobs import records
from jobs.encoders.spec import EncoderStep
from jobs.features.spec import FeaturesStep
from jobs.pretrain.spec import PretrainStep
from jobs.storage.folder import Folder
from jobs.tuning.spec import TuneStep
from orchestrator.plan.plan import Plan
from orchestrator.step.step import Step
from orchestrator.store import provenance


@dataclass(frozen=True)
class Known:
    """A rate, the experiment whose sweep measured it, and the day."""

    per_second: float
    experiment: str
    day: str

    @property
    def source(self) -> str:
        """In words."""
        return f"measured on this machine by the sweep of {self.experiment} on {self.day}"


Rates = Mapping[str, Mapping[str, Mapping[str, Known]]]
"""Machine -> kind of step -> subject -> rate."""


def known(plan: Plan, kind: str, steps: Iterable[Step]) -> Known | None:
    """What this machine is known to do with such steps, all of one kind, if it has done such."""
    return _read().get(_machine(), {}).get(kind, {}).get(subject(plan, steps))


def remember(plan: Plan, measured: Mapping[str, tuple[float, Iterable[Step]]]) -> None:
    """Keep the rates that a sweep has measured, by kind, with the steps that they are of."""
    path = _path()
    if path is None or not measured:
        return
    everything = {machine: dict(kinds) for machine, kinds in _read().items()}
    kinds = everything.setdefault(_machine(), {})
    for kind, (per_second, steps) in measured.items():
        found = Known(per_second, plan.experiment.name, provenance.now()[:10])
        kinds[kind] = {**kinds.get(kind, {}), subject(plan, steps): found}
    text = json.dumps(everything, default=asdict, indent=1)
    parent, name = Folder.holding(str(path))
    with suppress(OSError):
        parent.write_bytes(name, text.encode())


def subject(plan: Plan, steps: Iterable[Step]) -> str:
    """What the rate of steps of one kind depends on most, in words."""
    return ", ".join(sorted({_subject(plan, step) for step in steps}))


def _subject(plan: Plan, step: Step) -> str:
    if isinstance(step.spec, TuneStep):
        return f"{step.spec.method.adapt}{' on GPUs' if step.spec.settings.gpus else ''}"
    if isinstance(step.spec, FeaturesStep):
        made = plan.steps[step.inputs["encoder"]]
        return f"{_model(made.spec)}{' on GPUs' if step.spec.gpus_per_worker else ''}"
    on_gpus = isinstance(step.spec, PretrainStep) and step.spec.resources.gpus_per_worker
    return f"{_model(step.spec)}{' on GPUs' if on_gpus else ''}"


def _model(spec: object) -> str:
    """The model of an encoder that is trained here, or elsewhere."""
    if isinstance(spec, PretrainStep):
        options = json.dumps(spec.recipe.model_options, sort_keys=True)
        return f"{spec.recipe.model} {options} at {spec.recipe.image.size} px"
    if isinstance(spec, EncoderStep):
        encoder = spec.encoder
        return str(getattr(encoder, "model", None) or encoder.name)
    return type(spec).__name__


def _machine() -> str:
    return f"{os.cpu_count()} x {provenance.cpu()}"


def _path() -> Path | None:
    """The file; None if the user wants none (`NML_RATES` is empty), or has no home."""
    if (named := os.environ.get("NML_RATES")) is not None:
        return Path(named) if named else None
    with suppress(RuntimeError):
        cache = os.environ.get("XDG_CACHE_HOME")
        return (Path(cache) if cache else Path.home() / ".cache") / "nml-orch" / "rates.json"
    return None


def _read() -> Rates:
    path = _path()
    with suppress(OSError, ValueError):
        if path is not None:
            return records.parse(path.read_bytes(), dict[str, dict[str, dict[str, Known]]])
    return {}
