"""The claims of an experiment's extensions, as `analysis` takes them.

Takes an experiment; gives a claim for each function of its files that takes `results`. A claim's id
is the function's name with dashes, its sentence the docstring's first line, its source the line
that begins with `Source:`. The functions run in the driver, when claims are tested. An experiment
that a store remembers has none: code runs only where a person names its file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from analysis.claims.contrasts import Comparison
from analysis.claims.own import Results
from analysis.own_claim import OwnClaim
from jobs.contract import StageError
from jobs.extensions import declared
from jobs.extensions.files import find
from jobs.extensions.load import blaming, load
from jobs.extensions.spec import Part
from orchestrator.errors import UserError
from orchestrator.experiment.model import Experiment

_SOURCE = re.compile(r"^\s*Source:\s*(\S.*)$", re.MULTILINE)


def of(experiment: Experiment) -> tuple[OwnClaim, ...]:
    """The claims of the experiment's extensions. Raises UserError for a file with a fault."""
    if not experiment.may_run_code:
        return ()
    try:
        found = find(experiment.extensions) if experiment.extensions else {}
        return tuple(
            _claim(Part(extension, one.name))
            for extension in found.values()
            for one in declared.parts(extension).values()
            if one.kind == "claim"
        )
    except StageError as error:
        raise UserError(f"extensions: {error}") from error


def check(part: Part) -> str:
    """One sentence about a claim that can be read. Raises StageError for one that cannot."""
    claim = _claim(part)
    return f"is the claim {claim.id}: {claim.sentence}"


def _claim(part: Part) -> OwnClaim:
    function = load(part)
    words = (function.__doc__ or "").strip()
    if not words:
        raise StageError(f"{part} has no docstring; its first line is the claim's sentence")
    source = _SOURCE.search(words)
    if source is None:
        raise StageError(
            f"{part}: its docstring has no line `Source: ...`; say where the claim is from"
        )
    sentence = words.splitlines()[0].rstrip(".")
    return OwnClaim(part.name.replace("_", "-"), sentence, source[1], _guarded(part, function))


def _guarded(
    part: Part, function: Callable[[Results], list[Comparison]]
) -> Callable[[Results], list[Comparison]]:
    def comparisons(results: Results) -> list[Comparison]:
        with blaming(part.extension):
            found = function(results)
        return list(_checked(part, found))

    return comparisons


def _checked(part: Part, found: object) -> Iterator[Comparison]:
    if not isinstance(found, (list, tuple)):
        raise StageError(f"{part} returns {type(found).__name__}; return a list of comparisons")
    for one in found:
        if not isinstance(one, Comparison):
            raise StageError(
                f"{part} returns a list with a {type(one).__name__} in it; return a list of "
                f"comparisons alone"
            )
        yield one
