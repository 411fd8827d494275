"""What a task file says: whose images, which labels, which metric, ID or OOD.

An OOD task is tested with the heads of the task it is `trained_on`. Its classes are linked to
theirs by name: a class is answered by the head's output of the same name, or by the outputs that
`answers` lists for it. Outputs that answer no class of the task cannot be chosen: the published way
of testing on a subset of the classes. `facts` say what the data should be; they bear on no result.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import Field, model_validator

from jobs.contract import NOT_SEMANTIC, Slug, Spec
from jobs.corpus.spec import Corpus
from jobs.images.spec import Shift
from jobs.tasks.target import KINDS, OF_TWO_CLASSES, Metric, TargetKind, TargetName


class Facts(Spec):
    """What a task's data is known to be: compared with what lies there by `tasks check`."""

    homepage: str = Field(min_length=1)
    get: str = Field(min_length=1, description="how to get it, and where to put it")
    sizes: dict[Literal["reader", "train", "validation", "test"], int] = Field(
        min_length=1,
        description="rows: of corpus.reader and the parts' own readers; of given features, by part",
    )
    classes: int = Field(0, ge=0, description="of the corpus, before `classes` chooses; 0: numbers")
    class_names: tuple[str, ...] = Field((), description="the corpus's, where they are known")

    @model_validator(mode="after")
    def _agree(self) -> Facts:
        if self.class_names and len(self.class_names) != self.classes:
            raise ValueError(f"{len(self.class_names)} class_names, but classes is {self.classes}")
        return self


class Task(Spec):
    """A downstream task on frozen features."""

    name: Slug
    title: Annotated[str, NOT_SEMANTIC]
    domain: Literal["id", "ood"]
    source: Literal["images", "features"] = Field(
        "images", description="features: given by an encoder of that kind, without images"
    )
    corpus: Corpus | None = None
    shift: Shift | None = None
    classes: dict[str, tuple[int | str, ...]] | None = Field(
        None,
        description="class name -> labels (numbers) or classes (names) of the corpus that count as "
        "it, in order; rows of other labels are left out; none: the corpus's own classes. Of given "
        "features: all names that may stand for it, a label that is a number as text",
    )
    target: TargetName = Field("class", description="number: a regression, of given features alone")
    metric: Metric = "accuracy"
    trained_on: Slug | None = Field(None, description="OOD: the ID task whose heads are tested")
    answers: dict[str, tuple[str, ...]] | None = Field(
        None,
        description="OOD: class name -> classes of `trained_on` that answer it; none: the class of "
        "the same name",
    )
    facts: Annotated[Facts | None, NOT_SEMANTIC] = None

    @model_validator(mode="after")
    def _domain(self) -> Task:
        if self.domain == "ood" and self.trained_on is None:
            raise ValueError(f"OOD task {self.name} must say which task it is `trained_on`")
        if self.domain == "id" and (self.trained_on or self.shift or self.answers):
            raise ValueError(
                f"ID task {self.name} takes neither `trained_on`, `shift` nor `answers`"
            )
        if self.source == "features":
            if self.corpus or self.shift:
                raise ValueError(f"task {self.name} has given features: no `corpus`, no `shift`")
            return self
        if self.corpus is None:
            raise ValueError(f"task {self.name} needs a `corpus`, or `source: features`")
        needed = ("train", "validation", "test") if self.domain == "id" else ("test",)
        empty = [part for part in needed if getattr(self.corpus.parts, part) == 0]
        if empty:
            raise ValueError(
                f"task {self.name} needs a {empty[0]} part and corpus {self.corpus.name} has none; "
                f"give corpus.parts.{empty[0]} a share or a reader"
            )
        return self

    @model_validator(mode="after")
    def _metric_fits(self) -> Task:
        kind = self.target_kind
        if self.metric not in kind.metrics:
            raise ValueError(
                f"metric {self.metric} does not fit target {kind.name}; a {kind.name} is judged by "
                f"{', '.join(kind.metrics)}"
            )
        if not kind.has_classes and (self.classes or self.answers):
            raise ValueError(f"task {self.name} predicts a {kind.name}: no `classes`, no `answers`")
        if not kind.in_images and self.source != "features":
            raise ValueError(
                f"task {self.name} predicts a {kind.name}, and the labels of a corpus of images "
                f"are classes; give its features (`source: features`)"
            )
        if self.metric in OF_TWO_CLASSES and not self.classes:
            raise ValueError(
                f"metric {self.metric} counts one class of two; name both under `classes`, that "
                f"one last"
            )
        if self.metric in OF_TWO_CLASSES and len(self.classes or ()) != 2:
            raise ValueError(
                f"metric {self.metric} is of two classes, not {len(self.classes or ())}"
            )
        return self

    @model_validator(mode="after")
    def _maps_are_injective(self) -> Task:
        for field, found in (("classes", self.classes), ("answers", self.answers)):
            for name, members in (found or {}).items():
                if not members:
                    raise ValueError(f"{field}.{name} lists nothing; name at least one")
            twice = _twice(member for members in (found or {}).values() for member in members)
            if twice is not None:
                raise ValueError(f"{twice!r} counts as two of {field}; leave it in one of them")
        if self.classes and self.answers and set(self.classes) != set(self.answers):
            odd = sorted(set(self.classes) ^ set(self.answers))
            raise ValueError(f"classes and answers must name the same classes, not {odd[0]!r}")
        return self

    @property
    def target_kind(self) -> TargetKind:
        """What its kind of target asks of metrics, methods and labels."""
        return KINDS[self.target]

    @property
    def images(self) -> str:
        """The name of this task's image set: the corpus, and the shift when there is one."""
        return self.name if self.shift is not None else self.scope

    @property
    def scope(self) -> str:
        """What its keys belong to: the corpus; for given features, the task itself."""
        return self.name if self.corpus is None else self.corpus.name

    @property
    def parts(self) -> tuple[Literal["train", "validation", "test"], ...]:
        """The parts of its image set that need features: of a shifted one, the test part."""
        if self.shift is not None or self.corpus is None:
            return ("test",) if self.domain == "ood" else ("train", "validation", "test")
        given: tuple[Literal["train", "validation", "test"], ...] = ("train", "validation", "test")
        return tuple(part for part in given if getattr(self.corpus.parts, part) != 0)


def _twice(found: Iterable[int | str]) -> int | str | None:
    seen: set[int | str] = set()
    for member in found:
        if member in seen:
            return member
        seen.add(member)
    return None
