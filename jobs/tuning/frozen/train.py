"""Trains groups of configurations to a budget, in stacks that fit in memory, and selects the best.

Takes groups (see `stack`) with their common validation part; gives, for each group, the losses and
scores of every configuration and the weights of the selected one. As many members train at once as
`memory` allows; the rest train in further turns. The division into turns changes only rounding. A
member's weights are those after its last epoch, not after its best one. When a turn has ended, only
the best weights of each group are kept, so memory does not grow with the number of configurations.
Under halving, turns wait in files (`offload`) between cuts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from jobs.tuning.budget import Budget, Key, OnProgress, Patience, ignore_progress
from jobs.tuning.frozen.offload import Offload
from jobs.tuning.frozen.stack import Group, Stack, bytes_of_member
from jobs.tuning.heads import Shape
from jobs.tuning.metrics import gathered
from jobs.tuning.rows import Labelled
from jobs.tuning.spec import Precision
from jobs.tuning.trained import DROPPED, Configuration, Epoch, Trained, in_order

MEMORY = 1 << 30  # bytes for all members of a turn


def train(
    shape: Shape,
    training: Labelled,
    validation: Labelled,
    configurations: Sequence[Configuration],
    budget: Budget,
    *,
    seed: int,
    device: str = "cpu",
    precision: Precision = "float32",
    memory: int = MEMORY,
) -> Trained:
    """Train one head for each configuration. Raises ValueError on fewer than two samples.

    Training features are [V, N, D], or [N, D] for samples with a single view.
    """
    if len(training.features.shape) == 2:
        training = Labelled(training.features[None], training.labels)
    group = Group(training, configurations, seed)
    (trained,) = train_groups(
        shape, [group], validation, budget, device=device, precision=precision, memory=memory
    )
    return trained


def train_groups(
    shape: Shape,
    groups: Sequence[Group],
    validation: Labelled,
    budget: Budget,
    *,
    device: str = "cpu",
    precision: Precision = "float32",
    memory: int = MEMORY,
    on_progress: OnProgress = ignore_progress,
) -> list[Trained]:
    """As `train`, for several groups. Raises ValueError if they have different numbers of rows."""
    whole = sum(budget.epochs_of(len(group.configurations)) for group in groups)
    done = 0.0

    def trained(epochs: float) -> None:
        nonlocal done
        done += epochs
        on_progress(min(1.0, done / whole))

    members = [(g, c) for g, group in enumerate(groups) for c in range(len(group.configurations))]
    views = len(budget.views_of(1, groups[0].training.features.shape[0]))
    at_once = max(1, memory // bytes_of_member(shape, budget.batch_size * views, device))
    count = -(-len(members) // at_once)
    groups = _move_to_device(groups, device)
    validation = Labelled(validation.features.to(device), validation.labels.to(device))

    def start(turn: _Turn) -> Stack:
        own = _groups_of(turn.members, groups)
        return Stack(shape, own, validation, budget, device=device, precision=precision)

    cuts = [budget.cuts(len(group.configurations)) for group in groups]
    with Offload() as offload:
        turns = []
        for first in range(count):
            share = members[first * len(members) // count : (first + 1) * len(members) // count]
            turns.append(_Turn(share, budget, offload if count > 1 else None))
        for epoch in [*sorted({epoch for cut in cuts for epoch in cut}), budget.epochs]:
            for turn in turns:
                turn.run_to(epoch, start, trained)
            for number, cut in enumerate(cuts):
                if epoch in cut:
                    _drop(turns, number, cut[epoch], epoch)
    return [_gather(turns, number) for number in range(len(groups))]


def _move_to_device(groups: Sequence[Group], device: str) -> list[Group]:
    """The groups with their features on the device; shared features are copied there once."""
    copies: dict[int, Tensor] = {}
    moved = []
    for group in groups:
        features, labels = group.training.features, group.training.labels
        on_device = copies.setdefault(features.data_ptr(), features.to(device))
        moved.append(replace(group, training=Labelled(on_device, labels)))
    return moved


def _groups_of(members: Sequence[tuple[int, int]], groups: Sequence[Group]) -> list[Group]:
    """The groups of some (group, configuration) pairs, in order, with only those configurations."""
    tried: dict[int, list[Configuration]] = {}
    for number, configuration in members:
        tried.setdefault(number, []).append(groups[number].configurations[configuration])
    return [replace(groups[n], configurations=found) for n, found in tried.items()]


class _Turn:
    """Members that train in one stack, from their first epoch to their last."""

    def __init__(
        self, members: Sequence[tuple[int, int]], budget: Budget, offload: Offload | None
    ) -> None:
        """`offload`: keeps the stack while other turns train; None: it stays in memory."""
        self.members = members  # (group, configuration)
        self.epochs: list[Epoch] = []
        self.failures: list[str | None] = [None] * len(members)
        self.dropped: list[str | None] = [None] * len(members)
        self.trained_for = [0] * len(members)
        self._frozen: set[int] = set()
        self._budget = budget
        self._patience = Patience(budget.patience)
        self._stack: Stack | None = None
        self._offload = offload
        self.unstackable: str | None = None
        self._best: dict[int, tuple[Key, Mapping[str, Tensor]]] = {}  # by group, of stopped members

    def run_to(
        self, epoch: int, start: Callable[[_Turn], Stack], trained: Callable[[float], None]
    ) -> None:
        """Train the remaining members until `epoch`; after the last, keep only the best weights.

        `trained` is called after every step, with the step's share of an epoch times the members.
        """
        if self._stack is None and not self.epochs:
            self._stack = start(self)
            self.epochs, self.failures = self._stack.epochs, self._stack.failures
        else:
            self._restore()
        while self._stack is not None and len(self.epochs) < epoch:
            step = len(self._stack.members) / self._stack.steps_per_epoch
            self._stack.run_epoch(partial(trained, step))
            self.unstackable = self._stack.unstackable
            self._after_epoch(self._stack)
        if self._stack is not None and len(self.epochs) == self._budget.epochs:
            self._stop(self._stack, self._stack.members)
        self._store()

    def _store(self) -> None:
        if self._stack is not None and self._offload is not None:
            self._stack.store(self._offload)

    def _restore(self) -> None:
        if self._stack is not None and self._offload is not None:
            self._stack.restore(self._offload)

    def candidates(self, group: int) -> dict[int, Key]:
        """The keys of the group's members that can still be selected, by member."""
        return {
            m: self.epochs[-1].key(m)
            for m, (of, _) in enumerate(self.members)
            if of == group and self.failures[m] is None and self.dropped[m] is None
        }

    def drop(self, members: Sequence[int], reason: str) -> None:
        """End the training of these members; they cannot be selected."""
        if not members:
            return
        for member in members:
            self.dropped[member] = reason
        for group, (key, _) in list(self._best.items()):
            if key[2] in members:
                del self._best[group]
        if self._stack is not None:
            left = [m for m in self._stack.members if m not in members]
            self._restore()
            self._continue_with(self._stack, left)
            self._store()

    def best(self, group: int) -> Mapping[str, Tensor]:
        """The weights of the group's best member among those that have stopped."""
        return self._best[group][1]

    def _after_epoch(self, stack: Stack) -> None:
        for member in stack.members:
            if member not in self._frozen:
                self.trained_for[member] = len(self.epochs)
        self._frozen.update(m for m in stack.members if self.failures[m] is not None)
        over = [
            m
            for m in stack.members
            if self.failures[m] is None and self._patience.is_over(m, self.epochs[-1].key(m))
        ]
        if over:
            self._stop(stack, over)

    def _stop(self, stack: Stack, members: Sequence[int]) -> None:
        """End the training of some members, and keep the weights of each group's best."""
        for member in members:
            group = self.members[member][0]
            key = self.epochs[-1].key(member)
            if self.failures[member] is None and (
                group not in self._best or key < self._best[group][0]
            ):
                self._best[group] = key, stack.state(member)
        self._continue_with(stack, [m for m in stack.members if m not in members])

    def _continue_with(self, stack: Stack, members: Sequence[int]) -> None:
        if not any(self.failures[member] is None for member in members):
            self._stack = None  # frees its memory
        elif len(members) < len(stack.members):
            stack.keep(members)


def _drop(turns: Sequence[_Turn], group: int, left: int, epoch: int) -> None:
    """Drop all but the best `left` members of a group, over all turns."""
    candidates = sorted(
        (key[:2], number, member)
        for number, turn in enumerate(turns)
        for member, key in turn.candidates(group).items()
    )
    for number, turn in enumerate(turns):
        out = [member for _, of, member in candidates[left:] if of == number]
        turn.drop(out, f"{DROPPED} {epoch}")


def _gather(turns: Sequence[_Turn], group: int) -> Trained:
    """One group's members from all turns, in drawing order."""
    chosen: tuple[tuple[float, float], int, int] | None = None  # key, turn, member
    shares: list[tuple[_Turn, list[int]]] = []
    for number, turn in enumerate(turns):
        shares.append((turn, [m for m, (of, _) in enumerate(turn.members) if of == group]))
        for member, key in turn.candidates(group).items():
            found = key[:2], number, member
            chosen = found if chosen is None else min(chosen, found)
    flat = [(turn, member) for turn, members in shares for member in members]
    state: Mapping[str, Tensor] = {}
    index = None
    if chosen is not None:
        turn = turns[chosen[1]]
        state, index = turn.best(group), flat.index((turn, chosen[2]))
    longest = max(len(turn.epochs) for turn, members in shares if members)
    return Trained(
        epochs=tuple(_epoch(shares, number) for number in range(longest)),
        failures=tuple(turn.failures[m] for turn, m in flat),
        dropped=tuple(turn.dropped[m] for turn, m in flat),
        trained_for=tuple(turn.trained_for[m] for turn, m in flat),
        chosen=index,
        state=state,
        unstackable=next((turn.unstackable for turn in turns if turn.unstackable), None),
    )


def _epoch(shares: Sequence[tuple[_Turn, list[int]]], number: int) -> Epoch:
    """The losses and scores after an epoch (from 0), for members of several turns."""
    found = [(turn.epochs[min(number, len(turn.epochs) - 1)], m) for turn, m in shares if m]
    terms = {term for epoch, _ in found for term in epoch.train}

    def of(epoch: Epoch, term: str, members: list[int]) -> Tensor:
        values = epoch.train.get(term)
        if values is None:
            return torch.full((len(members),), torch.nan, dtype=torch.float64)
        return values[members]

    return Epoch(
        {t: torch.cat([of(e, t, m) for e, m in found]) for t in in_order(terms)},
        torch.cat([epoch.validation_loss[m] for epoch, m in found]),
        gathered([(epoch.validation, m) for epoch, m in found]),
        found[0][0].metric,
    )
