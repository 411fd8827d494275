"""The report's HTML page: one document that loads nothing from outside itself.

Takes a `Readout`, its figures and its verdicts, gives the document. The first screen holds the
question, the answer in one sentence and the curve that shows it; what failed stands above them.
Sections with the evidence follow, most of them folded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from analysis.claims.claims import verdicts
from analysis.claims.verdicts import Verdict
from analysis.figures.draw import Drawing
from analysis.readout import Readout
from analysis.report import answer, cells, downstream_noise, masks, pretrained, svg, tables
from analysis.report import verdicts as verdict_text
from analysis.report.facts import assurance, facts
from analysis.report.findings import findings
from analysis.report.html import NOTHING, Table, read, render

_OPEN = ("by-task", "feature-space")  # figures that are shown before a reader asks


@dataclass(frozen=True)
class Picture:
    """A figure with its SVG files for a wide page and for a phone."""

    drawing: Drawing
    wide: bytes
    narrow: bytes


@dataclass(frozen=True)
class Section:
    """A titled part of the page."""

    name: str  # of its anchor
    title: str
    content: Markup
    link: str = ""  # in the list of contents; empty: not listed
    folded: bool = True


def html_page(
    readout: Readout,
    figures: Sequence[Picture] = (),
    found: Sequence[Verdict] | None = None,
) -> str:
    """The HTML document.

    `figures` are drawings with their SVG files. The verdicts are computed when they are not given.
    """
    found = verdicts(readout) if found is None else found
    question = readout.question
    done, asked = readout.finished()
    first, *others = _figures(figures) or [NOTHING]
    failed, reasons = answer.failures(readout)
    document = render(
        "page.html",
        style=Markup(read("style.css")),
        script=Markup(read("page.js")),
        title=question.title or f"Experiment {readout.experiment}",
        experiment=readout.experiment,
        failed=failed,
        reasons=reasons,
        answer=answer.answer(readout).replace(" %", "\u00a0%"),
        lead=first if question.levels else _html(pretrained.by_domain(readout)),
        certainty=assurance(readout),
        beyond=answer.beyond(readout, found) if question.levels else "",
        unsure=question.levels and (not readout.several() or done < asked),
        facts=facts(readout),
        sections=[one for one in _sections(readout, _joined(*others), found) if one.content],
    )
    return str(document)


def _sections(readout: Readout, figures: Markup, found: Sequence[Verdict]) -> list[Section]:
    """Every section in the page's order, empty ones included."""
    beside = _joined(
        *(
            tables.averages(readout, domain, measure)
            for measure in ("test_accuracy", "test_macro_f1")
            for domain in readout.domains()
            if set(readout.metrics(domain).values()) != {measure.removeprefix("test_")}
        )
    )
    in_words = findings(readout)
    done, asked = readout.finished()
    problems = tables.problems(readout)
    claims = bool(readout.question.levels) and verdict_text.shown(readout)
    alone = not readout.question.levels
    return [
        Section(
            "averages",
            "Methods by noise level",
            _joined(*(tables.averages(readout, domain) for domain in readout.domains())),
            "Numbers",
            folded=False,
        ),
        Section(
            "claims",
            "The published claims and the evidence here",
            verdict_text.evidence(readout, found) if claims else NOTHING,
            "Claims",
            folded=False,
        ),
        Section(
            "pretrained",
            "Pretrained encoders, task by task" if alone else "Pretrained encoders",
            _html(
                None if alone else pretrained.by_domain(readout),  # beside the answer
                pretrained.scores(readout),
                pretrained.spaces(readout),
            ),
            "Pretrained encoders",
            folded=False,
        ),
        Section(
            "words",
            "In words",
            render("words.html", findings=in_words) if in_words else NOTHING,
            "In words",
        ),
        Section("figures", "Figures", figures, "Figures", folded=False),
        Section(
            "label-noise-tables",
            "Downstream label noise",
            _html(*downstream_noise.scores(readout).values()),
            "Downstream label noise",
        ),
        Section(
            "masks",
            "IoU by class",
            _html(*(table for _, table in masks.class_iou(readout))),
            "IoU by class",
        ),
        Section("beside", "Other measures by noise level", beside),
        Section("tasks", "Tasks", _html(tables.tasks(readout)), "Tasks"),
        Section("methods", "Methods head to head", tables.methods(readout), "Head to head"),
        Section(
            "members", "How each average is made", tables.members(readout), "How averages are made"
        ),
        Section("variance", "What varies", tables.variance(readout), "What varies"),
        Section(
            "encoders",
            "Encoders and their feature space",
            _joined(tables.pretraining(readout), tables.spaces(readout)),
        ),
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
            _joined(tables.matrix(readout) if done < asked else NOTHING, problems),
            "What is missing",
        ),
        Section("cells", "Every cell", cells.cells(readout), "Every cell"),
        Section("provenance", "Provenance", tables.provenance(readout), "Provenance"),
    ]


def _figures(figures: Sequence[Picture]) -> list[Markup]:
    """The figures; the first, which stands beside the answer, is not folded."""
    files = [
        (file, one.drawing.title) for one in figures for file in (one.wide, one.narrow) if file
    ]
    pictures = iter(svg.elements(files))
    return [
        render(
            "figure.html",
            name=one.drawing.name,
            title=one.drawing.title,
            caption=one.drawing.caption,
            folded=number > 0,
            open=one.drawing.name in _OPEN,
            wide=Markup(next(pictures)),
            narrow=Markup(next(pictures)) if one.narrow else NOTHING,
        )
        for number, one in enumerate(figures)
    ]


def _html(*parts: Table | None) -> Markup:
    return _joined(*(part.html() for part in parts if part is not None))


def _joined(*parts: Markup) -> Markup:
    return NOTHING.join(parts)
