"""The report's HTML page: one document that loads nothing from outside itself.

Takes a `Readout`, its figures and its verdicts, gives the document. The first screen holds the
question, how far the answer may be trusted, and the answer; sections with the evidence follow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from analysis.claims.claims import verdicts
from analysis.claims.verdicts import Verdict
from analysis.figures.draw import Drawing
from analysis.readout import Readout
from analysis.report import downstream_noise, pretrained, svg, tables
from analysis.report import verdicts as verdict_text
from analysis.report.facts import assurance, facts
from analysis.report.findings import findings
from analysis.report.html import NOTHING, Table, read, render


@dataclass(frozen=True)
class Section:
    """A titled part of the page."""

    name: str  # of its anchor
    title: str
    content: Markup
    link: str = ""  # in the list of contents; empty: not listed


def html_page(
    readout: Readout,
    figures: Sequence[tuple[Drawing, bytes]] = (),
    found: Sequence[Verdict] | None = None,
) -> str:
    """The HTML document.

    `figures` are drawings with their SVG files. The verdicts are computed when they are not given.
    """
    found = verdicts(readout) if found is None else found
    question = readout.question
    done, asked = readout.finished()
    document = render(
        "page.html",
        style=Markup(read("style.css")),
        script=Markup(read("sort.js")),
        title=question.title or f"Experiment {readout.experiment}",
        experiment=readout.experiment,
        facts=facts(readout),
        answer=verdict_text.answer(readout, found) if question.levels else "",
        certainty=assurance(readout),
        unsure=len(readout.seeds()) < 2 or done < asked,
        overview=verdict_text.overview(found) if question.levels else NOTHING,
        findings=findings(readout),
        averages=_joined(*(tables.averages(readout, domain) for domain in readout.domains())),
        sections=[one for one in _sections(readout, figures, found) if one.content],
    )
    return str(document)


def _sections(
    readout: Readout, figures: Sequence[tuple[Drawing, bytes]], found: Sequence[Verdict]
) -> list[Section]:
    """Every section in the page's order, empty ones included."""
    beside = _joined(
        *(
            tables.averages(readout, domain, measure)
            for measure in ("test_accuracy", "test_macro_f1")
            for domain in readout.domains()
            if set(readout.metrics(domain).values()) != {measure.removeprefix("test_")}
        )
    )
    encoders = _joined(tables.pretraining(readout), tables.spaces(readout))
    return [
        Section(
            "pretrained",
            "Pretrained encoders",
            _html(pretrained.scores(readout), pretrained.spaces(readout)),
            "Pretrained encoders",
        ),
        Section("figures", "Figures", _figures(figures), "Figures"),
        Section(
            "claims",
            "The published claims and the evidence here",
            verdict_text.evidence(found) if readout.question.levels else NOTHING,
            "Claims",
        ),
        Section(
            "label-noise",
            "Downstream label noise",
            _html(*downstream_noise.scores(readout).values()),
            "Downstream label noise",
        ),
        Section("beside", "Other measures by noise level", beside),
        Section("tasks", "Tasks", _html(tables.tasks(readout)), "Tasks"),
        Section("methods", "Methods head to head", tables.methods(readout), "Head to head"),
        Section(
            "members", "How each average is made", tables.members(readout), "How averages are made"
        ),
        Section("variance", "What varies", tables.variance(readout), "What varies"),
        Section("encoders", "Encoders and their feature space", encoders),
        Section("noise", "Noise: requested and realised", tables.noise(readout), "Noise"),
        Section(
            "overlap",
            "Test samples that are trained on",
            _html(tables.overlaps(readout)),
            "Overlap",
        ),
        Section(
            "gaps",
            "What is missing, failed or was skipped",
            _joined(tables.matrix(readout), tables.problems(readout) or _NO_PROBLEM),
            "What is missing",
        ),
        Section("cells", "Every cell", tables.cells(readout), "Every cell"),
        Section("provenance", "Provenance", tables.provenance(readout), "Provenance"),
    ]


_NO_PROBLEM = Markup("<p>Nothing failed, was blocked or skipped.</p>")


def _figures(figures: Sequence[tuple[Drawing, bytes]]) -> Markup:
    pictures = svg.elements((file, drawing.title) for drawing, file in figures)
    shown = [
        {
            "name": drawing.name,
            "title": drawing.title,
            "caption": drawing.caption,
            "svg": Markup(picture),
        }
        for (drawing, _), picture in zip(figures, pictures, strict=True)
    ]
    return render("figures.html", figures=shown)


def _html(*parts: Table | None) -> Markup:
    return _joined(*(part.html() for part in parts if part is not None))


def _joined(*parts: Markup) -> Markup:
    return NOTHING.join(parts)
