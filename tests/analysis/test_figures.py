"""Promises of the figures: every number drawn, every line told apart, every gap said."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from analysis import figures
from analysis.figures import accuracy, encoder, style
from analysis.readout import Readout, summary

Make = Callable[..., Readout]


def words(figure: Any) -> str:
    """Every text of a figure."""
    import matplotlib.text

    return " | ".join(t.get_text() for t in figure.findobj(matplotlib.text.Text) if t.get_text())


def lines(axes: Any) -> dict[str, Any]:
    return {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}


def test_every_figure_is_drawn_once_with_axes_that_name_their_units(make: Make) -> None:
    drawn = list(figures.draw(make()))
    assert [one.name for one in drawn] == [
        "accuracy",
        "macro-f1",
        "by-task",
        "by-fraction",
        "feature-space",
        "pretraining",
        "memorisation",
    ]
    for one in drawn[:2]:
        for axes in one.figure.axes:
            assert axes.get_xlabel() == "Pre-training noise (%)"
            assert axes.get_ylabel().endswith("(%)")


def test_the_lines_are_the_summary(make: Make) -> None:
    readout = make()
    table = summary(readout).to_pylist()
    figure = accuracy.against_noise(readout)
    for axes, domain in zip(figure.axes, ("id", "ood"), strict=True):
        for label, method in (("LP", "lp"), ("NMTune (released)", "nmtune-released")):
            wanted = [r["mean"] for r in table if r["metric"] == f"{domain}/{method}/accuracy"]
            assert list(lines(axes)[label].get_ydata()) == wanted


def test_methods_differ_in_colour_marker_and_dash(make: Make) -> None:
    methods = ("lp", "mlp", "nmtune-paper", "nmtune-released", "lora", "my-own")
    looks = style.looks(methods)
    for part in ("colour", "marker", "dash"):
        assert len({str(getattr(look, part)) for look in looks.values()}) == len(methods)
    assert style.looks(("nmtune-paper",))["nmtune-paper"] == looks["nmtune-paper"]


def test_one_seed_says_so_and_draws_no_bars(make: Make) -> None:
    one, three = (accuracy.against_noise(make(seeds=seeds)) for seeds in ((0,), (0, 1, 2)))
    assert "One pre-training seed: no interval." in words(one)
    assert "95 % t interval over 3 pre-training seeds" in words(three)
    assert len(one.axes[0].lines) == 4
    assert len(three.axes[0].lines) == 4 + 4 * 5


def test_a_missing_level_leaves_a_gap_not_a_zero(make: Make) -> None:
    readout = make(drop=lambda row: row["noise"] == 20)
    figure = accuracy.against_noise(readout)
    assert len(lines(figure.axes[0])["LP"].get_ydata()) == 4
    assert list(figure.axes[0].get_xticks()) == [0, 5, 10, 20, 30]


def test_an_axis_never_blows_up_chance(make: Make) -> None:
    axes = accuracy.against_noise(make(levels=(0.0, 0.1), jitter=0.01, methods=("lp",))).axes[0]
    low, high = axes.get_ylim()
    assert high - low >= style.NARROWEST


@pytest.mark.parametrize(
    "shape",
    [
        {"levels": (10.0,)},
        {"ood_tasks": ()},
        {"seeds": (0,), "methods": ("lp",), "id_tasks": ("one",), "ood_tasks": ()},
        {"fractions": (100.0,)},
        {"drop": lambda row: True},
        {"id_tasks": tuple(f"task-{i}" for i in range(7)), "methods": ("lp", "odd$name_$x")},
    ],
)
def test_any_shape_of_experiment_draws(make: Make, shape: dict[str, Any]) -> None:
    for one in figures.draw(make(**{"levels": (0.0, 30.0), "seeds": (0, 1), **shape})):
        assert figures.save(one.figure, "svg").startswith(b"<?xml")


def test_flipped_samples_are_drawn_only_where_there_are_any(make: Make) -> None:
    clean, noisy = encoder.memorisation(make(levels=(0.0, 20.0))).axes
    assert list(lines(clean)) == ["Samples left clean"]
    assert list(lines(noisy)) == ["Samples left clean", "Flipped samples, on their wrong labels"]


def test_figures_are_the_same_bytes_on_any_thread(make: Make) -> None:
    readout = make(seeds=(0,))

    def drawn(_: int) -> tuple[bytes, bytes]:
        figure = accuracy.against_noise(readout)
        return figures.save(figure, "svg"), figures.save(figure, "png")

    with ThreadPoolExecutor(3) as threads:
        assert len(set(threads.map(drawn, range(3)))) == 1
