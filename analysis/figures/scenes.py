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

    A class has one colour in all panels, which the legend names; pixels without a class are white.
    """
    from matplotlib.lines import Line2D

    rows = [row for row in readout.scenes.to_pylist() if row["task"] == task]
    titles = list(dict.fromkeys(row["title"] for row in rows))
    keys = list(dict.fromkeys(row["key"] for row in rows))
    found = {(row["key"], row["title"]): row for row in rows}
    shown = {of: _numbers(row["picture"]) for of, row in found.items() if row["is_mask"]}
    tall = max(numbers.shape[0] / numbers.shape[1] for numbers in shown.values())
    height = 0.8 + (0.2 + 0.95 * style.WIDTH / len(titles) * tall) * len(keys)
    figure, panels = style.new_figure(len(keys), len(titles), height=height)
    palette = _palette()
    for axes, (key, title) in zip(panels, ((k, t) for k in keys for t in titles), strict=True):
        axes.set_axis_off()
        axes.set_title(style.plain(title) if key == keys[0] or style.on_phone() else "", fontsize=9)
        numbers = shown.get((key, title))
        pixels = _read(found[key, title]["picture"]) if numbers is None else palette[numbers]
        axes.imshow(pixels, interpolation="nearest")
    met = {int(number) for numbers in shown.values() for number in np.unique(numbers)}
    for number, name in enumerate(_class_names(readout, task)):
        if number in met:
            of_class = {"marker": "s", "linestyle": "none", "color": palette[number]}
            panels[0].add_line(Line2D([], [], label=style.plain(name), **of_class))
    style.legend(figure, panels)
    return figure


def _class_names(readout: Readout, task: str) -> list[str]:
    """A task's classes in the order of their numbers."""
    rows = readout.class_iou.select(["task", "class"]).to_pylist()
    return list(dict.fromkeys(row["class"] for row in rows if row["task"] == task))


def _read(picture: bytes) -> Any:
    from matplotlib import image

    return image.imread(io.BytesIO(picture), format="png")


def _numbers(mask: bytes) -> Any:
    """The class numbers of a mask, [H, W]."""
    return np.rint(_read(mask) * 255).astype(int)


def _palette() -> Any:
    """The colour of each class number, [256, 3]."""
    from matplotlib import colors

    hues = (np.arange(256) * _STEP) % 1
    light = 0.55 + 0.4 * ((np.arange(256) * 7) % 3) / 2
    palette = colors.hsv_to_rgb(np.stack([hues, np.full(256, 0.65), light], axis=1))
    palette[_IGNORED] = 1
    return palette
