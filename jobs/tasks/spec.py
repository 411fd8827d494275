"""The fields of a task file: samples, labels, metric, ID or OOD.

An OOD task is tested with the heads of the task it is `trained_on`. Its classes are mapped to the
heads' outputs by name: the output of the same name, or the outputs that `answers` lists for the
class. Outputs without a class of the task cannot be predicted, which is the published way to test
on a subset of the classes. `facts` describe the expected data; they affect no result.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from jobs.alike import UNSEEN, first_alike
from jobs.contract import NOT_SEMANTIC, SILENT, Slug, Spec
from jobs.corpus.form import Modality
from jobs.corpus.spec import Corpus
from jobs.images.spec import Shift
from jobs.tasks.target import KINDS, OF_TWO_CLASSES, Metric, TargetKind, TargetName


class Facts(Spec):
    """Known properties of a task's data; `tasks check` compares them with the data."""

    homepage: str = Field(min_length=1, description="where the data is described")
    get: str = Field(min_length=1, description="how to get it, and where to put it")
    sizes: dict[Literal["reader", "train", "validation", "test"], int] = Field(
        min_length=1,
        description="rows of corpus.reader and of the parts' own readers; for given features, of "
        "each part",
    )
    classes: int = Field(0, ge=0, description="how many the corpus has; 0: the target is a number")
    class_names: tuple[str, ...] = Field((), description="the corpus's class names, if known")

    @model_validator(mode="after")
    def _check_class_names(self) -> Facts:
        if self.class_names and len(self.class_names) != self.classes:
            raise ValueError(
                f"{len(self.class_names)} class_names, but classes is {self.classes}; correct one "
                f"of them"
            )
        return self


Classes = dict[str, tuple[Annotated[int, Field(strict=True)] | str, ...]]
"""Class name -> the labels (numbers) or classes (names) of a corpus that belong to it."""


class Task(Spec):
    """A downstream task on frozen features."""

    name: Slug = Field(description="the name in experiment files, addresses and tables")
    title: Annotated[str, NOT_SEMANTIC] = Field(description="the name in figures and reports")
    domain: Literal["id", "ood"] = Field(
        description="id: heads are trained on it; ood: it only tests the heads of `trained_on`"
    )
    source: Literal["images", "text", "features"] = Field(
        "images",
        description="what the samples are; features: given as files (encoder kind `features`), "
        "without images or texts",
    )
    corpus: Corpus | None = Field(
        None, description="the samples, as in an experiment file; none: given features"
    )
    shift: Shift | None = Field(None, description="OOD: a change of every test image")
    classes: Classes | None = Field(
        None,
        description="class name -> labels (numbers) or classes (names) of the corpus that belong "
        "to it, in order; rows with other labels are left out; none: the corpus's own classes. For "
        "texts and given features: every name that a source may give the class",
    )
    target: TargetName = Field(
        "class",
        description="number: a regression, for texts and given features; mask: a class for each "
        "pixel, for images with masks",
    )
    patch_label: Annotated[Literal["shares", "majority"], SILENT] = Field(
        "shares",
        description="masks: what a patch is trained to give: the shares of its pixels' classes, or "
        "the class that most of them have",
    )
    upsampling: Annotated[Literal["nearest", "bilinear"], SILENT] = Field(
        "nearest",
        description="masks: how the prediction for the patches of a test image is enlarged to its "
        "mask; the validation part always by the nearest patch",
    )
    metric: Metric = Field(
        "accuracy", description="what selects configurations, and what every average is of"
    )
    trained_on: Slug | None = Field(None, description="OOD: the ID task whose heads are tested")
    answers: dict[str, tuple[str, ...]] | None = Field(
        None,
        description="OOD: class name -> classes of `trained_on` that count as it; none: the class "
        "of the same name",
    )
    facts: Annotated[Facts | None, NOT_SEMANTIC] = Field(
        None, description="what is known of the data; `nml-orch tasks check` compares it"
    )

    @field_validator("corpus")
    @classmethod
    def _allow_empty_classes(cls, corpus: Corpus | None) -> Corpus | None:
        """A cell says itself which class of its task has no training row."""
        return corpus and corpus.model_copy(update={"allow_empty_classes": True})

    @model_validator(mode="after")
    def _check_domain(self) -> Task:
        if self.domain == "ood" and self.trained_on is None:
            raise ValueError(f"OOD task {self.name} needs `trained_on`: the ID task of its heads")
        if self.domain == "id" and (self.trained_on or self.shift or self.answers):
            raise ValueError(
                f"ID task {self.name} cannot have `trained_on`, `shift` or `answers`; leave them "
                f"out, or set `domain: ood`"
            )
        if self.source == "features":
            if self.corpus or self.shift:
                raise ValueError(
                    f"task {self.name} has given features, so it cannot have `corpus` or `shift`; "
                    f"leave them out, or correct `source`"
                )
            return self
        if self.corpus is None:
            raise ValueError(f"task {self.name} needs a `corpus`, or `source: features`")
        modality = {"images": "image", "text": "text"}[self.source]
        if self.corpus.modality != modality:
            raise ValueError(
                f"task {self.name} has source {self.source}, and its corpus is of modality "
                f"{self.corpus.modality}; correct one of them"
            )
        if self.shift is not None and modality == "text":
            raise ValueError(
                f"task {self.name} has texts, and shifts are for images; leave `shift` out"
            )
        needed = ("train", "validation", "test") if self.domain == "id" else ("test",)
        empty = [part for part in needed if getattr(self.corpus.parts, part) == 0]
        if empty:
            raise ValueError(
                f"task {self.name} needs a {empty[0]} part and corpus {self.corpus.name} has none; "
                f"give corpus.parts.{empty[0]} a share or a reader"
            )
        return self

    @model_validator(mode="after")
    def _check_metric(self) -> Task:
        kind = self.target_kind
        if self.metric not in kind.metrics:
            raise ValueError(
                f"metric {self.metric} does not fit target {kind.name}; a {kind.name} is judged by "
                f"{', '.join(kind.metrics)}: use one of these"
            )
        if not kind.has_classes and (self.classes or self.answers):
            raise ValueError(
                f"task {self.name} predicts a {kind.name}, which has no `classes` and no "
                f"`answers`; leave them out"
            )
        if not kind.in_images and self.source == "images":
            raise ValueError(
                f"task {self.name} predicts a {kind.name}, but the labels of a corpus of images "
                f"are classes; give its features (`source: features`)"
            )
        if kind.dense and self.source != "images":
            raise ValueError(
                f"task {self.name} predicts masks, which only a corpus of images has; give it "
                f"`source: images` and a reader with masks"
            )
        for name in ("patch_label", "upsampling"):
            if not kind.dense and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"task {self.name}: {name} is for `target: mask`; leave it out")
        if self.corpus is not None and (kind.plural == "masks") != (
            self.corpus.label_kind == "masks"
        ):
            remedy = "name its masks in the reader" if kind.dense else "set `target: mask`"
            raise ValueError(
                f"task {self.name} predicts a {kind.name}, and the labels of corpus "
                f"{self.corpus.name} are {self.corpus.label_kind}; {remedy}"
            )
        if self.corpus is not None and self.corpus.label_kind != kind.plural:
            raise ValueError(
                f"task {self.name} predicts a {kind.name}, and the labels of corpus "
                f"{self.corpus.name} are {self.corpus.label_kind}; set `labels: {kind.plural}` in "
                f"its reader, or correct target"
            )
        if self.metric in OF_TWO_CLASSES and not self.classes:
            raise ValueError(
                f"metric {self.metric} counts one class of two; name both under `classes`, the "
                f"counted one last"
            )
        if self.metric in OF_TWO_CLASSES and len(self.classes or ()) != 2:
            raise ValueError(
                f"metric {self.metric} needs two classes, not {len(self.classes or ())}; name two, "
                f"or use another metric"
            )
        return self

    @model_validator(mode="after")
    def _check_maps(self) -> Task:
        for field, found in (("classes", self.classes), ("answers", self.answers)):
            if found == {}:
                raise ValueError(f"{field} lists nothing; name the classes, or leave it out")
            if not all(name.strip() for name in found or ()):
                raise ValueError(f"{field} has a class without a name; give it one")
            if (alike := first_alike(found or ())) is not None:
                raise ValueError(
                    f"the classes {alike[0]!r} and {alike[1]!r} of {field} differ only in "
                    f"{UNSEEN}; make them one class, or rename one"
                )
            for name, members in (found or {}).items():
                if not members:
                    raise ValueError(f"{field}.{name} lists nothing; name at least one")
            repeated = _first_duplicate(
                member for members in (found or {}).values() for member in members
            )
            if repeated is not None:
                raise ValueError(f"{repeated!r} counts as two of {field}; keep it in one of them")
        if self.classes and self.answers and set(self.classes) != set(self.answers):
            other = sorted(set(self.classes) ^ set(self.answers))
            raise ValueError(
                f"classes and answers must name the same classes; only one names {other[0]!r}: "
                f"name it in both, or in none"
            )
        return self

    @property
    def target_kind(self) -> TargetKind:
        """What its kind of target asks of metrics, methods and labels."""
        return KINDS[self.target]

    @property
    def modality(self) -> Modality | None:
        """What its samples are; None where only their features are given."""
        return None if self.corpus is None else self.corpus.modality

    @property
    def spells_labels(self) -> bool:
        """Whether `classes` list names that a source may use, of which some may be absent."""
        return self.source != "images"

    @property
    def images(self) -> str:
        """The name of this task's image set: the task's if it has a shift, else its `scope`."""
        return self.name if self.shift is not None else self.scope

    @property
    def scope(self) -> str:
        """What its keys belong to: the corpus; for given features, the task."""
        return self.name if self.corpus is None else self.corpus.name

    @property
    def parts(self) -> tuple[Literal["train", "validation", "test"], ...]:
        """The parts of its image set that need features; for a shifted one, the test part."""
        if self.shift is not None or self.corpus is None:
            return ("test",) if self.domain == "ood" else ("train", "validation", "test")
        given: tuple[Literal["train", "validation", "test"], ...] = ("train", "validation", "test")
        return tuple(part for part in given if getattr(self.corpus.parts, part) != 0)


def _first_duplicate(found: Iterable[int | str]) -> int | str | None:
    seen: set[int | str] = set()
    for member in found:
        if member in seen:
            return member
        seen.add(member)
    return None


def other_of_number(label: int, names: Sequence[str]) -> str | None:
    """Words on a label that is also the name of another class; None if it is not."""
    other = next((n for n in names if n.strip().isdecimal() and int(n) == label), None)
    if other is None or names.index(other) == label:
        return None
    return (
        f"{label}, which may be the class called {other!r} or the label {label} (the class called "
        f"{names[label]!r}); write the name, in quotes: {other!r} or {names[label]!r}"
    )


def shared_name(name: str, names: Sequence[str]) -> str | None:
    """Words on a name that two classes have; None if it has one class."""
    if names.count(name) < 2:
        return None
    labels = [label for label, other in enumerate(names) if other == name]
    return f"{name!r}, as labels {labels[0]} and {labels[1]} are called; write the label"
