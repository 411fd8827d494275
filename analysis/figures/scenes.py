"""The figure of test images of a task of masks, beside their masks and predictions."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.figures import style
from analysis.readout import Readout

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_IGNORED = 255
_STEP = 0.618033988749895  # of the hue: neighbours in a list of classes differ much


def beside_predictions(readout: Readout, task: str) -> Figure:
    """A row for each image: the image, its mask, and what heads on each encoder predict.

    A class has one colour in all panels; pixels without a class are white.
    """
    rows = [row for row in readout.scenes.to_pylist() if row["task"] == task]
    titles = list(dict.fromkeys(row["title"] for row in rows))
    keys = list(dict.fromkeys(row["key"] for row in rows))
    height = 0.5 + 0.85 * style.WIDTH / len(titles) * len(keys)
    figure, panels = style.new_figure(len(keys), len(titles), height=height)
    found = {(row["key"], row["title"]): row for row in rows}
    for axes, (key, title) in zip(panels, ((k, t) for k in keys for t in titles), strict=True):
        axes.set_axis_off()
        axes.set_title(style.plain(title) if key == keys[0] or style.on_phone() else "", fontsize=9)
        row = found[key, title]
        axes.imshow(_pixels(row["picture"], is_mask=row["is_mask"]), interpolation="nearest")
    return figure


def _pixels(picture: bytes, *, is_mask: bool) -> Any:
    from matplotlib import colors, image

    found = image.imread(io.BytesIO(picture), format="png")
    if not is_mask:
        return found
    numbers = np.rint(found * 255).astype(int)
    hues = (np.arange(256) * _STEP) % 1
    light = 0.55 + 0.4 * ((np.arange(256) * 7) % 3) / 2
    palette = colors.hsv_to_rgb(np.stack([hues, np.full(256, 0.65), light], axis=1))
    palette[_IGNORED] = 1
    return palette[numbers]
