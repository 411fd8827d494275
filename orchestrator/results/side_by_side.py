"""Two sweeps side by side: reads both, finds what differs in their settings, writes the page.

Takes the results of two sweeps; gives the files `comparison.html` and `comparison.csv`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

from analysis.report.side_by_side import COLUMNS, Setting, Side, csv_rows, page
from analysis.report.write import as_csv
from analysis.side_by_side import side_by_side
from orchestrator.errors import UserError
from orchestrator.results.compare import StoredStep, compared
from orchestrator.results.read import Results
from orchestrator.step.step import Difference, differences

_ELSEWHERE = ("storage", "tracking", "data", "task_folders")  # where, not what
_LONGEST = 80  # letters of a value on the page


def write(names: tuple[str, str], results: tuple[Results, Results]) -> dict[str, str]:
    """The content of each file, by name. UserError where the two cannot be compared."""
    first, second = results
    if first.plan.experiment == second.plan.experiment and first.store.root == second.store.root:
        raise UserError(f"{names[0]} and {names[1]} are the same sweep; name two")
    try:
        found = side_by_side(first.readout, second.readout)
    except ValueError as error:
        raise UserError(f"{names[0]}, {names[1]}: {error}") from error
    a, b = (
        Side(letter, name, one.readout, one.store.root.uri)
        for letter, name, one in zip("AB", names, results, strict=True)
    )
    settings = [*_of_experiments(first, second), *_of_steps(first, second)]
    return {
        "comparison.html": page((a, b), found, settings),
        "comparison.csv": as_csv(COLUMNS, list(csv_rows(found))),
    }


def _of_experiments(first: Results, second: Results) -> Iterator[Setting]:
    """The fields of the two experiments that differ, but for where things lie."""
    ours, theirs = (
        one.plan.experiment.model_dump(mode="json", exclude=set(_ELSEWHERE))
        for one in (first, second)
    )
    for one in differences(ours, theirs):
        yield _setting(one)


def _of_steps(first: Results, second: Results) -> Iterator[Setting]:
    """How the finished steps of one address differ: versions, machine, what they read."""
    if first.store.root == second.store.root:
        return  # a step is there once, and both read it
    steps = (
        {
            address: StoredStep(one.store, manifest)
            for address in one.finished.records
            if (manifest := one.store.manifest(address)) is not None
        }
        for one in (first, second)
    )
    counted: Counter[str] = Counter()
    example: dict[str, Difference] = {}
    for pair in compared(*steps).pairs:
        for one in (*pair.noise, *pair.differs):
            counted[one.path] += 1
            example.setdefault(one.path, one)
    for path, number in counted.items():
        yield _setting(example[path], number)


def _setting(one: Difference, steps: int | None = None) -> Setting:
    return Setting(one.path, _words(one.recorded), _words(one.planned), steps)


def _words(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = "none" if value is None else text
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
