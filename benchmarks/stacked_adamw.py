"""The stack's own AdamW against `torch.optim.AdamW` with a parameter group for each member.

    python benchmarks/stacked_adamw.py

Eight members on one thread; processor milliseconds of a step, the least of 15. Prints one JSON
object: for each head the step of the stack and of torch's fused, foreach and default forms. Torch's
forms have separate tensors for each member; stacking them for batched products is not measured.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import torch

from jobs.tuning.frozen.stacked_adamw import StackedAdamW
from jobs.tuning.heads import HeadKind, Shape, StackedHeads
from jobs.tuning.target import ClassTarget

MEMBERS, CLASSES, REPEATS = 8, 10, 15
HEADS: tuple[tuple[HeadKind, int], ...] = (
    ("linear", 512),
    ("paper", 32),
    ("paper", 96),
    ("paper", 512),
)
FORMS: dict[str, dict[str, bool]] = {
    "fused": {"fused": True},
    "foreach": {"foreach": True},
    "default": {},
}


def milliseconds(step: Callable[[], None]) -> float:
    least = float("inf")
    for _ in range(REPEATS):
        begun = time.process_time()
        step()
        least = min(least, time.process_time() - begun)
    return round(1e3 * least, 3)


def measure(kind: HeadKind, dim: int) -> dict[str, float]:
    shape = Shape(kind, dim, ClassTarget(CLASSES))
    heads = StackedHeads.fresh(shape, MEMBERS, 0, torch.device("cpu"))
    grads = {name: torch.randn_like(value) for name, value in heads.parameters.items()}
    rates, decays = torch.full((MEMBERS,), 1e-3), torch.full((MEMBERS,), 1e-4)
    alive = torch.ones(MEMBERS, dtype=torch.bool)
    stacked = StackedAdamW(heads.parameters.values(), rates, decays)

    def stacks_step() -> None:
        for name, value in heads.parameters.items():
            value.grad = grads[name]
        stacked.step(1.0, alive)

    own = [
        [
            (torch.nn.Parameter(value[k].detach().clone()), grads[name][k])
            for name, value in heads.parameters.items()
        ]
        for k in range(MEMBERS)
    ]
    found = {"stacked": milliseconds(stacks_step)}
    for name, options in FORMS.items():
        groups = [{"params": [p for p, _ in member], "lr": 1e-3} for member in own]
        optimizer = torch.optim.AdamW(groups, weight_decay=1e-4, **options)  # type: ignore[arg-type]

        def torchs_step(optimizer: torch.optim.AdamW = optimizer) -> None:
            for member in own:
                for parameter, grad in member:
                    parameter.grad = grad
            optimizer.step()

        found[name] = milliseconds(torchs_step)
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps({f"{kind}_{dim}": measure(kind, dim) for kind, dim in HEADS}))
