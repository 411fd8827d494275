"""The figures of a readout, in the report's order.

Takes a `Readout`, gives named matplotlib figures with a title and a caption. A figure without data
is not drawn. matplotlib is imported when the first figure is drawn, not before.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from analysis import downstream_noise as downstream_noise_cells
from analysis import wording
from analysis.claims.published import CITATION
from analysis.figures import (
    ablation,
    accuracy,
    downstream_noise,
    encoder,
    matrix,
    noise,
    published,
    scenes,
    space,
)
from analysis.readout import Readout

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Drawing:
    """A figure with its title and caption."""

    name: str  # of its files, without the ending
    title: str
    caption: str
    figure: Figure


def draw(readout: Readout) -> Iterator[Drawing]:
    """Every figure that the readout has data for, in the report's order."""
    yield from _downstream(readout)
    if readout.label_noise_cells.num_rows:
        yield Drawing(
            "label-noise",
            f"{_title(readout)} against downstream label noise",
            f"Test {wording.score(_label_noise_metrics(readout))} in percent where a share of the "
            "task's training labels was changed (validation and test labels stay right); no other "
            "figure has these cells.",
            downstream_noise.against_label_noise(readout),
        )
    for task in dict.fromkeys(readout.scenes["task"].to_pylist()):
        yield Drawing(
            f"scenes-{task}",
            f"{readout.question.titles.get(task, task)}: some test images",
            "Each image beside its mask and what heads predict, by the experiment's first method. "
            "A class has one colour, and pixels without a class are white.",
            scenes.beside_predictions(readout, task),
        )
    yield from _feature_space(readout)
    yield from _encoders(readout)
    if readout.transition.num_rows:
        yield Drawing(
            "transition",
            "Labels before and after the noise",
            "The realised transition matrix of the training labels at the highest noise level.",
            noise.realised(readout),
        )
    done, asked = readout.finished()
    if done < asked:
        yield Drawing(
            "matrix",
            "What is there and what is missing",
            "Every requested cell without downstream label noise.",
            matrix.matrix(readout),
        )


def _title(readout: Readout) -> str:
    """What scores are of, as a title begins: "Accuracy", "Matthews correlation" or "Score"."""
    return wording.capitalised(wording.score_name(readout.metrics()))


def _label_noise_metrics(readout: Readout) -> dict[str, str]:
    domains = downstream_noise_cells.domains(readout)
    found = (downstream_noise_cells.metrics(readout, domain) for domain in domains)
    return {task: metric for each in found for task, metric in each.items()}


def _downstream(readout: Readout) -> Iterator[Drawing]:
    """Scores against noise."""
    if readout.cells.num_rows:
        yield Drawing(
            "scores",
            f"{_title(readout)} against pre-training noise",
            f"Test {wording.score(readout.metrics())}, averaged over the tasks named above each "
            f"panel.",
            accuracy.against_noise(readout),
        )
        known = readout.cells.num_rows - readout.cells["test_macro_f1"].null_count
        if known and set(readout.metrics().values()) != {"macro_f1"}:
            yield Drawing(
                "macro-f1",
                "Macro F1 against pre-training noise",
                "Test macro F1 in percent, over the same tasks.",
                accuracy.against_noise(readout, "test_macro_f1"),
            )
        yield Drawing(
            "by-task",
            "Task by task",
            "Each task's own metric in percent. The scales differ from panel to panel.",
            accuracy.by_task(readout),
        )
        yield Drawing(
            "published",
            "Beside the published curves",
            f"Change of test {wording.score(readout.metrics())} from the clean level. Published: "
            f"{CITATION}.",
            published.against_published(readout),
        )
        if len(readout.question.fractions) > 1:
            yield Drawing(
                "by-fraction",
                "By share of the training rows",
                f"Test {wording.score(readout.metrics())} against the percent of training rows per "
                f"class that the heads saw.",
                accuracy.by_fraction(readout),
            )


def _feature_space(readout: Readout) -> Iterator[Drawing]:
    """The feature space, and what the regularisers do."""
    if readout.spectra.num_rows:
        yield Drawing(
            "feature-space",
            "The feature space against pre-training noise",
            "Singular value entropy (SVE) and largest singular value ratio (LSVR) of the test "
            "features. Higher SVE: more even directions. Higher LSVR: less of one direction.",
            encoder.feature_space(readout),
        )
        yield Drawing(
            "spectra",
            "Singular values of the features",
            "Each singular value's share of their sum, largest first, on test samples; one line a "
            "noise level.",
            space.spectra(readout),
        )
    if readout.spectra.num_rows and readout.cells.num_rows:
        yield Drawing(
            "space-scores",
            f"The feature space against {wording.score_name(readout.metrics())}",
            f"SVE against ID {wording.score(readout.metrics('id'))}, LSVR against OOD "
            f"{wording.score(readout.metrics('ood'))}, one point an encoder.",
            space.against_scores(readout),
        )
    if readout.rotation.num_rows:
        yield Drawing(
            "rotation",
            "How far the feature space has turned",
            "The same test samples through the noisy and the clean encoder of a seed: overlap of "
            "their strongest directions (in the space of samples), and linear CKA.",
            space.rotation(readout),
        )
    if ablation.families(readout):
        yield Drawing(
            "ablation",
            "NMTune without some of its regularisers",
            f"Test {wording.score(readout.metrics())} of NMTune with fewer regularisers, minus "
            "that with all three.",
            ablation.ablation(readout),
        )


def _encoders(readout: Readout) -> Iterator[Drawing]:
    """Pre-training itself."""
    wrong = wording.label_word(readout.question.noise_kind)
    if readout.pretraining.num_rows:
        yield Drawing(
            "pretraining",
            "Pre-training accuracy against noise",
            "Left: accuracy on held-out samples with clean labels. Right: accuracy in the last "
            "epoch on training samples left clean, and on flipped ones (right when they give "
            f"their wrong {wrong} back: what was memorised).",
            encoder.pretraining(readout),
        )
    if encoder.has_memorisation(readout):
        yield Drawing(
            "memorisation",
            "What was memorised, epoch by epoch",
            "Training accuracy in percent on samples left clean and on flipped samples; the "
            f"latter are right when they give their wrong {wrong} back.",
            encoder.memorisation(readout),
        )
