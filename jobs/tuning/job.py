"""The tuning stage: refuses works that are larger than every node, and passes the others on.

Cells on frozen features go to `jobs.tuning.frozen.job`, cells that train the encoder (`lora`, `ft`)
to `jobs.tuning.finetune.job`. Each result is reported through `Hooks.done` as soon as it is there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import ray

from jobs.contract import Hooks, StageError, Work
from jobs.tuning.draw import configurations_of
from jobs.tuning.finetune import job as finetune
from jobs.tuning.frozen import job as frozen
from jobs.tuning.trained import step_of
from jobs.tuning.tune_run import withhold_keys


def run(works: Sequence[Work], hooks: Hooks) -> None:
    """Run all works and report each result. Ray must be running; any thread may call this."""
    withhold_keys()
    on_features: list[Work] = []
    on_images: list[Work] = []
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for work in works:
        error = _error_if_too_large(work, nodes)
        if error is not None:
            hooks.done(work.address, error)
        elif step_of(work).method.trains_encoder:
            on_images.append(work)
        else:
            on_features.append(work)
    if on_features:
        frozen.run(on_features, hooks)
    if on_images and not hooks.stopping():
        drawn = {work.address: configurations_of(work) or () for work in on_images}
        finetune.run(on_images, drawn, hooks)


def _error_if_too_large(work: Work, nodes: Sequence[Mapping[str, float]]) -> StageError | None:
    """The error of a work that is larger than every node; otherwise None."""
    settings = step_of(work).settings
    for unit, asked in (("CPU", settings.cpus), ("GPU", settings.gpus)):
        most = max(node.get(unit, 0) for node in nodes)
        if asked > most:
            field = f"tuning.{unit.lower()}s"
            return StageError(
                f"{field}={asked:g}, but the cluster's largest node has {most:g} {unit}s; lower "
                f"it, or add a larger node"
            )
    return None
