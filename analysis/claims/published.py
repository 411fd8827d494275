"""The papers' numbers, as read off their figures and tables: arXiv:2309.17002v2 (ICLR 2024).

Reads `published.csv`, gives curves over noise levels. Each curve is one pre-training run and has no
spread. The report shows them beside an experiment's own numbers, and draws them over its curves
where corpus, encoder and method are the same. No average and no test uses them.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources

from analysis.readout import Question

CITATION = (
    "Chen et al., Understanding and Mitigating the Label Noise in Pre-training on Downstream "
    "Tasks, ICLR 2024, arXiv:2309.17002v2"
)
_CURVES = {"id": ("1a", "5a"), "ood": ("1b", "5c")}  # accuracy, macro F1: averages over tasks
_SPACE = {"sve": "5b", "lsvr": "5d"}
_METHODS = {"nmtune-paper": "nmtune", "nmtune-released": "nmtune"}
_NOISE = {"ImageNet-1K": "symmetric", "YFCC15M": "caption_swap"}
_ALIASES = {
    "imagenet1k": "ImageNet-1K",
    "ilsvrc2012": "ImageNet-1K",
    "imagenet": "ImageNet-1K",
    "yfcc15m": "YFCC15M",
    "resnet50": "ResNet-50",
    "rn50": "ResNet-50",
}


@dataclass(frozen=True)
class Series:
    """One published curve."""

    figure: str  # "1a", "Table 16"
    corpus: str
    encoder: str
    method: str
    split: str  # "id" or "ood"
    metric: str
    levels: Mapping[float, float]  # pre-training noise in percent -> value

    @property
    def title(self) -> str:
        """Where it was published: "Figure 1a, ImageNet-1K, ResNet-50"."""
        figure = self.figure if self.figure.startswith("Table") else f"Figure {self.figure}"
        return f"{figure}, {self.corpus or 'corpora of many kinds'}, {self.encoder}"


@lru_cache(maxsize=1)
def rows() -> tuple[dict[str, str], ...]:
    """Every published number: the rows of `published.csv` by column name."""
    file = resources.files(__package__) / "published.csv"
    return tuple(csv.DictReader(file.read_text(encoding="utf-8").splitlines()))


@lru_cache(maxsize=1)
def averages() -> tuple[Series, ...]:
    """The curves that are averages over tasks, in percent (macro F1 too)."""
    found: dict[tuple[str, ...], dict[float, float]] = {}
    for row in rows():
        if row["source"] == row["target"] == "average" and row["pretrain_noise_pct"]:
            key = (row["figure"], row["corpus"], row["encoder"], row["method"], row["split"])
            scale = 100.0 if row["metric"] == "macro_f1" else 1.0
            value = scale * float(row["value"])
            found.setdefault((*key, row["metric"]), {})[float(row["pretrain_noise_pct"])] = value
    return tuple(
        Series(figure, corpus, encoder, method, split, metric, levels)
        for (figure, corpus, encoder, method, split, metric), levels in found.items()
    )


def curves(domain: str, measure: str = "test_accuracy") -> Iterator[Series]:
    """The published averages of a domain; `measure` is a column of CELLS_SCHEMA."""
    figure = _CURVES[domain][measure == "test_macro_f1"]
    return (one for one in averages() if one.figure == figure)


def space(measure: str) -> Iterator[Series]:
    """The published SVE ("sve", ID) or LSVR ("lsvr", OOD) by noise level."""
    return (one for one in averages() if one.figure == _SPACE[measure])


def ablation() -> Iterator[Series]:
    """NMTune with some of its regularisers, ID (arXiv:2309.17002, Table 16)."""
    return (one for one in averages() if one.figure == "Table 16")


def matches(one: Series, question: Question, method: str) -> bool:
    """Whether a published curve has the experiment's corpus, noise, encoder and method.

    The experiment must also have heads trained on all rows. The papers average over their own
    tasks, which may differ from the experiment's.
    """
    return (
        _paper_name(question.corpus) == one.corpus
        and _NOISE.get(one.corpus) == question.noise_kind
        and max(question.fractions) == 100
        and _paper_name(question.encoder) == one.encoder
        and _METHODS.get(method, method) == one.method
    )


def _paper_name(name: str) -> str:
    """A corpus or encoder name as the papers write it; a name unknown here stays as it is."""
    short = "".join(letter for letter in name.lower() if letter.isalnum())
    return _ALIASES.get(short, name)
