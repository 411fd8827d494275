"""The stacked engine: many configurations train at once, as one model of K members.

Takes one or more groups, each a training set with all its views, a tuning seed and configurations;
trains one head for each configuration, and gives each member's losses and validation scores after
every epoch. The members of a group start from the same weights and see the same batches in the same
order; both depend only on the group's seed. Groups differ in labels (label noise), in seed, or in
rows. They have the same feature shape and the same validation part. Where all have the same
features and seed, the first layer is one matrix product for all members. A member gets the result
that it would get alone, up to rounding.

A batch is `batch_size` samples with all their views (a last batch of one sample is left out). The
target's loss, COV and SVD use every row of it. MSE compares each row's output with the features of
that row (`paper`), or the second view's output with the first view's features (`released`; a single
view is compared with itself). Under `Budget.views` an epoch trains on some of the views, in turn.
`losses.py` has the losses of the built-in heads, `module_losses.py` those of an extension.

A member whose loss is no longer finite is frozen with its current weights, and the reason is
recorded; the others do not change by a bit. Nothing here reads the test part, or files other than
those of `offload`.

On a GPU no step waits for the device. What the host has to know is read once an epoch: which
members failed, and whether SVD's matrix products have converged for all (`nmtune.spread`). If not,
the epoch is trained again by eigenvectors, as are those that follow.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from jobs.tuning import schedule
from jobs.tuning.budget import Budget
from jobs.tuning.frozen.losses import Losses, Regularised, Step
from jobs.tuning.frozen.module_losses import ModuleLosses
from jobs.tuning.frozen.offload import Offload
from jobs.tuning.frozen.snapshot import Snapshot
from jobs.tuning.frozen.stacked_adamw import StackedAdamW
from jobs.tuning.heads import TORCH_START, Shape, StackedHeads, Start, seeded
from jobs.tuning.module_heads import fresh, member, prepare, size
from jobs.tuning.rows import Features, Labelled
from jobs.tuning.spec import Precision
from jobs.tuning.trained import Configuration, Epoch, in_order

_ENTRIES = 1 << 24  # activations of all members in memory at once in an evaluation


@dataclass(frozen=True)
class Group:
    """Configurations that train on the same rows and labels from the same seed."""

    training: Labelled
    configurations: Sequence[Configuration]
    seed: int
    start: Start = TORCH_START


class Stack:
    """K heads in training."""

    def __init__(
        self,
        shape: Shape,
        groups: Sequence[Group],
        validation: Labelled,
        budget: Budget,
        *,
        device: str = "cpu",
        precision: Precision = "float32",
    ) -> None:
        samples = {len(group.training.labels) for group in groups}
        if len(samples) != 1:
            raise ValueError(f"groups of {sorted(samples)} samples cannot train as one stack")
        (self._samples,) = samples
        if self._samples < 2:
            raise ValueError(f"{self._samples} training samples; a batch needs two")
        self._device = torch.device(device)
        self._precision: Precision = precision
        self._validation = validation
        self._budget = budget
        configurations = [c for group in groups for c in group.configurations]
        self._target = shape.target
        self._move_to_device(groups)
        self.heads = StackedHeads.concatenated(
            [
                fresh(
                    shape,
                    len(group.configurations),
                    group.seed,
                    self._device,
                    statistics,
                    group.start,
                )
                for group, statistics in zip(groups, self._statistics, strict=True)
            ]
        )
        self.members = list(range(len(configurations)))  # that still train, by their initial index
        self.failures: list[str | None] = [None] * len(configurations)
        self.epochs: list[Epoch] = []
        self._alive = torch.ones(len(configurations), dtype=torch.bool, device=self._device)
        self._failed_after = torch.full((len(configurations),), -1, device=self._device)  # steps
        self._steps_done = 0
        self._optimizer = StackedAdamW(
            self.heads.parameters.values(),
            self._column([c.lr for c in configurations]),
            self._column([c.weight_decay for c in configurations]),
        )
        self._losses = self._losses_of(shape, groups, configurations)

    def _losses_of(
        self, shape: Shape, groups: Sequence[Group], configurations: Sequence[Configuration]
    ) -> Losses:
        if shape.part is None:
            return Regularised(shape, configurations, self._device, self._precision)
        if len(groups) != 1:
            raise ValueError(f"{shape.part} trains one group, not {len(groups)}")
        (group,) = groups
        found = ModuleLosses(shape, configurations, group.seed, self._device, self._precision)
        features, _ = self._sources[0]
        targets = self._target.of_views(self._labels[0], range(len(features)))
        prepare(self.heads, features, targets, found.hyper)
        return found

    @property
    def unstackable(self) -> str | None:
        """Why the members of an extension train one by one; None: they train as one stack."""
        return self._losses.unstackable if isinstance(self._losses, ModuleLosses) else None

    def _move_to_device(self, groups: Sequence[Group]) -> None:
        """Move features and labels to the device. A source is a distinct (features, seed) pair."""
        labels = [group.training.labels for group in groups]
        self._statistics = [self._target.statistics(own) for own in labels]
        encoded: dict[int, Tensor] = {}  # groups may share their labels
        for own, statistics in zip(labels, self._statistics, strict=True):
            if own.data_ptr() not in encoded:
                found = self._target.encoded(own, statistics).to(self._target.dtype)
                encoded[own.data_ptr()] = found.to(self._device)
        self._labels = [encoded[own.data_ptr()] for own in labels]
        known: dict[tuple[int, int], int] = {}
        self._sources: list[tuple[Features, int]] = []
        source_of = []  # by group
        for group in groups:
            mark = (group.training.features.data_ptr(), group.seed)
            if mark not in known:
                known[mark] = len(self._sources)
                self._sources.append((group.training.features.to(self._device), group.seed))
            source_of.append(known[mark])
        sizes = torch.tensor([len(group.configurations) for group in groups])
        self._source_of_group = source_of
        group_of = torch.arange(len(groups)).repeat_interleave(sizes)
        self._group_of = group_of.to(self._device)
        self._source_of = torch.tensor(source_of)[group_of].to(self._device)

    def _column(self, values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, device=self._device)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch."""
        size = self._budget.batch_size
        return self._samples // size + (self._samples % size > 1)

    def run_epoch(self, after_step: Callable[[], None] = lambda: None) -> None:
        """Train every member for one epoch, then validate; the result is `epochs[-1]`."""
        with _allow_tf32(self._precision, self._device):
            train = self._train_epoch(after_step)
        self._record_failures("training loss")
        loss, predicted = evaluate(self.heads, self._validation, self._device)
        scores = self._target.judge(self._validation.labels.to(self._device), predicted)
        self._freeze(~loss.isfinite())
        self._record_failures("validation loss")
        epoch = Epoch(
            {name: values.cpu() for name, values in train.items()},
            loss.cpu(),
            scores,
            self._budget.metric,
        )
        self.epochs.append(self._with_stopped_members(epoch))

    def _train_epoch(self, after_step: Callable[[], None]) -> dict[str, Tensor]:
        """Train for one epoch; the mean of each loss [K] by name."""
        if not self._losses.iterative:
            return self._train_steps(after_step)
        before = Snapshot(self.heads, self._optimizer)
        state = self._alive, self._failed_after, self._steps_done
        train = self._train_steps(after_step)
        if not self._losses.converged():
            before.restore()
            self._alive, self._failed_after, self._steps_done = state
            train = self._train_steps(lambda: None)
        return train

    def _train_steps(self, after_step: Callable[[], None]) -> dict[str, Tensor]:
        sums: dict[str, Tensor] = {}
        seen = 0
        for batch in self._batches():
            for name, values in self._step(batch).items():
                sums[name] = sums.get(name, 0.0) + len(batch[0]) * values.detach().double()
            seen += len(batch[0])
            after_step()
        return {name: total / seen for name, total in sums.items()}

    def keep(self, members: Sequence[int]) -> None:
        """Continue with only these members, given by their initial index."""
        rows = torch.tensor([self.members.index(m) for m in members], device=self._device)
        self.heads = self.heads.keep(rows)
        self._optimizer.keep(self.heads.parameters.values(), rows)
        self._alive, self._failed_after = self._alive[rows], self._failed_after[rows]
        self._group_of, self._source_of = self._group_of[rows], self._source_of[rows]
        self.members = list(members)
        self._losses.keep(rows)

    def store(self, offload: Offload) -> None:
        """Move all weights to a file; `restore` must be called before anything else."""
        offload.store(str(id(self)), self.heads, self._optimizer)

    def restore(self, offload: Offload) -> None:
        """Read back the weights that `store` moved to a file."""
        offload.restore(str(id(self)), self.heads, self._optimizer, self._device)

    def state(self, member: int) -> dict[str, Tensor]:
        """A member's current tensors, on the CPU."""
        return self.heads.member(self.members.index(member))

    def _with_stopped_members(self, epoch: Epoch) -> Epoch:
        """The epoch of the remaining members, with the last values of those that stopped."""
        if len(self.members) == len(self.failures):
            return epoch
        before = self.epochs[-1]

        def full(new: Tensor | None, old: Tensor | None) -> Tensor:
            blank = torch.full((len(self.failures),), torch.nan, dtype=torch.float64)
            values = blank if old is None else old.clone()
            if new is not None:
                values[self.members] = new.double()
            return values

        names = in_order([*before.train, *epoch.train])
        found, last = epoch.validation, before.validation
        return Epoch(
            {n: full(epoch.train.get(n), before.train.get(n)) for n in names},
            full(epoch.validation_loss, before.validation_loss),
            type(found)(**{n: full(getattr(found, n), getattr(last, n)) for n in vars(found)}),
            epoch.metric,
        )

    def _batches(self) -> Iterator[list[Tensor]]:
        """The samples of each step: one index tensor for each source."""
        orders = [
            torch.randperm(self._samples, generator=seeded(seed, "order", len(self.epochs) + 1)).to(
                self._device
            )
            for _, seed in self._sources
        ]
        size = self._budget.batch_size
        for step in range(self.steps_per_epoch):
            rows = slice(step * size, (step + 1) * size)
            yield [order[rows] for order in orders]

    def _step(self, batch: Sequence[Tensor]) -> dict[str, Tensor]:
        """One optimizer step on a batch; its losses by name, [K] each."""
        features, seen = self._features(batch), self._seen(self._sources[0][0])
        labels = torch.stack(
            [
                self._target.of_views(own[batch[source]], seen)
                for own, source in zip(self._labels, self._source_of_group, strict=True)
            ]
        )
        targets = labels[self._group_of]
        steps = self.steps_per_epoch * self._budget.epochs
        terms = self._losses.terms(self.heads, Step(features, targets, self._steps_done, steps))
        loss = self._losses.total(terms)
        self._freeze(~loss.detach().isfinite())
        loss.masked_fill(~self._alive, 0.0).sum().backward()  # type: ignore[no-untyped-call]
        share = schedule.share(self._budget.schedule, self._steps_done, steps)
        self._optimizer.step(share, self._alive)
        self._steps_done += 1
        return {"loss": loss, **terms}

    def _features(self, batch: Sequence[Tensor]) -> Tensor:
        """A batch's features: [V, M, D] where all members share them, else [K, V, M, D]."""
        found = [
            self._views(features, samples)
            for (features, _), samples in zip(self._sources, batch, strict=True)
        ]
        if len(found) == 1:
            return found[0]
        return torch.stack(found)[self._source_of]

    def _seen(self, features: Features) -> list[int]:
        """The views on which this epoch trains, from 0."""
        return self._budget.views_of(len(self.epochs) + 1, len(features))

    def _views(self, features: Features, samples: Tensor) -> Tensor:
        """The views [V', M, D] of some samples on which this epoch trains."""
        seen = self._seen(features)
        if len(seen) == len(features):
            return features[:, samples]
        return torch.stack([features[view, samples] for view in seen])

    def _freeze(self, broken: Tensor) -> None:
        """End the training of the `broken` members [K]."""
        newly = self._alive & broken
        self._failed_after = self._failed_after.masked_fill(newly, self._steps_done)
        self._alive = self._alive & ~newly

    def _record_failures(self, what: str) -> None:
        """Record the reason of the members that have been frozen since the last call."""
        for number, steps in zip(self.members, self._failed_after.tolist(), strict=True):
            if steps >= 0 and self.failures[number] is None:
                epoch = len(self.epochs) + 1
                self.failures[number] = f"{what} not finite in epoch {epoch} after {steps} steps"


@contextlib.contextmanager
def _allow_tf32(precision: Precision, device: torch.device) -> Iterator[None]:
    """A context that allows TF32 products, forward and backward, on a GPU with `precision` tf32."""
    if precision != "tf32" or device.type != "cuda":
        yield
        return
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def bytes_of_member(shape: Shape, rows: int, device: str = "cpu") -> int:
    """An estimate of one member's memory in a step of `rows` rows (views included), in bytes."""
    if shape.part is not None:
        sizes = [size(value) for value in member(shape, 0).state_dict().values()]
        entries, widths = sum(n for n, _ in sizes), sum(n for _, n in sizes)
        return 4 * (5 * entries + rows * (6 * shape.dim + 4 * widths))
    weights = shape.outputs * shape.dim + 2 * shape.hidden * shape.dim
    activations = rows * (4 * shape.hidden + 6 * shape.dim + 3 * shape.outputs)
    on_cpu = torch.device(device).type == "cpu"
    copies = 5 if on_cpu else 8  # weight, gradient, moments, change; on a GPU also a snapshot
    squares = 4 if on_cpu else 10  # of the Gram matrix's size
    doubles = rows * (squares * min(rows, shape.dim) + 3 * shape.dim) if shape.hidden else 0
    return 4 * (copies * weights + activations) + 8 * doubles


@torch.no_grad()
def evaluate(
    heads: StackedHeads, part: Labelled, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """(mean loss [K], float64; predictions [K, N]) of features [N, D], see `Target`.

    Rows are evaluated in pieces to limit memory. Raises ValueError when there is no row.
    """
    if len(part.labels) == 0:
        raise ValueError("there is no row to evaluate")
    target = heads.shape.target
    piece = max(1, _ENTRIES // (heads.width * heads.members))
    loss = torch.zeros(heads.members, dtype=torch.float64, device=device)
    predicted = []
    for start in range(0, len(part.labels), piece):
        rows = slice(start, start + piece)
        _, logits = heads.forward(part.features[rows].to(device), training=False)
        own = part.labels[rows].to(device)
        targets = own.expand(heads.members, *own.shape)
        losses = target.losses(logits, target.encoded(targets, heads.buffers))
        predicted.append(target.decode(logits, heads.buffers))
        loss += losses.sum(1, dtype=torch.float64)
    return loss / len(part.labels), torch.cat(predicted, dim=1)
