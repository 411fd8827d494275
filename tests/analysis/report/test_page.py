"""Promises of the report: whole in one file, safe, complete, and frank about what is missing."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from analysis import wording
from analysis.claims.claims import verdicts
from analysis.readout import Readout
from analysis.report import write as report
from analysis.report.html import Cell, table
from analysis.report.page import html_page
from analysis.schemas import CELLS_SCHEMA, SUMMARY_SCHEMA
from analysis.summary import summary

pytestmark = pytest.mark.slow

Make = Callable[..., Readout]
HOSTILE = '<script>alert("x")</script>&\'$\\frac'


class Page(HTMLParser):
    """The tags, the texts and the attributes of a page."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(source)
        assert self.open == [], "every tag is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another tag"

    def handle_data(self, data: str) -> None:
        if "script" not in self.open and "style" not in self.open:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.texts)

    def references(self) -> Iterator[str]:
        for tag, attributes in self.tags:
            for name in ("src", "href", "action", "data", "srcset", "poster"):
                if attributes.get(name) is not None:
                    yield f"{tag} {attributes[name]}"


@pytest.fixture(scope="module")
def written(make: Make, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    folder = tmp_path_factory.mktemp("report") / "deep" / "er"
    return folder, report.write(make(), folder)


def page(readout: Readout) -> Page:
    return Page(html_page(readout))


def test_what_is_written_is_what_is_said(written: tuple[Path, list[Path]]) -> None:
    folder, files = written
    found = {path for path in folder.rglob("*") if path.is_file()}
    assert set(files) == found
    assert {"report.html", "table.csv", "summary.csv"} <= {path.name for path in found}
    kinds = [path.suffix for path in files if path.parent.name == "figures"]
    assert kinds.count(".png") == kinds.count(".svg") == 10
    for path in found:
        magic = {".png": b"\x89PNG", ".svg": b"<?xml"}.get(path.suffix, b"")
        assert path.read_bytes().startswith(magic)


def test_the_page_loads_nothing_from_outside(written: tuple[Path, list[Path]]) -> None:
    source = (written[0] / "report.html").read_text()
    parsed = Page(source)
    references = list(parsed.references())
    assert [tag for tag, _ in parsed.tags].count("svg") == 2 * 10  # wide, and for a phone
    assert all(one.startswith(("image data:", "a #", "a ../../")) for one in references)
    assert not {"link", "iframe", "object", "embed", "base"} & {tag for tag, _ in parsed.tags}
    styles = re.findall(r"<style>(.*?)</style>", source, re.DOTALL)
    assert len(styles) == 1
    assert "url(" not in styles[0]
    assert "@import" not in styles[0]


def test_equal_readouts_give_equal_bytes(
    make: Make, written: tuple[Path, list[Path]], tmp_path: Path
) -> None:
    for path in report.write(make(), tmp_path):
        assert path.read_bytes() == (written[0] / path.relative_to(tmp_path)).read_bytes(), path


def test_a_sort_key_cannot_leave_its_attribute() -> None:
    source = table(["a"], [[Cell("x", key=1.5, mark='"><script>')]], caption='"&<')
    assert 'data-key="1.5"' in source
    assert "<script>" not in source
    assert "&#34;&amp;&lt;" in source


def test_every_claim_stands_on_the_page_with_its_verdict_and_source(make: Make) -> None:
    parsed = page(make())
    found = verdicts(make())
    articles = [a for tag, a in parsed.tags if tag == "article"]
    assert [a["id"] for a in articles] == [f"claim-{one.claim.id}" for one in found]
    for one in found:
        assert one.reason in parsed.text
        assert one.claim.papers in parsed.text


def test_links_inside_the_page_lead_somewhere(make: Make) -> None:
    for parsed in (page(make()), page(make(drop=lambda row: True)), page(make(methods=("lp",)))):
        places = {attributes.get("id") for _, attributes in parsed.tags}
        links = {one.removeprefix("a #") for one in parsed.references() if one.startswith("a #")}
        assert links
        assert links <= places


def test_the_first_screen_is_question_answer_curve_certainty(
    make: Make, written: tuple[Path, list[Path]]
) -> None:
    source = (written[0] / "report.html").read_text()
    words = (make().question.title, "Against clean", 'id="scores"', "brackets are 95 % t intervals")
    order = [source.index(f">{word}" if at == 0 else word) for at, word in enumerate(words)]
    assert order == sorted(order)
    assert max(order) < source.index("<section")


def test_few_replicates_give_curves_and_no_verdicts(make: Make) -> None:
    for seeds, said in (
        ((0,), "One pre-training seed: no verdict"),
        ((0, 1), "no interval and no"),
    ):
        text = page(make(seeds=seeds)).text
        assert said in text
        assert "With 3 replicates (--seeds 0,1,2) each point would have an interval, and " in text
        assert "undecided" not in text
        assert 'id="claims"' not in html_page(make(seeds=seeds))
    assert "With 3 replicates" not in page(make()).text


def test_claims_are_folded_by_kind_and_name_their_comparison(make: Make) -> None:
    source = html_page(make())
    claims = source[source.index('id="claims"') : source.index('id="words"')]
    assert claims.count('<details class="kind">') == 5
    assert "NMTune (released) minus its control, OOD, mean over levels" in claims
    for kind in claims.split('<details class="kind">')[1:]:
        measured = ["<dl>" in one for one in kind.split("<article")[1:]]
        assert measured == sorted(measured, reverse=True)


def test_whatever_is_long_loads_closed(written: tuple[Path, list[Path]]) -> None:
    source = (written[0] / "report.html").read_text()
    assert '<section id="cells"><details><summary>' in source.replace("\n", "")
    assert source.count('<table class="filtered">') == 1
    assert source.count('<details class="drawn"') == 9
    assert len(re.findall(r'<details class="drawn" id="[^"]+" open>', source)) == 2


def test_a_figure_says_its_values_and_whose_its_lines_are(
    make: Make, written: tuple[Path, list[Path]]
) -> None:
    source = (written[0] / "report.html").read_text()
    lead = source[source.index('id="scores"') : source.index("</figure>")]
    of = make().scores("ood", "lp").interval(30.0)
    assert of is not None
    assert lead.count(f'data-tip="LP at 30 %: {wording.interval(of)}"') == 2  # and for a phone
    assert lead.count("data-tip=") == 2 * 2 * 4 * 5
    assert set(re.findall('data-of="([^"]+)"', lead)) == set(map(wording.method, make().methods()))


def test_a_figure_follows_a_dark_page(written: tuple[Path, list[Path]]) -> None:
    source = (written[0] / "report.html").read_text()
    style = source[: source.index("</style>")]
    assert not re.search("style=[^>]*#(?:ffffff|1a1a1a|000000|5c5c5c)", source)
    for name in set(re.findall(r"var\((--[a-z0-9-]+)\)", source)) - {"--of"}:
        assert f"{name}:" in style


def test_hostile_names_are_text(make: Make, tmp_path: Path) -> None:
    readout = make(
        seeds=(0,),
        levels=(0.0, 30.0),
        title=HOSTILE,
        id_tasks=(HOSTILE, "digits"),
        methods=("lp", HOSTILE),
        problems=((HOSTILE, "failed", HOSTILE),),
    )
    report.write(readout, tmp_path)
    source = (tmp_path / "report.html").read_text()
    assert source.count("<script>") == 1
    assert "alert(" not in re.sub(r"&lt;script&gt;alert\(", "", source)
    assert HOSTILE in Page(source).text


def test_what_failed_and_why_is_shown(make: Make) -> None:
    readout = make(
        seeds=(0, 1),
        drop=lambda row: row["noise"] == 30 and row["pretrain_seed"] == 1,
        problems=(("pretrain/a/noise=30/seed=1", "failed", "the loss is NaN; lower schedule.lr"),),
    )
    text = page(readout).text
    assert "pretrain/a/noise=30/seed=1" in text
    assert "the loss is NaN; lower schedule.lr" in text
    assert "48 cells of 480 are not finished" in text
    assert "8/16" in text
    assert 'id="gaps"' not in html_page(make())


def test_the_reason_of_a_failure_stands_above_the_answer(make: Make) -> None:
    reason = "the loss is NaN; lower schedule.lr"
    problems = (
        ("pretrain/a/noise=30/seed=1", "failed", reason),
        ("pretrain/a/noise=30/seed=2", "failed", reason),
        ("features/a/noise=30/seed=1", "blocked", "waits"),
    )
    source = html_page(make(problems=problems))
    words = ("2 steps failed, and 1 could not run without them.", reason, "Against clean")
    order = [source.index(word) for word in words]
    assert order == sorted(order)
    assert "pretrain/a/noise=30/seed=1 and 1 more" in source
    assert "failed" not in page(make()).text


def test_every_average_names_its_members_and_what_it_lacks(make: Make) -> None:
    def gone(row: dict[str, Any]) -> bool:
        return (row["task"], row["noise"]) == ("digits-parity", 10.0)

    source = html_page(make(drop=gone))
    members = source[source.index('id="members"') : source.index('id="encoders"')]
    row = next(line for line in members.splitlines() if "LP, ID" in line)
    assert "<td>digits, digits-magnitude</td>" in row
    assert '<td class="gap">digits-parity</td>' in row


@pytest.mark.parametrize(
    "shape",
    [
        {"levels": (10.0,), "seeds": (0,)},
        {"ood_tasks": ()},
        {"drop": lambda row: True},
        {"drop": lambda row: row["noise"] == 0},
        {"methods": ("lp",)},
        {"levels": (0.0, 30.0), "methods": ("nmtune-paper",)},
    ],
)
def test_any_shape_of_experiment_has_a_page(make: Make, shape: dict[str, Any]) -> None:
    readout = make(**shape)
    parsed = page(readout)
    assert readout.question.title in parsed.text
    assert "nan" not in parsed.text.lower().split()
    assert "None" not in parsed.text


def test_numbers_sort_as_numbers(make: Make) -> None:
    keys = [a["data-key"] for tag, a in page(make()).tags if tag == "td" and "data-key" in a]
    assert len(keys) > 100
    assert all(re.fullmatch(r"-?\d+(\.\d+)?(e-?\d+)?", key or "") for key in keys)


def test_csv_is_the_same_bytes_whatever_the_row_order(make: Make) -> None:
    readout = make(seeds=(0, 1))
    turned = readout.cells.take(list(range(readout.cells.num_rows))[::-1])
    again = Readout(
        readout.experiment,
        readout.question,
        turned,
        readout.spectra.take(list(range(readout.spectra.num_rows))[::-1]),
        readout.pretraining,
        readout.pretraining_curves,
        readout.noise,
    )
    assert report.cells_csv(readout) == report.cells_csv(again)
    assert report.summary_csv(readout) == report.summary_csv(again)


def test_csv_holds_every_number_exactly(make: Make) -> None:
    readout = make(seeds=(0, 1))
    cells = list(csv.DictReader(report.cells_csv(readout).splitlines()))
    assert list(cells[0]) == CELLS_SCHEMA.names
    assert {(row["address"], float(row["test_accuracy"])) for row in cells} == set(
        zip(
            readout.cells["address"].to_pylist(),
            readout.cells["test_accuracy"].to_pylist(),
            strict=True,
        )
    )
    rows = list(csv.DictReader(report.summary_csv(readout).splitlines()))
    assert list(rows[0]) == SUMMARY_SCHEMA.names
    assert [float(row["mean"]) for row in rows] == summary(readout)["mean"].to_pylist()
    assert rows[0]["members"] == "digits;digits-magnitude;digits-parity"


def test_a_long_cell_table_is_cut_and_says_so(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("analysis.report.cells.MOST_CELLS", 10)
    source = html_page(make())
    cells = source[source.index('id="cells"') : source.index('id="provenance"')]
    assert cells.count("<tr>") == 11
    assert "720 finished cells; the first 10 are shown" in cells
