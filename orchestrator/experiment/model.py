"""The fields of an experiment file, as validated models.

Unknown fields are refused. Fields marked NOT_SEMANTIC set how or where to run, not what. They never
change a fingerprint.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from pydantic import Field, PrivateAttr, field_validator, model_validator

from jobs.contract import NOT_SEMANTIC, PATH, Slug, Spec
from jobs.corpus.spec import Corpus
from jobs.encoders.spec import PretrainedEncoder
from jobs.features.spec import Features
from jobs.noise.spec import Noise
from jobs.overlap.spec import Choice
from jobs.pretrain.spec import Pretrain
from jobs.tasks import registry
from jobs.tasks.duplicates import duplicate_tests
from jobs.tasks.spec import Task
from jobs.tuning.spec import Tuning
from orchestrator import STORAGE
from orchestrator.errors import UserError
from orchestrator.experiment import given_features


class Tracking(Spec):
    """The tracking server that mirrors the store."""

    enabled: bool = Field(True, description="whether results are mirrored to MLflow")
    uri: str | None = Field(
        None, description="MLflow; else $MLFLOW_TRACKING_URI, else sqlite:///mlflow.db here"
    )


class Experiment(Spec):
    """A whole experiment of Noisy Model Learning."""

    name: Slug = Field(description="names the report and the experiment in MLflow")
    title: str = Field("", description="the report's title; empty: the name")
    corpus: Corpus | None = Field(None, description="the samples of pre-training")
    noise: Noise | None = Field(
        None, description="how labels or captions of pre-training become wrong, and how many"
    )
    pretrain: Pretrain | None = Field(
        None, description="how an encoder is trained at each noise level"
    )
    encoders: tuple[PretrainedEncoder, ...] = Field((), description="pretrained, not trained here")
    features: Features = Field(
        Features(), description="how encoders are run over the tasks' samples"
    )
    tasks: tuple[Slug, ...] = Field(
        min_length=1, description="names of downstream tasks: `nml-orch tasks list` shows them"
    )
    tuning: Tuning = Field(description="the methods, their budget and their search")
    claims: Annotated[tuple[str, ...] | None, NOT_SEMANTIC] = Field(
        None,
        min_length=1,
        description="ids of the registered claims: these alone get a verdict and share the "
        "correction; none: all claims do",
    )
    overlap: Choice = Field(
        "refuse",
        description="a task's test images that are trained on: refuse the task if they are more "
        "than 1 % of its test images, drop them from its tests, or allow them; always counted",
    )
    extensions: Annotated[tuple[str, ...], NOT_SEMANTIC] = Field(
        (),
        description="your own methods, encoders, noises and claims: Python files (.py), from this "
        "file's folder, or names that installed packages give (docs/extensions.md)",
    )
    task_folders: Annotated[tuple[str, ...], PATH, NOT_SEMANTIC] = Field(
        (), description="folders with task files of your own"
    )
    data: Annotated[str | None, PATH, NOT_SEMANTIC] = Field(
        None, description="where the paths of task files start; else $NML_DATA, else here"
    )
    storage: Annotated[str, PATH, NOT_SEMANTIC] = Field(
        STORAGE, min_length=1, description="where results go: a folder, s3:// or gs://"
    )
    tracking: Annotated[Tracking, NOT_SEMANTIC] = Field(
        Tracking(), description="the mirror of the results in MLflow"
    )
    _remembered: bool = PrivateAttr(False)

    @property
    def may_run_code(self) -> bool:
        """Whether a person named this experiment, and so the code of its extensions."""
        return not self._remembered

    def as_remembered(self) -> Experiment:
        """The same, as a store remembers it: the code of its extensions is not run."""
        copy = self.model_copy()
        copy._remembered = True
        return copy

    @field_validator("storage")
    @classmethod
    def _is_clear(cls, storage: str) -> str:
        if not storage.strip():
            raise ValueError("is blank; give a folder, s3://BUCKET/FOLDER or gs://BUCKET/FOLDER")
        if mistyped := re.match("(s3|gs):/?(?!/)", storage):
            scheme = mistyped[1]
            rest = storage[mistyped.end() :]
            raise ValueError(f"is no bucket; write {scheme}://{rest}, or ./{storage} for a folder")
        return storage

    @field_validator("tasks")
    @classmethod
    def _once(cls, tasks: tuple[str, ...]) -> tuple[str, ...]:
        twice = sorted({name for name in tasks if tasks.count(name) > 1})
        if twice:
            raise ValueError(f"{', '.join(twice)} named twice; an average counts a task once")
        return tasks

    @field_validator("claims")
    @classmethod
    def _registered_once(cls, claims: tuple[str, ...] | None) -> tuple[str, ...] | None:
        twice = sorted({name for name in claims or () if (claims or ()).count(name) > 1})
        if twice:
            raise ValueError(f"{', '.join(twice)} named twice; name each claim once")
        return claims

    @field_validator("encoders")
    @classmethod
    def _named_once(cls, encoders: tuple[PretrainedEncoder, ...]) -> tuple[PretrainedEncoder, ...]:
        names = [encoder.name for encoder in encoders]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"{', '.join(twice)} named twice; give each encoder its own name")
        return encoders

    @model_validator(mode="after")
    def _trains_all_or_nothing(self) -> Experiment:
        sections = {"corpus": self.corpus, "noise": self.noise, "pretrain": self.pretrain}
        missing = [name for name, section in sections.items() if section is None]
        if len(missing) == len(sections) and not self.encoders:
            raise ValueError(
                "corpus, noise and pretrain are missing; give all three, or `encoders`, or both"
            )
        if missing and len(missing) < len(sections):
            raise ValueError(
                f"{' and '.join(missing)} missing; pre-training needs corpus, noise and pretrain "
                f"together, and an experiment on pretrained encoders alone none of them"
            )
        return self

    @model_validator(mode="after")
    def _claims_have_results(self) -> Experiment:
        if self.claims is not None and self.noise is None:
            raise ValueError(
                "claims are about noise in pre-training, and this experiment pre-trains nothing; "
                "leave claims out"
            )
        return self

    @model_validator(mode="after")
    def _corpus_can_be_learned(self) -> Experiment:
        if self.corpus is not None and self.corpus.parts.train == 0:
            raise ValueError("corpus.parts.train is 0: nothing is left to pre-train on; raise it")
        if self.corpus is not None and self.pretrain and self.corpus.parts.validation == 0:
            raise ValueError(
                "corpus.parts.validation is 0: a run is evaluated on this part after each epoch; "
                "raise it, or give it a reader"
            )
        if self.corpus is not None and self.pretrain and self.corpus.modality != "image":
            raise ValueError(
                "corpus.modality is text, and pre-training reads images; give encoders that are "
                "trained elsewhere (`encoders`), and the texts as a task"
            )
        return self

    @model_validator(mode="after")
    def _noise_fits_objective(self) -> Experiment:
        if self.pretrain is None or self.noise is None:
            return self
        objective = self.pretrain.recipe.objective
        target = {"supervised": "label", "contrastive": "caption"}[objective]
        usual = {"label": "symmetric", "caption": "caption_swap"}[target]
        if self.noise.replaces != target:
            raise ValueError(
                f"noise.kind={self.noise.kind} changes {self.noise.replaces}s and a {objective} "
                f"recipe learns from {target}s; use {usual} or another kind for {target}s"
            )
        return self

    @model_validator(mode="after")
    def _views_exist(self) -> Experiment:
        count = self.features.views.count
        given = [e.name for e in self.encoders if e.kind == "features"]
        for name, method in self.tuning.methods.items():
            if not method.views:
                continue
            if given:
                raise ValueError(
                    f"tuning.methods.{name}.views is {method.views}, and encoder {given[0]} gives "
                    f"features of the plain samples alone; leave views out, or put {given[0]} in "
                    f"an experiment of its own"
                )
            if method.views > count:
                raise ValueError(
                    f"tuning.methods.{name}.views is {method.views}, and features.views.count is "
                    f"{count}; an epoch takes its views from those, so give at least as many"
                )
        return self

    def load_tasks(self) -> tuple[Task, ...]:
        """Every task, in the file's order, each OOD task after the one it is trained on.

        Reads task files, so only the planner calls it, once; all others read `Plan.tasks`. A name
        without a task file is an ID task of its own if an encoder gives features for it. Raises
        UserError for unknown names, for an OOD task whose ID task is not listed, and for two tasks
        that test the same samples by the same labels.
        """
        folders = [Path(folder) for folder in self.task_folders]
        try:
            known, given = registry.names(folders), given_features.given_tasks(self.encoders)
            tasks = [
                Task(name=name, title=name, domain="id", source="features")
                if name not in known and name in given
                else registry.load(name, folders, self.data)
                for name in self.tasks
            ]
        except (ValueError, OSError) as error:
            raise UserError(f"tasks: {error}") from error
        names = {task.name for task in tasks}
        for task in tasks:
            if task.trained_on is not None and task.trained_on not in names:
                raise UserError(
                    f"tasks: {task.name} is trained on {task.trained_on}, which is not listed; "
                    f"add it"
                )
        for first, second in duplicate_tests(tasks):
            raise UserError(
                f"tasks: {first} and {second} test the same samples by the same labels, and an "
                f"average counts a task once; take one out, or correct its reader"
            )
        by_name = {task.name: task for task in tasks}
        given_features.check(self.encoders, by_name, pretrains=self.pretrain is not None)
        return tuple(sorted(tasks, key=lambda task: task.domain == "ood"))


class Sources(Experiment):
    """The part of an experiment file that corpora and noise are made from.

    The verbs that make or show these alone read a file as this: tasks, tuning and pre-training may
    be missing.
    """

    tasks: tuple[Slug, ...] = Field((), description="as in an experiment; may be missing")
    tuning: Tuning = Tuning.model_validate(
        {"methods": {"lp": {"head": "linear", "space": {"lr": 0.01}}}}
    )

    @model_validator(mode="after")
    def _trains_all_or_nothing(self) -> Sources:
        if self.corpus is None and (self.noise is not None or not self.tasks):
            raise ValueError("corpus is missing; say which samples it has and how they are read")
        return self
