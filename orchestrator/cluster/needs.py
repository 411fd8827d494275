"""Compares an experiment's resources with Ray's: Ray would wait forever for what it lacks."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from orchestrator.cluster import Resources
from orchestrator.experiment.model import Experiment

_REMEDY = "lower it, or join a larger cluster with RAY_ADDRESS"


def lacking(experiment: Experiment, have: Resources, kinds: Collection[str]) -> Iterator[str]:
    """A sentence for each section that asks for more than Ray has, if it has steps of `kinds`."""
    pretrain, features, tuning = experiment.pretrain, experiment.features, experiment.tuning
    if pretrain is not None and "pretrain" in kinds:
        asked = pretrain.resources
        cpus, gpus = asked.workers * asked.cpus_per_worker, asked.workers * asked.gpus_per_worker
        if cpus > have.cpus or gpus > have.gpus:
            yield (
                f"pretrain.resources asks for {cpus} CPUs and {gpus:g} GPUs for a run, but Ray has "
                f"{have.cpus:g} and {have.gpus:g}; {_REMEDY}"
            )
    for section, kind, cpus, gpus in (
        ("features", "features", features.cpus_per_worker, features.gpus_per_worker),
        ("tuning", "tune", tuning.cpus, tuning.gpus),
    ):
        if kind in kinds and (cpus > have.most_cpus or gpus > have.most_gpus):
            yield (
                f"{section} asks for {cpus} CPUs and {gpus:g} GPUs in one process, but Ray's "
                f"largest node has {have.most_cpus:g} and {have.most_gpus:g}; {_REMEDY}"
            )
