"""The results of training: configurations, their epochs, and the one selected.

Frozen cells and cells that train the encoder both end in a `Fit`; `jobs.tuning.write` turns it into
files.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from jobs.contract import StageError, Work
from jobs.tasks.target import Metric
from jobs.tuning.budget import Key
from jobs.tuning.search_space import STANDARD
from jobs.tuning.spec import TuneStep

if TYPE_CHECKING:  # they import torch, which the driver does without
    from torch import Tensor

    from jobs.tuning.heads import Shape
    from jobs.tuning.metrics import Judged
    from jobs.tuning.rows import TaskClasses, TaskRows

TERMS = ("loss", "ce", "squared_error", "mse", "cov", "svd")
"""Training losses by name; `loss` is the weighted sum that is minimised. A task has `ce` or, where
its target is a number, `squared_error`; `mse` is the regulariser of NMTune. An extension's losses
may have other names."""


def in_order(names: Iterable[str]) -> list[str]:
    """The names of losses, those of TERMS first."""
    return sorted({*names}, key=lambda n: (TERMS.index(n) if n in TERMS else len(TERMS), n))


DROPPED = "dropped by halving after epoch"


@dataclass(frozen=True)
class Configuration:
    """One point of a method's search space."""

    lr: float  # 0: solved, not trained by steps
    weight_decay: float = 0.0
    mse: float = 0.0  # loss weights, the space's `scale` included
    cov: float = 0.0
    svd: float = 0.0
    l2: float = 0.0  # ridge and lbfgs
    own: Mapping[str, float] = field(default_factory=dict)  # an extension's hyper-parameters

    def value(self, name: str) -> float | None:
        """A hyper-parameter by name; None if the space does not have it."""
        return self.own.get(name) if name not in STANDARD else float(getattr(self, name, 0.0))


def configuration(values: dict[str, float]) -> Configuration:
    """A configuration from a value for each domain of a space; loss weights include the scale."""
    scale = values["scale"]
    return Configuration(
        lr=values.get("lr", 0.0),
        weight_decay=values["weight_decay"],
        mse=values["mse"] * scale,
        cov=values["cov"] * scale,
        svd=values["svd"] * scale,
        l2=values.get("l2", 0.0),
        own={name: value for name, value in values.items() if name not in STANDARD},
    )


@dataclass(frozen=True)
class Epoch:
    """Losses and scores of all members after an epoch; [K] float64 tensors on the CPU.

    A member that no longer trains repeats the values of its last epoch.
    """

    train: dict[str, Tensor]  # by name (TERMS), means over the epoch; absent: not computed
    validation_loss: Tensor
    validation: Judged
    metric: Metric  # the task's own, by which members are compared

    def key(self, member: int) -> Key:
        """A member's sort key: the better validation score first, then the lower loss."""
        own = float(self.validation.of(self.metric)[member])
        return -own, float(self.validation_loss[member]), member


@dataclass(frozen=True)
class Trained:
    """The configurations of a group after their last epoch."""

    epochs: tuple[Epoch, ...]  # a member that has stopped repeats its last one
    failures: tuple[str | None, ...]  # why a member was frozen; None: its losses stayed finite
    dropped: tuple[str | None, ...]  # why halving ended a member; None: it may be selected
    trained_for: tuple[int, ...]  # epochs, by member
    chosen: int | None  # the selected member; None when all failed
    state: Mapping[str, Tensor]  # its weights; empty when all failed
    unstackable: str | None = None  # why an extension's members trained one by one


@dataclass(frozen=True)
class Selected:
    """A head that was selected on the validation part. Only with it can the test part be read."""

    state: Mapping[str, Tensor]  # as `StackedHeads.member` gives it
    classes: tuple[str, ...]  # of the task, in index order; empty: its target is a number


@dataclass(frozen=True)
class Fit:
    """Trained heads, the rows that they were trained on, and the selected configuration."""

    shape: Shape
    classes: TaskClasses
    views: int
    training: TaskRows
    validation: TaskRows
    configurations: Sequence[Configuration]
    trained: Trained
    chosen: int

    @property
    def failed(self) -> int:
        """Configurations whose losses did not stay finite."""
        return sum(failure is not None for failure in self.trained.failures)


def step_of(work: Work) -> TuneStep:
    """The work's spec. Raises TypeError when it is not a tuning step."""
    if not isinstance(work.spec, TuneStep):
        raise TypeError(f"{work.address}: a {type(work.spec).__name__} is not a tuning step")
    return work.spec


def all_failed(step: TuneStep, domain: str, failures: Sequence[str | None]) -> StageError:
    """The error of a cell where no configuration can be selected; `domain`: what to narrow."""
    reasons = [failure for failure in failures if failure is not None]
    dropped = len(failures) - len(reasons)
    others = f" except {dropped} that halving dropped" if dropped else ""
    first = next(iter(reasons), "none was trained to the end")
    return StageError(
        f"all {len(failures)} configurations{others} failed (first: {first}); "
        f"narrow space.{domain} of method {step.method_name}"
    )
