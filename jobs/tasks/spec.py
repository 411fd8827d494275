"""What a task file says: whose images, which labels, which metric, ID or OOD."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from jobs.contract import Slug, Spec
from jobs.corpus.spec import Corpus
from jobs.features.spec import Shift


class Task(Spec):
    """A downstream task on frozen features."""

    name: Slug
    title: str
    domain: Literal["id", "ood"]
    source: Literal["images", "features"] = Field(
        "images", description="features: given by an encoder of that kind, without images"
    )
    corpus: Corpus | None = None
    shift: Shift | None = None
    classes: dict[str, tuple[int, ...]] | None = Field(
        None,
        description="class name -> labels of the corpus that count as it, in order; "
        "rows of other labels are left out; none: the corpus's own classes",
    )
    metric: Literal["accuracy", "mean_per_class_accuracy"] = "accuracy"
    trained_on: Slug | None = Field(None, description="OOD: the ID task whose heads are tested")

    @model_validator(mode="after")
    def _domain(self) -> Task:
        if self.domain == "ood" and self.trained_on is None:
            raise ValueError(f"OOD task {self.name} must say which task it is `trained_on`")
        if self.domain == "id" and (self.trained_on or self.shift):
            raise ValueError(f"ID task {self.name} takes neither `trained_on` nor `shift`")
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

    @property
    def images(self) -> str:
        """The name of this task's image set: the corpus, and the shift when there is one."""
        return self.name if self.shift is not None else self.scope

    @property
    def scope(self) -> str:
        """What its keys belong to: the corpus; for given features, the task itself."""
        return self.name if self.corpus is None else self.corpus.name
