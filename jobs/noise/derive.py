"""Plans all levels of a noise over a corpus.

Takes a built corpus's folder and a noise; reads keys and clean values once, and the file that the
noise names. Gives a plan (`labels.Flips`, ...) whose `changed(level)` gives the rows that the noise
stage writes and the audit expects. Writes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, assert_never

import numpy as np
import pyarrow as pa

from jobs.contract import StageError
from jobs.corpus.shards import Index, read_part
from jobs.noise import confusions, files, labels, own
from jobs.noise.captions import Captioned, Clusters, caption_swap
from jobs.noise.classes import Classes
from jobs.noise.labels import Choice, Labelled, Labels, Mask
from jobs.noise.overlay import Overlay
from jobs.noise.source import Source, source_of
from jobs.noise.spec import (
    CaptionSwap,
    CaptionSwapNear,
    Given,
    Groups,
    Instance,
    Noise,
    OwnCaptions,
    OwnLabels,
    Pair,
    Subset,
    Symmetric,
    Transition,
)
from jobs.storage.folder import Folder


class Levels(Protocol):
    """Which samples each level changes, and to what."""

    @property
    def eligible(self) -> int:
        """How many samples the noise may change."""

    @property
    def counts(self) -> Mapping[str, int]:
        """How many samples cannot be changed, by reason."""

    def changed(self, level: float) -> pa.Table:
        """The changed samples by rising `row`, with key, clean and noisy value."""


@dataclass(frozen=True)
class Plan:
    """A noise over a corpus, for every level."""

    noise: Noise
    corpus: str
    rows: int  # training rows
    levels: Levels
    file_sha256: str | None  # of the file that the noise names

    def overlay(self, level: float, changed: pa.Table) -> Overlay:
        """The description of a level, from the table of its changed rows."""
        count, eligible = len(changed), self.levels.eligible
        return Overlay(
            kind=self.noise.kind,
            field=self.noise.replaces,
            level=level,
            of=getattr(self.noise, "of", "corpus"),
            seed=getattr(self.noise, "draw", None),
            corpus=self.corpus,
            rows=self.rows,
            eligible=eligible,
            changed=count,
            realised_percent=100 * count / self.rows,
            realised_percent_of_subset=100 * count / eligible if eligible else 0.0,
            file_sha256=self.file_sha256,
        )


def derive(noise: Noise, corpus: Folder) -> Plan:
    """The plan of a noise over a corpus, derived from its rows.

    Raises StageError when the corpus lacks labels, captions or a class that the noise names, or
    when the noise's file does not fit.
    """
    index = Index.read(corpus)
    source = source_of(noise) if getattr(noise, "file", None) else None
    digest = source.digest() if source else None
    if isinstance(noise, (CaptionSwap, CaptionSwapNear, OwnCaptions)):
        levels: Levels = _derive_caption_noise(noise, corpus, index, source)
    else:
        levels = _derive_label_noise(noise, corpus, index, source)
    return Plan(noise, index.name, index.rows("train"), levels, digest)


def _derive_label_noise(
    noise: Symmetric | Pair | Groups | Transition | Subset | Instance | Given | OwnLabels,
    corpus: Folder,
    index: Index,
    source: Source | None,
) -> Levels:
    classes = Classes(index.classes, index.class_ids)
    rows = read_part(corpus, "train", ["key", "label"])
    samples = Labelled(
        index.name,
        _as_one_array(rows["key"]),
        _complete_labels(rows["label"], index.name, "label to flip", "captions"),
        len(classes),
    )
    if isinstance(noise, Given):
        assert source is not None
        given = files.labels_by_key(source, noise.key, noise.column, samples.keys, classes)
        return confusions.given(samples, given)
    choice = Choice(noise.draw, files.class_numbers(noise.classes, classes), noise.of)
    match noise:
        case Symmetric():
            return labels.symmetric(samples, choice)
        case Pair():
            return labels.pair(samples, choice)
        case OwnLabels():
            return own.labels(samples, choice, noise.part, index.classes)
        case Subset():
            return labels.subset(samples, choice)
        case Groups():
            assert source is not None
            return labels.groups(samples, choice, files.grouping(source, classes))
        case Transition():
            assert source is not None
            return confusions.transition(samples, choice, files.matrix(source, classes))
        case Instance():
            assert source is not None
            blocks = files.probabilities_by_key(source, noise.key, noise.column, samples.keys)
            return confusions.instance(samples, choice, blocks)
    assert_never(noise)


def _derive_caption_noise(
    noise: CaptionSwap | CaptionSwapNear | OwnCaptions,
    corpus: Folder,
    index: Index,
    source: Source | None,
) -> Levels:
    by_label = bool(noise.classes) or (isinstance(noise, CaptionSwapNear) and source is None)
    rows = read_part(corpus, "train", ["key", "caption", *(["label"] if by_label else [])])
    samples = Captioned(index.name, _as_one_array(rows["key"]), _as_one_array(rows["caption"]))
    label = (
        _complete_labels(rows["label"], index.name, "label to choose by", "all captions")
        if by_label
        else np.zeros(0, np.int32)
    )
    named = files.class_numbers(noise.classes, Classes(index.classes, index.class_ids))
    allowed: Mask | None = np.isin(label, named) if named else None
    clusters: Clusters | None = None
    if isinstance(noise, CaptionSwapNear):
        clusters = label
        if source is not None and noise.column is not None:
            clusters = files.clusters_by_key(source, noise.key, noise.column, samples.keys)
    choice = Choice(noise.draw, named, noise.of)
    if isinstance(noise, OwnCaptions):
        return own.captions(samples, choice, noise.part, index.classes, allowed)
    return caption_swap(samples, choice, allowed=allowed, clusters=clusters)


def _complete_labels(column: pa.ChunkedArray, corpus: str, what: str, other: str) -> Labels:
    if column.null_count:
        raise StageError(
            f"corpus {corpus}: {column.null_count} of {len(column)} training rows have no {what}; "
            f"use a kind of noise for {other}"
        )
    found: Labels = column.to_numpy()
    return found


def _as_one_array(column: pa.ChunkedArray) -> pa.Array:
    """The column as one array, with 64-bit offsets."""
    return column.cast(pa.large_string()).combine_chunks()
