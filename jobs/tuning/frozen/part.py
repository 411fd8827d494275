"""One part of an image set as the features of its rows, in memory or mapped from a file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import torch

from jobs.tuning.rows import Labelled, Samples, TaskRows


@dataclass(frozen=True)
class Part(Samples):
    """One part of an image set as features, rows sorted by key."""

    views: npt.NDArray[Any]  # float32 [V, N, D]; only the plain image unless augmented
    augmented: int  # augmented views in `views`; 0: the plain image

    def training(self, rows: TaskRows) -> Labelled:
        """The features [V, n, D] of the selected rows; not copied where all rows are selected."""
        features = torch.from_numpy(self.views)
        if len(rows.indices) < len(self.keys):
            features = features[:, torch.from_numpy(rows.indices)]
        return Labelled(features, rows.labels)

    def plain(self, rows: TaskRows) -> Labelled:
        """The features [n, D] of the selected rows, in the first view."""
        found = self.training(rows)
        return Labelled(found.features[0], found.labels)
