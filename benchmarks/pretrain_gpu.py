"""Pre-training on a GPU: against the train steps of timm and open_clip, and the GPU's peak rate.

Used by `pretrain.py`; needs CUDA. For ResNet-50 (timm) and CLIP RN50 and ViT-B/16 (open_clip), at
224 px, bf16, channels-last, on generated images and, for ResNet-50, also from shards:

- images_per_s: of our runs' updates. `_<model>`, `_shards`.
- vs_timm, vs_open_clip: over those of the library's own model, loss and AdamW in a minimal loop,
  with tensors already on the GPU and the same batch and precision.
- ceiling_share: floating-point operations a second (forward and backward, by torch's counter) over
  those of a large bf16 matrix product measured here.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import open_clip
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from jobs.pretrain.distributed import DistributedGroup
from jobs.pretrain.spec import Resources
from synthetic_corpus import CLASSES, update_times, work, write_corpus

BATCH = 256
STEPS = 30
DEVICE = torch.device("cuda")


def seconds_a_step(step: Callable[[], Any]) -> float:
    """The median of the steps after the first ten."""
    times = []
    for _ in range(STEPS):
        torch.cuda.synchronize()
        begun = time.perf_counter()
        step()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - begun)
    return median(times[10:])


def ceiling() -> float:
    """Floating-point operations a second of a bf16 matrix product."""
    side = 8192
    a = torch.randn(side, side, device=DEVICE, dtype=torch.bfloat16)
    return 2 * side**3 / seconds_a_step(lambda: a @ a)


def plain_step(model: nn.Module, loss_of: Callable[[], Tensor]) -> tuple[float, float]:
    """Seconds of a minimal training step of a model, and its floating-point operations."""
    model.to(DEVICE, memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16):
            loss = loss_of()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    with FlopCounterMode(display=False) as counter:
        step()
    return seconds_a_step(step), float(counter.get_total_flops())


def pictures() -> Tensor:
    """A batch on the GPU."""
    images = torch.randn(BATCH, 3, 224, 224, device=DEVICE)
    return images.contiguous(memory_format=torch.channels_last)


def by_timm() -> tuple[float, float]:
    model = timm.create_model("resnet50", num_classes=CLASSES)
    images, labels = pictures(), torch.randint(0, CLASSES, (BATCH,), device=DEVICE)
    return plain_step(model, lambda: F.cross_entropy(model(images), labels))


def by_open_clip(name: str) -> tuple[float, float]:
    model = open_clip.create_model(name)
    images = pictures()
    texts = open_clip.get_tokenizer(name)(["a photo of a thing"] * BATCH).to(DEVICE)
    loss = open_clip.ClipLoss()
    return plain_step(model, lambda: loss(*model(images, texts)))


def ours(root: Path, name: str, fields: dict[str, Any], objective: str = "supervised") -> float:
    """Images a second of one of our runs."""
    schedule = {"epochs": 1, "batch_size": BATCH, "lr": 1e-4, "precision": "bf16"}
    resources = Resources.model_validate({"cpus_per_worker": 14, "channels_last": True})
    model = fields.pop("model")
    one = work(root, name, model, fields | {"schedule": schedule}, resources, objective)
    times = update_times(one, DistributedGroup(device=DEVICE))
    torch.cuda.synchronize()
    steps = times[4:]
    return BATCH * (len(steps) - 1) / (steps[-1] - steps[0])


def measure(root: Path, images: list[bytes]) -> dict[str, float]:
    """All figures; `images`: the JPEGs for shards and batches."""
    write_corpus(root, (images * (1 + STEPS * BATCH // len(images)))[: STEPS * BATCH], 1_000)
    peak = ceiling()
    seconds, flops = by_timm()
    in_memory = ours(root, "held", {"model": "resnet50"})
    augment = {"crop": [0.08, 1.0], "flip": True}
    found = {
        "images_per_s": in_memory,
        "images_per_s_shards": ours(root, "shards", {"model": "resnet50", "augment": augment}),
        "vs_timm": in_memory * seconds / BATCH,
        "ceiling_share": in_memory / BATCH * flops / peak,
    }
    for name in ("RN50", "ViT-B-16"):
        seconds, flops = by_open_clip(name)
        speed = ours(root, f"clip-{name}", {"model": name}, "contrastive")
        tail = name.lower().replace("-", "")
        found[f"images_per_s_clip_{tail}"] = speed
        found[f"vs_open_clip_{tail}"] = speed * seconds / BATCH
        found[f"ceiling_share_clip_{tail}"] = speed / BATCH * flops / peak
    found["vs_open_clip"] = min(v for k, v in found.items() if k.startswith("vs_open_clip_"))
    return found
