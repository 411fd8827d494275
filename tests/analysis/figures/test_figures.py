"""Promises of the figures: every number drawn, every line told apart, every gap said."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest

from analysis.figures import (
    ablation,
    accuracy,
    draw,
    encoder,
    matrix,
    noise,
    published,
    space,
    style,
)
from analysis.readout import Readout
from analysis.schemas import CELLS_SCHEMA, PROBLEMS_SCHEMA, ROTATION_SCHEMA, TRANSITION_SCHEMA
from analysis.statistics import mean_interval
from analysis.summary import summary

Make = Callable[..., Readout]


def words(figure: Any) -> str:
    """Every text of a figure."""
    import matplotlib.text

    return " | ".join(t.get_text() for t in figure.findobj(matplotlib.text.Text) if t.get_text())


def lines(axes: Any) -> dict[str, Any]:
    return {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}


def test_every_figure_is_drawn_once_with_axes_that_name_their_units(make: Make) -> None:
    drawn = list(draw.draw(make()))
    assert [one.name for one in drawn] == [
        "scores",
        "macro-f1",
        "by-task",
        "published",
        "by-fraction",
        "feature-space",
        "spectra",
        "space-scores",
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
    looks = style.method_styles(methods)
    for part in ("colour", "marker", "dash"):
        assert len({str(getattr(look, part)) for look in looks.values()}) == len(methods)
    assert style.method_styles(("nmtune-paper",))["nmtune-paper"] == looks["nmtune-paper"]


def test_one_seed_says_so_and_draws_no_bars(make: Make) -> None:
    one, three = (accuracy.against_noise(make(seeds=seeds)) for seeds in ((0,), (0, 1, 2)))
    assert "One pre-training seed: no interval." in words(one)
    assert "95 % t interval over 3 pre-training seeds" in words(three)
    assert len(one.axes[0].lines) == 4
    assert len(three.axes[0].lines) == 4 + 4 * 5


def test_two_seeds_have_no_interval_and_no_bar(make: Make) -> None:
    readout = make(seeds=(0, 1))
    for figure in (accuracy.against_noise(readout), published.against_published(readout)):
        assert "no interval" in words(figure)
        assert "95 %" not in words(figure)


def test_no_bar_reaches_beyond_what_is_possible(make: Make) -> None:
    readout = make(jitter=5.0)
    scores = readout.scores("id", "lp").seed_means(0.0)
    assert mean_interval(list(scores.values())).high > 100.0
    for axes in accuracy.against_noise(readout).axes:
        ends = [y for line in axes.lines for y in line.get_ydata()]
        assert min(ends) >= 0.0
        assert max(ends) <= 100.0


@pytest.mark.slow
def test_a_phone_gets_one_panel_in_a_row_and_no_letter_outside(make: Make) -> None:
    readout = make()
    long = replace(readout.question, methods=(*readout.methods(), "a-method-of-a-very-long-name"))
    with style.narrow():
        drawn = list(draw.draw(replace(readout, question=long)))
    for one in drawn:
        style.save(one.figure, "svg")
        figure = one.figure
        assert figure.get_figwidth() == style.NARROW
        lefts = {round(axes.get_position().x0, 2) for axes in figure.axes if axes.axison}
        assert max(lefts) < 0.4
        for legend in figure.legends:
            box = legend.get_window_extent()
            assert 0 <= box.x0 < box.x1 <= figure.bbox.x1


def test_points_that_are_not_independent_have_no_interval(make: Make) -> None:
    assert "[" not in words(space.against_scores(make()))


def test_epochs_are_whole(make: Make) -> None:
    figure = encoder.memorisation(make(levels=(0.0, 20.0)))
    style.save(figure, "svg")
    for axes in figure.axes:
        assert all(float(tick).is_integer() for tick in axes.get_xticks())


def test_a_missing_level_leaves_a_gap_not_a_zero(make: Make) -> None:
    readout = make(drop=lambda row: row["noise"] == 20)
    figure = accuracy.against_noise(readout)
    assert len(lines(figure.axes[0])["LP"].get_ydata()) == 4
    assert list(figure.axes[0].get_xticks()) == [0, 5, 10, 20, 30]


def test_an_axis_never_blows_up_chance(make: Make) -> None:
    axes = accuracy.against_noise(make(levels=(0.0, 0.1), jitter=0.01, methods=("lp",))).axes[0]
    low, high = axes.get_ylim()
    assert high - low >= style.NARROWEST


def test_long_bars_do_not_flatten_the_lines_and_are_said_to_be_cut(make: Make) -> None:
    """Intervals of three seeds that differ much reach far beyond any score."""
    for readout, cut in ((make(jitter=12.0, methods=("lp",)), True), (make(jitter=0.1), False)):
        for figure in (accuracy.against_noise(readout), accuracy.by_fraction(readout)):
            for axes in figure.axes:
                values = [y for line in lines(axes).values() for y in line.get_ydata()]
                low, high = axes.get_ylim()
                assert low <= min(values) <= max(values) <= high
            shown = [y for axes in figure.axes for y in axes.get_ylim()]
            assert ("is longer than shown" in words(figure)) == cut
            assert max(shown) < 250
        first = accuracy.against_noise(readout).axes[0]
        values = [y for line in lines(first).values() for y in line.get_ydata()]
        low, high = first.get_ylim()
        assert high - low <= 3.1 * max(max(values) - min(values), style.NARROWEST)


@pytest.mark.slow
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
    for one in draw.draw(make(**{"levels": (0.0, 30.0), "seeds": (0, 1), **shape})):
        assert style.save(one.figure, "svg").startswith(b"<?xml")


def test_flipped_samples_are_drawn_only_where_there_are_any(make: Make) -> None:
    clean, noisy = encoder.memorisation(make(levels=(0.0, 20.0))).axes
    assert list(lines(clean)) == ["Samples left clean"]
    assert list(lines(noisy)) == ["Samples left clean", "Flipped samples, on their wrong labels"]


def test_figures_are_the_same_bytes_on_any_thread(make: Make) -> None:
    readout = make(seeds=(0,))

    def drawn(_: int) -> tuple[bytes, bytes]:
        figure = accuracy.against_noise(readout)
        return style.save(figure, "svg"), style.save(figure, "png")

    with ThreadPoolExecutor(3) as threads:
        assert len(set(threads.map(drawn, range(3)))) == 1


def test_published_curves_lie_over_ones_own_only_where_they_match(make: Make) -> None:
    readout = make()
    assert "published" not in words(accuracy.against_noise(readout))
    same = replace(readout.question, corpus="ImageNet-1K", encoder="resnet50")
    over = lines(accuracy.against_noise(replace(readout, question=same)).axes[0])
    assert list(over["LP, published"].get_ydata()) == [73.535, 74.122, 73.229, 72.614, 71.43]
    assert "MLP, published" not in over


def test_published_curves_stand_beside_ones_own_as_changes(make: Make) -> None:
    axes = published.against_published(make(jitter=0.0)).axes[0]
    assert lines(axes)["LP, ImageNet-1K"].get_ydata()[1] == pytest.approx(74.122 - 73.535)
    own = lines(axes)["LP, here"].get_ydata()
    assert list(own) == pytest.approx([0.0, -0.45, -0.9, -1.8, -2.7])


def test_spectra_are_shares_of_their_sum(make: Make) -> None:
    axes = space.spectra(make()).axes[0]
    assert list(lines(axes)) == [f"{level} % noise" for level in (0, 5, 10, 20, 30)]
    assert list(lines(axes)["0 % noise"].get_ydata()) == pytest.approx([50, 100 / 3, 50 / 3])


def test_each_encoder_is_a_point_against_its_accuracy(make: Make) -> None:
    readout = make()
    axes = space.against_scores(readout).axes[0]
    assert sum(len(line.get_xdata()) for line in lines(axes).values()) == 15
    seeds = readout.scores("id", "lp").seed_means(30.0)
    assert list(lines(axes)["30 % noise"].get_ydata()) == pytest.approx(list(seeds.values()))
    assert "15 encoders" in words(axes.figure)


def test_ordered_lines_grow_lighter() -> None:
    def light(colour: str) -> int:
        return sum(int(colour[at : at + 2], 16) for at in (1, 3, 5))

    shades = [light(look.colour) for look in style.ordered_styles(5)]
    assert shades == sorted(shades)
    assert len(set(shades)) == 5


def test_the_ablation_is_paired_with_the_whole(make: Make) -> None:
    methods = ("mlp", "nmtune-paper", "less")
    readout = make(methods=methods, jitter=0.0)
    assert ablation.families(readout) == {}
    rows = readout.cells.to_pylist()
    for row in rows:
        on = {"mlp": 0.0, "nmtune-paper": 0.01, "less": 0.01}[row["method"]]
        row |= {"head": "paper", "mse": on, "cov": on * (row["method"] != "less"), "svd": on}
    readout = replace(readout, cells=pa.Table.from_pylist(rows, schema=CELLS_SCHEMA))
    assert ablation.families(readout) == {"nmtune-paper": ["less", "mlp"]}
    axes = ablation.ablation(readout).axes[0]
    dots = [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "o"]
    assert dots == pytest.approx([0.3 - 1.1, 0.8 - 1.1])
    assert [t.get_text() for t in axes.get_yticklabels()] == ["MSE + SVD", "none (MLP)"]


def test_the_matrix_is_drawn_only_where_something_is_missing(make: Make) -> None:
    assert "matrix" not in [one.name for one in draw.draw(make(seeds=(0,)))]
    gone = make(seeds=(0,), drop=lambda row: row["task"] == "digits")
    assert "matrix" in [one.name for one in draw.draw(gone)]


def test_the_matrix_shows_gaps_and_failures(make: Make) -> None:
    readout = make(drop=lambda row: row["task"] == "digits" and row["method"] == "lp")
    cell = {"noise": 30.0, "seed": 1, "task": "digits", "method": "lp", "label_noise": 0.0}
    problems = [
        {**cell, "address": "tune/a", "status": "failed"},
        {**cell, "address": "tune/b", "status": "failed", "noise": 0.0, "label_noise": 20.0},
        {**cell, "address": "tune/c", "status": "missing", "seed": 2},
        {"address": "pretrain/a", "status": "failed", "noise": 30.0, "seed": 1},
    ]
    table = pa.Table.from_pylist(problems, schema=PROBLEMS_SCHEMA)
    (axes,) = matrix.matrix(replace(readout, problems=table)).axes
    numbers = [text.get_text() for text in axes.texts]
    assert (numbers.count("0×"), numbers.count("0"), numbers.count("2")) == (1, 14, 23 * 15)
    assert len(axes.patches) == len(numbers) == 6 * 4 * 15


def test_a_large_matrix_joins_the_methods_of_a_task(make: Make) -> None:
    figure = matrix.matrix(make(id_tasks=tuple(f"t{i}" for i in range(20)), seeds=(0,)))
    assert len(figure.axes[0].patches) == 23 * 5


def test_the_transition_matrix_counts_every_row(make: Make) -> None:
    pairs = [("a", "a", 70), ("a", "b", 30), ("b", "b", 100)]
    rows = [{"level": 30.0, "clean": c, "noisy": n, "rows": r} for c, n, r in pairs]
    table = pa.Table.from_pylist(rows, schema=TRANSITION_SCHEMA)
    text = words(noise.realised(replace(make(), transition=table)))
    assert "30 of 200 training rows are wrong (15.00 %)" in text
    assert "70.0" in text
    assert "0.0" in text  # of the pair that never occurs


def test_rotation_is_drawn_where_it_was_measured(make: Make) -> None:
    rows = [
        {
            "noise": level,
            "pretrain_seed": seed,
            "images": "digits",
            "domain": "id",
            "rows": 452,
            "k": 16,
            "angles": [10.0] * 16,
            "overlap": 1 - level / 100,
            "cka": 0.9,
        }
        for level in (5.0, 10.0, 20.0, 30.0)
        for seed in (0, 1, 2)
    ]
    readout = replace(make(), rotation=pa.Table.from_pylist(rows, schema=ROTATION_SCHEMA))
    assert "rotation" in [one.name for one in draw.draw(readout)]
    (line,) = lines(space.rotation(readout).axes[0]).values()
    assert list(line.get_ydata()) == pytest.approx([0.95, 0.9, 0.8, 0.7])
