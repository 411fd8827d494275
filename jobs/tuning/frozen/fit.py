"""Fits ID cells: data, labels, training and selection, for one cell or for several siblings.

Siblings are cells that can train as one stack: features, task, head, budget and the number of
training rows are equal; method (loss weights), label noise or tuning seed differ. Each gets the
result it would get alone, up to rounding. A stack takes as many siblings as fit in memory: the time
of small heads depends on the number of operations, so larger stacks cost less for each cell.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from jobs.contract import StageError, Work
from jobs.tasks.target import Metric
from jobs.tuning.budget import Budget, OnProgress, ignore_progress
from jobs.tuning.frozen import probes, zero_shot
from jobs.tuning.frozen.features import FeatureCache
from jobs.tuning.frozen.optuna_search import Optuna
from jobs.tuning.frozen.stack import Group, bytes_of_member
from jobs.tuning.frozen.train import train_groups
from jobs.tuning.heads import Shape, StackedHeads, Start
from jobs.tuning.label_noise import corrupted
from jobs.tuning.methods import GIVEN, PROBES
from jobs.tuning.metrics import gathered
from jobs.tuning.module_heads import fresh, hyper_of, is_solved, prepare
from jobs.tuning.rows import Labelled, TaskClasses, TaskRows, plain_rows, training_rows
from jobs.tuning.targets import target_of
from jobs.tuning.trained import Configuration, Epoch, Fit, Trained, all_failed, in_order, step_of


def fit(
    work: Work,
    configurations: Sequence[Configuration] | None,
    cache: FeatureCache,
    on_progress: OnProgress = ignore_progress,
) -> Fit:
    """Fit one cell. Without configurations, the step's search proposes them.

    Raises StageError when the features do not fit the task, or when every configuration failed.
    """
    prepared = _Prepared(cache, work)
    step = prepared.step
    if configurations is not None:
        return prepared.fit_of(configurations, _train([prepared], [configurations], on_progress)[0])
    searcher = Optuna(step.method.space, step.settings.configurations, step.seed)
    tried: list[Configuration] = []
    parts = []
    while batch := searcher.ask():
        part = _partial_progress(on_progress, len(tried), len(batch), step.settings.configurations)
        (trained,) = _train([prepared], [batch], part)
        last = trained.epochs[-1]
        searcher.tell(last.validation.of(last.metric).tolist(), trained.failures)
        tried += batch
        parts.append(trained)
    return prepared.fit_of(tried, _concatenate(parts))


def fit_siblings(
    works: Sequence[Work],
    configurations: Sequence[Sequence[Configuration]],
    cache: FeatureCache,
    on_progress: OnProgress = ignore_progress,
) -> Iterator[tuple[Work, Fit | StageError]]:
    """Fit cells with the same `sibling_key`; yield each one as soon as its stack has ended.

    `on_progress` gets the share done (0 to 1) of the cells that are not yielded yet.
    """
    prepared: dict[int, _Prepared] = {}
    shared: _Shared = {}
    for index, work in enumerate(works):
        try:
            prepared[index] = _Prepared(cache, work, shared)
        except StageError as error:
            yield work, error
    left = len(prepared)
    for stack in _stacks_that_fit([(i, p, len(configurations[i])) for i, p in prepared.items()]):
        part = _partial_progress(on_progress, 0, len(stack), left)
        left -= len(stack)
        found = _train([prepared[i] for i in stack], [configurations[i] for i in stack], part)
        for index, trained in zip(stack, found, strict=True):
            try:
                yield works[index], prepared[index].fit_of(configurations[index], trained)
            except StageError as error:
                yield works[index], error


_Shared = dict[tuple[float, int], tuple[TaskRows, Labelled]]
"""The training rows of siblings by fraction and seed, with their features and clean labels."""


class _Prepared:
    """A cell's data, in the form that the stacked engine takes."""

    def __init__(
        self,
        cache: FeatureCache,
        work: Work,
        shared: _Shared | None = None,
    ) -> None:
        """`shared` keeps the rows of siblings, so that they are in memory once."""
        self.work, self.step = work, step_of(work)
        step = self.step
        fitting = cache.load(work.inputs["features"], plain=step.method.views == 0)
        self.classes = TaskClasses.of(step.task, fitting.classes)
        shared = {} if shared is None else shared
        which = (step.fraction, 0 if step.fraction >= 100 else step.seed)
        if which not in shared:
            rows = training_rows(
                fitting.train, self.classes, step.task, percent=step.fraction, seed=step.seed
            )
            shared[which] = rows, fitting.train.training(rows)
        self.training, self._clean = shared[which]
        self.validation = plain_rows(fitting.validation, self.classes, step.task)
        self.validation_samples = fitting.validation.plain(self.validation)
        self.views = fitting.train.augmented
        if (step.method.views or 0) > self.views:
            raise StageError(
                f"method {step.method_name} trains on {step.method.views} views of each training "
                f"image in an epoch, but its features have {self.views}; lower its views, or give "
                f"features.views.count more"
            )
        self.shape = Shape(
            step.method.kind,
            fitting.train.views.shape[-1],
            target_of(step.task, len(self.classes.names)),
            step.method.residual,
            step.part,
        )

    def labelled(self) -> Labelled:
        """The training samples, with this cell's label noise."""
        step, clean = self.step, self._clean
        if not step.label_noise:
            return clean
        noisy = corrupted(
            clean.labels.numpy(),
            self.training.keys,
            classes=self.shape.target.classes,
            percent=step.label_noise,
            seed=step.seed,
            scope=step.task.scope,
            among=step.label_noise_classes,
        )
        return Labelled(clean.features, torch.from_numpy(noisy))

    def fit_of(self, configurations: Sequence[Configuration], trained: Trained) -> Fit:
        """The cell's `Fit`. Raises StageError when every configuration failed."""
        if trained.chosen is None:
            domain = "l2" if self.step.method.head in GIVEN else "lr"
            raise all_failed(self.step, domain, trained.failures)
        return Fit(
            self.shape,
            self.classes,
            self.views,
            self.training,
            self.validation,
            configurations,
            trained,
            trained.chosen,
        )


def _stacks_that_fit(members: Sequence[tuple[int, _Prepared, int]]) -> list[list[int]]:
    """Stacks of cells (index, data, configurations) with as many rows each, that fit in memory."""
    stacks: list[tuple[int, int, list[int]]] = []  # rows, bytes, cells
    for index, prepared, configurations in members:
        rows = len(prepared.training.keys)
        step = prepared.step
        seen = prepared.views if step.method.views is None else step.method.views
        batch = step.settings.batch_size * max(1, seen)
        device = "cuda" if step.settings.gpus else "cpu"
        own = configurations * bytes_of_member(prepared.shape, batch, device)
        if (
            stacks
            and stacks[-1][0] == rows
            and stacks[-1][1] + own <= step.settings.memory_mb << 20
        ):
            stacks[-1] = rows, stacks[-1][1] + own, [*stacks[-1][2], index]
        else:
            stacks.append((rows, own, [index]))
    return [cells for _, _, cells in stacks]


def _train(
    prepared: Sequence[_Prepared],
    configurations: Sequence[Sequence[Configuration]],
    on_progress: OnProgress,
) -> list[Trained]:
    first, step = prepared[0], prepared[0].step
    head = step.method.head
    if head in PROBES:
        rows = first.labelled(), first.validation_samples
        metric = step.task.metric
        return [probes.solve(head, first.shape, *rows, configurations[0], metric, on_progress)]
    if head == "zero_shot":
        encoder, templates = first.work.inputs["encoder"], step.method.templates
        weight = zero_shot.classifier(encoder, first.classes.names, templates)
        solution: probes.Solution = weight[None], weight.new_zeros(1, len(weight)), [None]
        rows = first.labelled(), first.validation_samples
        fresh = StackedHeads.fresh(first.shape, 1, 0, torch.device("cpu"))
        return [probes.judged(solution, fresh, *rows, step.task.metric)]
    if is_solved(step.part):
        return [
            solve(
                first.shape,
                first.labelled(),
                first.validation_samples,
                configurations[0],
                step.task.metric,
                step.seed,
            )
        ]
    return train_groups(
        first.shape,
        [
            Group(cell.labelled(), tried, cell.step.seed, Start.of(cell.step.method))
            for cell, tried in zip(prepared, configurations, strict=True)
        ],
        first.validation_samples,
        Budget(
            step.settings.epochs,
            step.settings.batch_size,
            step.settings.halving,
            step.settings.patience,
            step.task.metric,
            step.method.views or None,  # 0: the plain sample is the one view
            step.settings.schedule,
        ),
        device="cuda" if step.settings.gpus and torch.cuda.is_available() else "cpu",
        precision=step.settings.precision,
        memory=step.settings.memory_mb << 20,
        on_progress=on_progress,
    )


def solve(
    shape: Shape,
    training: Labelled,
    validation: Labelled,
    configurations: Sequence[Configuration],
    metric: Metric,
    seed: int,
) -> Trained:
    """The heads of an extension's class without a loss, which its `prepare` solves."""
    statistics = shape.target.statistics(training.labels)
    heads = fresh(shape, len(configurations), seed, statistics=statistics)
    targets = shape.target.encoded(training.labels, statistics)
    targets = shape.target.of_views(targets, range(len(training.features)))
    hyper = hyper_of(shape, configurations)
    prepare(heads, training.features, targets.to(shape.target.dtype), hyper)
    failures = [
        None
        if all(value.isfinite().all() for value in heads.member(k).values())
        else "the solution is not finite"
        for k in range(heads.members)
    ]
    return probes.of_heads(heads, failures, training, validation, metric)


def _partial_progress(
    on_progress: OnProgress, before: int, own: int, all_of_them: int
) -> OnProgress:
    """A callback for a part of the work; it passes the share of the whole to `on_progress`."""
    return lambda share: on_progress((before + own * share) / all_of_them)


def _term(epoch: Epoch, name: str) -> torch.Tensor:
    """A training loss of all members; NaN where no member gives it a weight."""
    return epoch.train.get(name, torch.full_like(epoch.validation_loss, torch.nan))


def _concatenate(parts: Sequence[Trained]) -> Trained:
    """The results of a search's batches as one result."""
    longest = max(len(part.epochs) for part in parts)
    epochs = []
    for number in range(longest):
        found = [part.epochs[min(number, len(part.epochs) - 1)] for part in parts]
        known = {term for epoch in found for term in epoch.train}
        epochs.append(
            Epoch(
                {t: torch.cat([_term(epoch, t) for epoch in found]) for t in in_order(known)},
                torch.cat([epoch.validation_loss for epoch in found]),
                gathered([(epoch.validation, slice(None)) for epoch in found]),
                found[0].metric,
            )
        )
    candidates = []  # (key over all batches, part)
    before = 0
    for part in parts:
        if part.chosen is not None:
            candidates.append((epochs[-1].key(before + part.chosen), part))
        before += len(part.failures)
    best = min(candidates, key=lambda found: found[0], default=None)
    return Trained(
        tuple(epochs),
        tuple(f for part in parts for f in part.failures),
        tuple(d for part in parts for d in part.dropped),
        tuple(t for part in parts for t in part.trained_for),
        None if best is None else best[0][2],
        {} if best is None else best[1].state,
    )
