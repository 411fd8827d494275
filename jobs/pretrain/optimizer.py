"""timm's optimizer, learning rate schedule and moving average of the weights, for a run.

Takes the `Schedule`, the model's parameter groups (from its objective) and the number of updates;
gives timm's and torch's objects. The learning rate is a function of the update alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.optim import create_optimizer_v2  # type: ignore[attr-defined]
from timm.scheduler import CosineLRScheduler  # type: ignore[attr-defined]
from timm.utils import ModelEmaV3  # type: ignore[attr-defined]
from torch import nn
from torch.optim import Optimizer

from jobs.pretrain.spec import Schedule

WARMUP_START = 0.01  # share of the learning rate where a warm-up starts by default

Groups = Sequence[dict[str, Any]]


def make_optimizer(schedule: Schedule, groups: Groups) -> Optimizer:
    """timm's SGD (Nesterov), AdamW or LAMB over groups, each with its weight decay."""
    options: dict[str, Any] = {"momentum": schedule.momentum}
    if schedule.optimizer != "sgd":
        options = {"betas": schedule.betas}
        if schedule.eps is not None:
            options["eps"] = schedule.eps
    if schedule.optimizer != "lamb":
        # One fused kernel for an update: in small models, the update takes much of a step.
        options["fused"] = True
    optimizer: Optimizer = create_optimizer_v2(
        list(groups),
        opt=schedule.optimizer,
        lr=schedule.lr,
        weight_decay=schedule.weight_decay,
        **options,
    )
    return optimizer


def make_scheduler(
    schedule: Schedule, optimizer: Optimizer, steps_per_epoch: int
) -> CosineLRScheduler:
    """Linear warm-up, then half a cosine down to `min_lr`, set for each update."""
    total = schedule.epochs * steps_per_epoch
    warmup = round(schedule.warmup_epochs * steps_per_epoch)
    after = schedule.cosine == "after_warmup"
    start = WARMUP_START * schedule.lr if schedule.warmup_lr is None else schedule.warmup_lr
    return CosineLRScheduler(
        optimizer,
        t_initial=max(1, total - warmup) if after else total,
        lr_min=schedule.min_lr,
        warmup_t=warmup,
        warmup_lr_init=start,
        warmup_prefix=after,
        t_in_epochs=False,
    )


def make_average(schedule: Schedule, model: nn.Module) -> ModelEmaV3 | None:
    """timm's moving average of the weights, starting at the model's; None without `ema_decay`."""
    if schedule.ema_decay is None:
        return None
    return ModelEmaV3(model, decay=schedule.ema_decay, use_warmup=schedule.ema_warmup)


def lay_out_like_parameters(optimizer: Optimizer) -> None:
    """Give restored optimizer state the memory layout of its parameters (such as channels last).

    State read from a file is contiguous, but fused kernels need the parameter's own layout.
    """
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if getattr(value, "shape", None) == parameter.shape:
                state[key] = torch.empty_like(parameter).copy_(value)
