"""Checks an experiment's pretrained encoders against its tasks, and makes one from a features file.

Encoders with weights take any task with images. Given features take the tasks that they have a file
for. Nothing here reads a file of features or weights.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from jobs.contract import MOST_LETTERS, Slug
from jobs.encoders.spec import GivenEncoder, PretrainedEncoder
from jobs.storage.folder import Folder
from jobs.tasks import registry
from jobs.tasks.spec import Task
from orchestrator.errors import UserError

BUDGET = {"epochs": 10, "fractions": [10, 100]}
"""The budget of one file of features, where no experiment file gives one."""

TYPO = 0.8  # similarity of a name and its typing error; digits-by-pixel and digits-parity have less


def given_tasks(encoders: Iterable[PretrainedEncoder]) -> set[str]:
    """The tasks that some encoder gives features for."""
    return {name for encoder in _given(encoders) for name in encoder.files}


def check(
    encoders: Sequence[PretrainedEncoder], tasks: Mapping[str, Task], *, pretrains: bool
) -> None:
    """Check that every file of given features has a task, and every task an encoder.

    `pretrains`: whether the experiment trains encoders of its own.

    Raises UserError for the first mismatch.
    """
    for encoder in _given(encoders):
        for name in encoder.files:
            where = f"encoders: {encoder.name}: files names {name}"
            kind = tasks[name].target_kind if name in tasks else None
            if kind is not None and not kind.has_classes and encoder.classes.get(name):
                raise UserError(f"{where}, which predicts a {kind.name}; leave out its classes")
            if name not in tasks:
                left = [task for task in tasks if task not in encoder.files]
                near = difflib.get_close_matches(name, left, n=1)
                hint = f"did you mean {near[0]}?" if near else "add it to `tasks`"
                raise UserError(f"{where}, which is not listed in tasks; {hint}")
            trained_on = tasks[name].trained_on
            if trained_on is not None and trained_on not in encoder.files:
                raise UserError(
                    f"{where}, which is trained on {trained_on}; give that task's file as well"
                )
            if tasks[name].shift is not None:
                raise UserError(f"{where}, whose images are shifted; features cannot be")
    known = given_tasks(encoders)
    reading = [each for each in encoders if not isinstance(each, GivenEncoder)]
    read = {each.modality for each in reading}
    read |= {"image"} if pretrains else set()
    for task in tasks.values():
        if task.name in known or task.modality in read:
            continue
        if task.modality is None:
            raise UserError(
                f"tasks: {task.name} has given features, and no encoder of kind features gives "
                f"them; add its file to one"
            )
        kinds = {"image": "timm, open_clip or file", "text": "transformers or api"}[task.modality]
        raise UserError(
            f"tasks: {task.name} has samples of modality {task.modality}, and no encoder of this "
            f"experiment reads them; add one of kind {kinds}, or take the task out"
        )
    modalities = {task.modality for task in tasks.values()}
    for each in reading:
        if each.modality not in modalities:
            raise UserError(
                f"encoders: {each.name} reads samples of modality {each.modality}, and no "
                f"task has any; add such a task, or take the encoder out"
            )


def on_given(
    raw: Mapping[str, Any], file: str, task: str | None, *, short: bool = False
) -> dict[str, Any]:
    """The features and tuning of an experiment, applied to one file of features as its only ID
    task.

    `short`: the tuning is the demo's, which is cut to the demo's time; `BUDGET` replaces that.
    The encoder is named after the file (if that name is too long, after the task), and so is the
    task unless it has its own name. Raises UserError for a name that an address cannot hold.
    """
    own = Path(Folder.holding(file)[1]).stem.lower()
    stem = re.sub(r"[^a-z0-9._-]+", "-", own).strip("-._") or "given"
    name = stem if task is None else task
    try:
        TypeAdapter(list[Slug]).validate_python([name, f"features-{name}"])
    except ValidationError:
        what = f"--features {file}: its name" if task is None else f"--task {task}: a task's name"
        raise UserError(
            f"{what} is up to 70 small letters, digits, dots, dashes and underscores, a letter or "
            f"digit first; give one with --task"
        ) from None
    if task is not None and len(stem) > MOST_LETTERS:
        stem = name
    kept = ("features", "tuning", "storage", "tracking", "task_folders", "data")
    sections = {section: raw[section] for section in kept if section in raw}
    if short:
        sections["tuning"] = {**sections["tuning"], **BUDGET}
    return {
        "name": f"features-{name}",
        "title": f"Adapting given features: {name}",
        "encoders": [{"kind": "features", "name": stem, "files": {name: file}}],
        "tasks": [name],
        **sections,
    }


def check_new(task: str, folders: Sequence[str]) -> None:
    """Check that the task of a features file exists, or that its name is unlike every known task's.

    Raises UserError for a near miss, which would become a new task with its own metric.
    """
    try:
        known = registry.names(folders)
    except (ValueError, OSError) as error:
        raise UserError(f"tasks: {error}") from error
    near = difflib.get_close_matches(task, known, n=3, cutoff=TYPO)
    if near and task not in known:
        raise UserError(
            f"--task {task}: there is no such task, but one with a similar name "
            f"({' or '.join(near)}); correct it, or describe your own in a file (--tasks-path)"
        )


def _given(encoders: Iterable[PretrainedEncoder]) -> list[GivenEncoder]:
    return [encoder for encoder in encoders if isinstance(encoder, GivenEncoder)]
