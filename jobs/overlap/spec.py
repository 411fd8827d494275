"""The specs of the steps that look for test samples in training sets, and the user's choice."""

from __future__ import annotations

from typing import Literal

from jobs.contract import Slug, Spec
from jobs.tasks.spec import Classes

Choice = Literal["refuse", "drop", "allow"]
"""What is done about test samples that are trained on, see docs/tasks.md."""

REFUSED_ABOVE = 1
"""The percentage of a test part's samples above which `refuse` refuses the task."""


def limit_of(choice: Choice) -> int:
    """The percentage above which a step fails; 100: it never does."""
    return REFUSED_ABOVE if choice == "refuse" else 100


class HashesStep(Spec):
    """What the samples of a corpus (an input step) are compared by. Has no settings."""


class OverlapStep(Spec):
    """A task's test part against the samples that its cells are trained on.

    Inputs, all of them hashes: `test`; `training`, of the task whose training and validation rows
    its heads see; `pretraining`, of the corpus that its encoders are trained on. One of the last
    two may be absent. `classes` name the rows of a task, as in its file; none: all rows.
    """

    task: Slug
    classes: Classes | None = None
    head: Slug  # the task itself, or the one that it is trained on
    head_classes: Classes | None = None
    limit: int  # percent of the test part's samples; above it the step fails
