"""What runs that train together need before their first batch.

Takes the works of steps that differ in their noise alone; gives what they have in common (corpus,
objective, how many fit in memory) and what each has of its own (noise, model). Errors are agreed on
by all workers, so none waits for one that has failed. Never writes.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar, cast

from torch import Tensor, nn

from jobs.contract import StageError, Work
from jobs.corpus.shards import Index
from jobs.encoders import encoder
from jobs.images.transforms import needs_source_image
from jobs.pretrain import footprint
from jobs.pretrain.data.in_memory import MemorySource, load_part, part_fits_in_memory
from jobs.pretrain.data.noisy import NoisyRows
from jobs.pretrain.data.part import Part, Source, Targets, read_index
from jobs.pretrain.data.reader import lazy_part
from jobs.pretrain.data.streamed import StreamedSource
from jobs.pretrain.distributed import DistributedGroup
from jobs.pretrain.loop import Watch
from jobs.pretrain.objectives.contrastive import ContrastiveObjective
from jobs.pretrain.objectives.objective import Objective
from jobs.pretrain.objectives.supervised import SupervisedObjective
from jobs.pretrain.spec import Contrastive, PretrainStep

_T = TypeVar("_T")


@dataclass(frozen=True)
class Run:
    """A run to train, and its callbacks."""

    work: Work
    watch: Watch = field(default_factory=Watch)

    @property
    def step(self) -> PretrainStep:
        """Its step."""
        return cast(PretrainStep, self.work.spec)


@dataclass(frozen=True)
class Shared:
    """What runs have in common."""

    objective: Objective
    index: Index
    validation: Part
    train: Part | None  # None: streamed
    clean: Tensor | None  # its clean targets, encoded


@dataclass(frozen=True)
class Member:
    """A run, and its noise."""

    run: Run
    noise: NoisyRows
    targets: Targets | None  # None: streamed


@dataclass(frozen=True)
class Initial:
    """A model at its initial weights."""

    model: nn.Module
    sha256: str
    dim: int  # of its features


def agreed(make: Callable[[], _T], group: DistributedGroup) -> _T:
    """What `make` gives; if it raises StageError on one worker, all raise the first one's."""
    made: list[_T] = []
    error = None
    try:
        made.append(make())
    except StageError as raised:
        error = str(raised)
    error = group.first_error(error)
    if error is not None:
        raise StageError(error)
    return made[0]


def share(step: PretrainStep, work: Work, group: DistributedGroup) -> Shared:
    """Read and decode the corpus. Raises StageError for one that the recipe cannot train on."""
    recipe, resources, corpus = step.recipe, step.resources, work.inputs["corpus"]
    index = read_index(corpus)
    if index.rows("validation") == 0:
        raise StageError(
            f"corpus {index.name} has no validation rows to evaluate a run on after each "
            f"epoch; give its parts.validation a share or a reader"
        )

    def fits(part: str) -> bool:
        limit, sharing = resources.decoded_gb, group.sharing
        return part_fits_in_memory(corpus, part, recipe.image, limit, sharing)

    objective = _objective(step, index.classes, group)
    train = clean = None
    # Else streamed: the augmentation needs the source image, or memory is too small.
    if not needs_source_image(recipe.augment) and fits("train"):
        train = load_part(corpus, "train", recipe.image)
        values = train.labels if objective.field == "label" else train.captions
        clean = objective.encode(train, values)
    if fits("validation"):
        validation = load_part(corpus, "validation", recipe.image)
    else:
        threads = resources.cpus_per_worker
        validation = lazy_part(corpus, index, "validation", recipe.image, threads)
    return Shared(objective, index, validation, train, clean)


def most_together(step: PretrainStep, shared: Shared, group: DistributedGroup) -> int:
    """How many runs of a step memory holds at once, beside what is held already."""
    recipe, resources = step.recipe, step.resources
    alone = _objective(step, shared.index.classes, DistributedGroup())
    of_run = footprint.measure(
        alone,
        alone.build(step.seed),
        shared.validation,
        recipe.schedule,
        group,
        resources.images_per_pass,
    )
    return footprint.most_together(of_run, resources, group)


def with_noise(run: Run, shared: Shared) -> Member:
    """A run with its noise. Raises StageError for noise of another field or corpus."""
    objective, train, folder = shared.objective, shared.train, run.work.inputs["noise"]
    rows = shared.index.rows("train")
    noise = NoisyRows(folder, rows, objective.field, objective.encode)
    if train is None or shared.clean is None:
        return Member(run, noise, None)
    values = train.labels if objective.field == "label" else train.captions
    return Member(run, noise, noise.targets(train, 0, train.keys, values, shared.clean))


def source(members: Sequence[Member], shared: Shared) -> Source:
    """The training part, with the targets of each member in this order."""
    step, corpus = members[0].run.step, members[0].run.work.inputs["corpus"]
    schedule, objective = step.recipe.schedule, shared.objective
    if shared.train is not None:
        return MemorySource(
            shared.train,
            *[member.targets for member in members if member.targets is not None],
            seed=step.seed,
            batch_size=schedule.batch_size,
            repeats=schedule.repeats,
        )
    return StreamedSource(
        corpus,
        shared.index,
        *[member.noise for member in members],
        field=objective.field,
        encode=objective.encode,
        model_input=step.recipe.image,
        augment=step.recipe.augment,
        processes=step.resources.cpus_per_worker,
        seed=step.seed,
        batch_size=schedule.batch_size,
        repeats=schedule.repeats,
    )


def initials(step: PretrainStep, objective: Objective, count: int) -> list[Initial]:
    """New models of a step, for `count` runs that start from the same weights: built once."""
    model = objective.build(step.seed)
    digest = hashlib.sha256(encoder.weights_bytes(model)).hexdigest()
    dim = objective.architecture.feature_dim(model)
    models = [model, *(copy.deepcopy(model) for _ in range(count - 1))]
    return [Initial(each, digest, dim) for each in models]


def _objective(step: PretrainStep, classes: tuple[str, ...], group: DistributedGroup) -> Objective:
    if isinstance(step.recipe, Contrastive):
        return ContrastiveObjective(step.recipe, group)
    return SupervisedObjective(step.recipe, len(classes), group, step.source)
