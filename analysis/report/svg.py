"""The figures inside the page: SVG elements that share their definitions.

Takes SVG files of matplotlib in the page's order, gives one element for each. A shared definition
is kept where it is used first. Prologue, metadata, comments, ids that nothing refers to and digits
below a thousandth of a point are left out. Whole files in base64 would be about half of a page with
eleven figures, since each brings the same outlines of letters. Sharing is safe because matplotlib
names letters by font and code, and markers and clip paths by their content: equal names mean equal
definitions. Inks and whites become variables of `style.css`, so a figure follows a dark page. A
line that `analysis.figures.style.series` names says whose it is (`data-of`), and its points say
their values (`data-tip`), for the script.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable

from analysis.figures.style import SEPARATOR, SERIES

_BESIDE = re.compile(r"<\?xml.*?\?>|<!DOCTYPE.*?>|<!--.*?-->|<metadata>.*?</metadata>", re.DOTALL)
_DIGITS = re.compile(r"(?:scale|matrix)\([^)]*\)|(\.\d{3})\d+")  # not of factors
_DEFINED = re.compile(r'<path id="([^"]+)"[^>]*/>|<clipPath id="([^"]+)">.*?</clipPath>', re.DOTALL)
_IDS = re.compile(r' id="([^"]+)"')
_REFERRED = re.compile(r'(?:href="#|url\(#)([^")]+)')
_EMPTY = re.compile(r"<defs>\s*</defs>|<g ?/>|<style[^>]*>.*?</style>", re.DOTALL)
_GROUPS = re.compile(r"<g>|<g [^>]*(?<!/)>|</g>")
_STYLE = re.compile(r'style="[^"]*"')
_FLAT = r"(?:(?!</?g\b).)*"  # no group
_SERIES = re.compile(
    rf'<g id="{SERIES}{SEPARATOR}([^"]*)">({_FLAT}(?:<g [^>]*>{_FLAT}</g>\s*)?)</g>', re.DOTALL
)
_MARK = re.compile(r"<use (?=[^>]*\bx=)")
_INKS = {
    "#1a1a1a": "ink",
    "#000000": "ink",
    "#5c5c5c": "faint",
    "#e3e3e3": "line",
    "#ffffff": "figure",
    "#0072b2": "blue",
    "#00224e": "deep",
    "#2a3f6d": "deep-2",
}
"""Colours of a figure that differ on a dark page, and their variables in `style.css`."""
_INK = re.compile("|".join(_INKS))
_ROOT = re.compile(r"<svg [^>]*?viewBox=\"([^\"]+)\"[^>]*>")


def elements(figures: Iterable[tuple[bytes, str]]) -> list[str]:
    """An `<svg>` element for each (file's content, title), in order."""
    known: set[str] = set()
    return [_element(data.decode("utf-8"), title, known) for data, title in figures]


def _element(svg: str, title: str, known: set[str]) -> str:
    """One figure's element; adds its definitions to `known`, those of the elements before it."""
    svg = _BESIDE.sub("", svg)
    referred = set(_REFERRED.findall(svg))

    def once(found: re.Match[str]) -> str:
        name = found[1] or found[2]
        if name in known:
            return ""
        if name in referred:
            known.add(name)
        return found[0]

    svg = _SERIES.sub(_series, _DEFINED.sub(once, svg))
    svg = _IDS.sub(lambda found: found[0] if found[1] in referred else "", svg)
    svg = _EMPTY.sub("", _DIGITS.sub(lambda found: found[1] or found[0], svg))
    box = _ROOT.search(svg)
    assert box is not None, "matplotlib's SVG has a view box"
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{box[1]}" role="img" aria-label="{html.escape(title, quote=True)}" '
        f'stroke-linejoin="round" stroke-linecap="butt">'
    )
    return _STYLE.sub(
        lambda found: _INK.sub(_variable, found[0].replace("; ", ";").replace(": ", ":")),
        " ".join((head + _ungrouped(svg[box.end() :])).split()).replace("> <", "><"),
    )


def _variable(found: re.Match[str]) -> str:
    return f"var(--{_INKS[found[0]]})"


def _series(found: re.Match[str]) -> str:
    """The group of a named line, with whose it is, and its points with their values."""
    label, *tips = found[1].split(SEPARATOR)
    inside, marks = found[2], len(_MARK.findall(found[2]))
    if tips and marks == len(tips):
        values = iter(tips)
        inside = _MARK.sub(lambda _: f'<use data-tip="{next(values)}" ', inside)
    return f'<g class="series" data-of="{label}">{inside}</g>'


def _ungrouped(svg: str) -> str:
    """The SVG without groups that have no attributes."""
    kept: list[bool] = []

    def tag(found: re.Match[str]) -> str:
        if found[0] == "</g>":
            return found[0] if kept.pop() else ""
        kept.append(found[0] != "<g>")
        return found[0] if kept[-1] else ""

    return _GROUPS.sub(tag, svg)
