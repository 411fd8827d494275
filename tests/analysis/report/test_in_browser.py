"""Promises of the page in a real browser: its length, its width on a phone, its script."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from analysis.readout import Readout
from analysis.report import write as report
from browser import CHROMIUM, Browser, browser

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine"),
]

LENGTH = "document.documentElement.scrollHeight"
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
UNFOLD = "document.querySelectorAll('details').forEach(d => d.open = true)"


@pytest.fixture(scope="module")
def url(make: Callable[..., Readout], tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("page")
    report.write(make(), folder)
    return (folder / "report.html").as_uri()


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    folder: Path = tmp_path_factory.mktemp("browser")
    with browser(folder / "profile", folder / "shots") as opened:
        yield opened


def test_the_page_is_short_and_fits_a_phone(web: Browser, url: str) -> None:
    (length,) = web.evaluate(url, [LENGTH], width=1280)
    assert length < 8000
    folded, _, unfolded = web.evaluate(url, [OVERFLOW, UNFOLD, OVERFLOW], width=390)
    assert folded == unfolded == 0


def test_the_answer_and_its_curve_are_the_first_screen(web: Browser, url: str) -> None:
    script = "document.querySelector('#scores .wide').getBoundingClientRect().bottom"
    (bottom,) = web.evaluate(url, [script], width=1280)
    assert bottom < 900


def test_a_phone_gets_the_narrow_figure_with_letters_of_ten_pixels(web: Browser, url: str) -> None:
    of_figure = "document.querySelector('#scores .{} svg').getBoundingClientRect().width"
    wide, narrow = web.evaluate(
        url, [of_figure.format("wide"), of_figure.format("narrow")], width=390
    )
    assert wide == 0
    assert 9.5 * narrow / (4.6 * 72) > 10  # points of a letter, inches of the figure


def test_a_figure_is_dark_on_a_dark_page(web: Browser, url: str) -> None:
    script = "getComputedStyle(document.querySelector('#scores svg')).backgroundColor"
    light, dark = (web.evaluate(url, [script], width=1280, dark=dark)[0] for dark in (False, True))
    assert light == "rgb(255, 255, 255)"
    assert max(map(int, dark[4:-1].split(","))) < 60


def test_a_point_says_its_value_and_a_method_is_switched_off(web: Browser, url: str) -> None:
    point = "document.querySelector('#scores .wide [data-tip]')"
    over = f"""(() => {{
      const box = {point}.getBoundingClientRect();
      {point}.closest('svg').dispatchEvent(new PointerEvent('pointermove',
        {{clientX: box.x + 2, clientY: box.y + 2, bubbles: true}}));
      return [document.querySelector('.tip').textContent, {point}.dataset.tip];
    }})()"""
    off = """(() => {
      document.querySelector('.switches button').click();
      const groups = [...document.querySelectorAll('[data-of=LP]')];
      return [groups.length, groups.filter(g => g.style.display === 'none').length];
    })()"""
    (shown, told), (lines, hidden) = web.evaluate(url, [over, off], width=1280)
    assert shown == told
    assert shown.startswith("LP at 0 %: ")
    assert lines == hidden > 0


def test_cells_are_filtered_and_sorted(web: Browser, url: str) -> None:
    choose = """(() => {
      const bar = document.querySelector('#cells .filter');
      const choice = bar.querySelector('select[aria-label=Method]');
      choice.value = 'MLP';
      bar.querySelector('input').value = 'parity';
      choice.dispatchEvent(new Event('input', {bubbles: true}));
      return bar.querySelector('output').textContent;
    })()"""
    sort = """(() => {
      const head = [...document.querySelectorAll('#cells th')];
      const at = head.findIndex(th => th.textContent === 'Accuracy');
      head[at].querySelector('button').click();
      const rows = [...document.querySelectorAll('#cells tbody tr')].filter(r => !r.hidden);
      return rows.map(row => +row.cells[at].dataset.key);
    })()"""
    said, values = web.evaluate(url, [choose, sort], width=1280)
    assert said == "30 of 720 rows"  # levels, seeds and fractions
    assert len(values) == 30
    assert values == sorted(values)


def test_a_link_unfolds_what_it_leads_to(web: Browser, url: str) -> None:
    script = "document.querySelector('#cells details').open"
    (closed,) = web.evaluate(url, [script], width=1280)
    (opened,) = web.evaluate(f"{url}#cells", [script], width=1280)
    assert (closed, opened) == (False, True)
