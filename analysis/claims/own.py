"""Claims of a researcher's own: a function of the comparisons that test it.

Takes functions with their ids, sentences and sources, as plain values; gives each as a claim with
the comparisons that its function chose. Verdict, correction and power are those of every claim.
This module runs the function and never reads a file.
"""

from __future__ import annotations

from collections.abc import Sequence

from analysis import wording
from analysis.claims.contrasts import Comparison, Contrasts, Side
from analysis.claims.verdicts import Claim
from analysis.own_claim import OwnClaim
from analysis.schemas import CLEAN


class Results:
    """What a claim's function is given: comparisons of the results, by name.

    Each method gives a list, empty where the results are not there. Lists are added: a claim holds
    if each of its comparisons holds.
    """

    def __init__(self, contrasts: Contrasts) -> None:
        self._contrasts = contrasts

    def levels(self, method: str, domain: str = "id") -> list[float]:
        """The noise levels at which a method has results, in percent."""
        return self._contrasts.levels(_domain(domain), method)

    def methods(
        self, first: str, second: str, *, domain: str = "id", levels: Sequence[float] | None = None
    ) -> list[Comparison]:
        """That `first` scores above `second`, in the mean over levels (None: all shared ones)."""
        shared = sorted({*self.levels(first, domain)} & {*self.levels(second, domain)})
        chosen = [level for level in shared if levels is None or level in levels]
        sides = [
            Side(sign / len(chosen), method, level)
            for sign, method in ((1, first), (-1, second))
            for level in chosen
        ]
        label = (
            f"{wording.method(first)} minus {wording.method(second)}, {domain.upper()}, mean over "
            f"{wording.levels(chosen)} noise"
        )
        return self._contrasts.of_scores(label, 1, domain, sides) if chosen else []

    def noise(
        self, method: str, levels: Sequence[float], *, domain: str = "id", helps: bool = False
    ) -> list[Comparison]:
        """That a method scores below clean pre-training in the mean over these levels.

        `helps`: that it scores above.
        """
        known = self.levels(method, domain)
        if CLEAN not in known or not levels or not {*levels} <= {*known} - {CLEAN}:
            return []
        sides = [Side(1 / len(levels), method, level) for level in levels]
        label = (
            f"{wording.levels(levels)} noise minus clean, {wording.method(method)}, "
            f"{domain.upper()}"
        )
        clean = Side(-1, method, CLEAN)
        return self._contrasts.of_scores(label, 1 if helps else -1, domain, [*sides, clean])


def declared(own: OwnClaim, contrasts: Contrasts) -> tuple[Claim, Sequence[Comparison]]:
    """The claim with the comparisons that its function chose."""
    found = own.comparisons(Results(contrasts))
    test = "; ".join(one.label for one in found) or "what its function compares"
    needs = "the methods, levels and tasks that its function compares"
    return Claim(own.id, own.sentence, own.source, test, needs), found


def _domain(domain: str) -> str:
    if domain not in ("id", "ood"):
        raise ValueError(f"domain is {domain!r}; give 'id' or 'ood'")
    return domain
