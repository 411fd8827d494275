"""Promises of figures inside the page: small, sharing definitions, the same picture."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

import pytest

from analysis.figures import accuracy, matrix, style
from analysis.readout import Readout
from analysis.report import svg

_DEFINED = re.compile(r'<(?:path|clipPath) id="([^"]+)".*?(?:/>|</clipPath>)', re.DOTALL)


@pytest.fixture(scope="module")
def files(make: Callable[..., Readout]) -> list[bytes]:
    readout = make(seeds=(0, 1))
    drawn = (accuracy.against_noise(readout), accuracy.by_task(readout), matrix.matrix(readout))
    return [style.save(one, "svg") for one in drawn]


def test_a_definition_has_one_meaning_in_all_figures(files: list[bytes]) -> None:
    meanings: dict[str, str] = {}
    for file in files:
        plain = re.sub(r"<!--.*?-->", "", file.decode(), flags=re.DOTALL)
        for found in _DEFINED.finditer(plain):
            assert meanings.setdefault(found[1], found[0]) == found[0]
    assert len(meanings) > 50


def test_whatever_is_referred_to_stands_once_at_or_above_its_use(files: list[bytes]) -> None:
    page = "".join(svg.elements((file, "") for file in files))
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    for found in re.finditer(r'href="#([^"]+)"', page):
        assert page.index(f'id="{found[1]}"') < found.start()
    assert set(re.findall(r"url\(#([^)]+)\)", page)) <= set(ids)


def test_it_is_half_the_files_as_the_page_held_them_before(files: list[bytes]) -> None:
    page = "".join(svg.elements((file, "") for file in files))
    assert len(page) < 0.6 * sum(4 / 3 * len(file) for file in files)  # base64 takes four thirds


def test_factors_keep_all_their_digits(files: list[bytes]) -> None:
    (element,) = svg.elements([(files[0], "")])
    assert "scale(0.015625)" in element  # a letter's outline, which a shorter one would shrink


def test_a_title_cannot_open_markup() -> None:
    figure, _ = style.new_figure(1, 1)
    file = style.save(figure, "svg")
    (element,) = svg.elements([(file, '"><script>')])
    assert "<script>" not in element
    assert 'aria-label="&quot;&gt;&lt;script&gt;"' in element


def test_text_in_a_figure_is_outlines_alone() -> None:
    figure, panels = style.new_figure(1, 1)
    panels[0].set_title("--><script>alert(1)</script>")
    (element,) = svg.elements([(style.save(figure, "svg"), "")])
    assert "script" not in element
    assert "alert" not in element


def test_groups_close_as_they_open(files: list[bytes]) -> None:
    import xml.etree.ElementTree as ET

    for element in svg.elements((file, "x") for file in files):
        parsed: Any = ET.parse(io.StringIO(element))
        assert parsed.getroot().tag.endswith("svg")
