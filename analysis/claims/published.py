"""The papers' numbers, as read off their figures and tables: arXiv:2309.17002v2 (ICLR 2024).

Takes nothing but `published.csv`, gives series over noise levels. Each is one pre-training run
without a spread: shown beside an experiment's own numbers, or over them where corpus, encoder and
method are the same, and never mixed into an average or a test.
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
    def place(self) -> str:
        """Where it stands: "Figure 1a, ImageNet-1K, ResNet-50"."""
        figure = self.figure if self.figure.startswith("Table") else f"Figure {self.figure}"
        return f"{figure}, {self.corpus or 'corpora of many kinds'}, {self.encoder}"


@lru_cache(maxsize=1)
def rows() -> tuple[dict[str, str], ...]:
    """Every published number, as the file's columns name it."""
    file = resources.files(__package__) / "published.csv"
    return tuple(csv.DictReader(file.read_text(encoding="utf-8").splitlines()))


@lru_cache(maxsize=1)
def averages() -> tuple[Series, ...]:
    """The curves that are averages over tasks, macro F1 in percent like everything else."""
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
    """The published averages of a domain against noise; `measure` as in the cells' columns."""
    figure = _CURVES[domain][measure == "test_macro_f1"]
    return (one for one in averages() if one.figure == figure)


def space(measure: str) -> Iterator[Series]:
    """The published SVE ("sve", ID) or LSVR ("lsvr", OOD) against noise."""
    return (one for one in averages() if one.figure == _SPACE[measure])


def ablation() -> Iterator[Series]:
    """Paper 1, Table 16: NMTune with some of its regularisers, ID."""
    return (one for one in averages() if one.figure == "Table 16")


def matches(one: Series, question: Question, method: str) -> bool:
    """Whether a published curve is of the experiment's corpus, noise, encoder and method, heads
    trained on all rows. The tasks that it is an average of are the papers' own.
    """
    return (
        _plain(question.corpus) == one.corpus
        and _NOISE.get(one.corpus) == question.noise_kind
        and max(question.fractions) == 100
        and _plain(question.encoder) == one.encoder
        and _METHODS.get(method, method) == one.method
    )


def _plain(name: str) -> str:
    """A corpus's or an encoder's name as the papers write it, where it is known."""
    short = "".join(letter for letter in name.lower() if letter.isalnum())
    return _ALIASES.get(short, name)
