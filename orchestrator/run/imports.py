"""The modules that the fork server imports for the workers of each kind of step.

They are large, or import large ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

EVERY = ("pandas", "pyarrow.compute", "pyarrow.parquet", "pydantic.v1", "PIL.Image")
TORCH = ("torch", "torchvision", "timm")
BY_KIND: Mapping[str, Sequence[str]] = {
    "pretrain": (*TORCH, "jobs.pretrain.run"),
    "encoder": TORCH,
    "features": (*TORCH, "jobs.features.extract"),
    "tune": (*TORCH, "jobs.tuning.frozen.cell", "jobs.tuning.finetune.cell"),
}
RAYS = ("ray", "ray._private.node", "ray._private.arrow_serialization")
RAYS_BY_KIND: Mapping[str, Sequence[str]] = {
    "corpus": ("jobs.corpus.job",),
    "hashes": ("jobs.overlap.job",),
    "overlap": ("jobs.overlap.job",),
    "noise": ("jobs.noise.job",),
    "pretrain": ("ray.train.torch", "jobs.pretrain.job"),
    "encoder": ("jobs.encoders.job",),
    "features": ("jobs.features.job",),
    "tune": ("ray.tune", "jobs.tuning.frozen.job", "jobs.tuning.finetune.job"),
}
"""The same, of what imports Ray."""


def imports(kinds: Sequence[str]) -> list[str]:
    """The modules that workers need for steps of some kinds; Ray's, and those with it, last."""
    own = [name for kind in kinds for name in BY_KIND.get(kind, ())]
    rays = [name for kind in kinds for name in RAYS_BY_KIND[kind]]
    return list(dict.fromkeys([*EVERY, *own, *RAYS, *rays]))
