"""What a plan would make for nothing, and how to avoid it.

Takes a plan, gives sentences. Changes no step: an experiment beside it may need what this one does
not, and both share a store.
"""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.plan.plan import Plan


def unread_parts(plan: Plan) -> Iterator[str]:
    """Corpora of OOD tests alone whose other parts are encoded too, a sentence each.

    Every part of a task's corpus gets features, because an ID task over the same corpus reads them.
    """
    trained = {task.scope for task in plan.tasks if task.domain == "id"}
    named: set[str] = set()
    for task in plan.tasks:
        others = [part for part in task.parts if part != "test"]
        if task.corpus is None or not others or {task.scope} & (trained | named):
            continue
        named.add(task.scope)
        yield (
            f"tasks: {task.name} only tests on the corpus {task.scope} here, and its "
            f"{' and '.join(others)} rows are encoded for nothing; with corpus.parts "
            f"{{train: 0, validation: 0, test: 1}} in its file all rows are test rows"
        )
