"""What an experiment is, in short phrases, and how far its numbers may be trusted.

Takes a `Readout`, gives plain text, the same on the page and in Markdown.
"""

from __future__ import annotations

from collections import Counter

from analysis import wording
from analysis.readout import Readout
from analysis.report.findings import certainty
from analysis.schemas import CONSTANT

_MANY = 6  # methods and tasks in a sentence before it says "and n more"


def facts(readout: Readout) -> list[str]:
    """What was trained, on what, and how much of it is finished."""
    question = readout.question
    found = []
    if question.levels:
        done, asked = readout.finished()
        found += [
            f"{question.objective} pre-training of {question.encoder} (recipe {question.recipe}) "
            f"on {question.corpus}",
            f"{question.noise_kind.replace('_', ' ')} noise at {wording.levels(question.levels)}",
            wording.count(len(question.seeds), "pre-training seed"),
            f"{done:,} of {wording.count(asked, 'cell')} finished",
        ]
        if len(question.fractions) > 1:
            used = wording.rows_used(readout.fraction)
            found.append(f"heads trained on {used} unless stated otherwise")
    if question.encoders:
        number = wording.count(readout.pretrained_cells.num_rows, "cell")
        names = wording.join(question.encoders, many=6)
        found.append(f"pretrained encoders: {names} ({number} finished)")
    if heads := _extensions(readout):
        found.append(f"methods written as extensions: {wording.join(heads, many=_MANY)}")
    if number := readout.label_noise_cells.num_rows:
        noisy = wording.count(number, "cell")
        found.append(f"{noisy} with downstream label noise, shown apart")
    return found


def _extensions(readout: Readout) -> list[str]:
    """The methods whose heads are a researcher's own, with file and class."""
    pairs = {
        (row["method"], row["head"])
        for table in (readout.cells, readout.pretrained_cells)
        for row in table.select(["method", "head"]).to_pylist()
        if ":" in str(row["head"])
    }
    return [f"{method} ({head})" for method, head in sorted(pairs)]


def assurance(readout: Readout) -> str:
    """How far the numbers may be trusted, and what is not finished."""
    done, asked = readout.finished()
    sentences = [certainty(readout)]
    if done < asked:
        sentences.append(
            f"Incomplete: {wording.count(asked - done, 'cell')} of {asked:,} "
            f"{'is' if asked - done == 1 else 'are'} not finished (listed below)."
        )
    if same := constant(readout):
        sentences.append(same)
    return " ".join(sentences)


def constant(readout: Readout) -> str:
    """Which cells predict the same for every test sample; empty if none does."""
    rows = [row for row in readout.problems.to_pylist() if row["status"] == CONSTANT]
    if not rows:
        return ""
    heads = Counter(f"{wording.method(row['method'])} on {row['task']}" for row in rows)
    named = [f"{head} ({number:,})" if number > 1 else head for head, number in heads.items()]
    one = len(rows) == 1
    return (
        f"{wording.count(len(rows), 'cell')} {'answers' if one else 'answer'} one class (or one "
        f"number) for every test sample: {wording.join(named, _MANY)}. "
        f"{'Its score tells' if one else 'Their scores tell'} nothing of the encoder."
    )
