"""The last screen of a sweep fits 80 columns and begins with the answer."""

from pathlib import Path

import pyarrow as pa
import pytest

from analysis.schemas import PRETRAINED_SUMMARY_SCHEMA, SUMMARY_SCHEMA
from jobs.storage.folder import Folder
from orchestrator.cli import closing
from orchestrator.results.collect import Report

METHODS = ("lp", "mlp", "nmtune-paper", "nmtune-released", "nmtune-released-control")
ANSWER = (
    "With 30 % label noise in pre-training, accuracy falls by 9.2 points in domain (ID) and "
    "falls by 5.1 points out of domain (OOD)."
)


def row(metric: str, noise: float, mean: float, half: float | None = None, seeds: int = 3) -> dict:  # type: ignore[type-arg]
    return {
        "metric": metric,
        "noise": noise,
        "mean": mean,
        "low": None if half is None else mean - half,
        "high": None if half is None else mean + half,
        "seeds": seeds,
        "members": ["a", "b", "c"],
        "left_out": [],
    }


def report(rows: list[dict], encoders: list[dict] | None = None, answer: str = ANSWER) -> Report:  # type: ignore[type-arg]
    return Report(
        Folder.of(Path("/x")),
        "f",
        pa.Table.from_pylist(rows, schema=SUMMARY_SCHEMA),
        pa.Table.from_pylist(encoders or [], schema=PRETRAINED_SUMMARY_SCHEMA),
        True,
        (),
        answer=answer,
    )


def demo(half: float | None = 0.4, seeds: int = 3, levels: int = 5) -> Report:
    rows = [
        row(f"{domain}/{method}/{measure}", 5.0 * level, 97.13, half, seeds)
        for domain in ("id", "ood")
        for method in METHODS
        for measure in ("accuracy", "macro_f1")
        for level in range(levels)
    ]
    rows += [row("features/id/sve", 5.0 * level, 3.889, None, seeds) for level in range(levels)]
    return report(rows)


@pytest.mark.parametrize("levels", [2, 5, 9])
@pytest.mark.parametrize("verbose", [False, True])
def test_nothing_is_wider_than_the_terminal(levels: int, verbose: bool) -> None:
    lines = list(closing.lines(demo(levels=levels), 80, verbose=verbose))
    assert max(map(len, lines)) <= 80
    for method in METHODS:
        assert any(line.startswith(f"{method} ") for line in lines)


def test_the_demo_fits_a_window_of_24_lines() -> None:
    assert len(list(closing.lines(demo(), 80))) <= 19, "four more lines follow, and the prompt"


def test_the_answer_stands_above_and_a_row_is_a_method() -> None:
    lines = list(closing.lines(demo(), 80))
    assert " ".join(lines[1:4]).startswith(ANSWER[:60])
    heads = [line.partition(" noise in %") for line in lines if "noise in %" in line]
    assert [head for head, _, _ in heads] == ["ID  accuracy,", "OOD accuracy,"]
    assert [levels.split() for _, _, levels in heads] == [["0", "5", "10", "15", "20"]] * 2
    assert next(line for line in lines if line.startswith("lp ")).split()[1:3] == ["97.1", "±0.4"]


def test_only_the_tasks_own_metric_is_shown_and_the_rest_with_v() -> None:
    short, long = (list(closing.lines(demo(), 80, verbose=v)) for v in (False, True))
    assert not any("macro_f1" in line or "sve" in line for line in short)
    assert any("-v: more" in line for line in short)
    assert any(line.startswith("id/lp/macro_f1") for line in long)
    assert any(line.startswith("features/id/sve") and "3.889" in line for line in long)


def test_what_the_interval_is_stands_below() -> None:
    lines = list(closing.lines(demo(), 80))
    said = "Mean of 3 tasks; ± is half of the 95 % interval over 3 replicates; -v: more."
    assert said in lines


def test_half_of_an_interval_that_ends_at_the_most_is_not_shorter() -> None:
    cut = row("id/lp/accuracy", 0.0, 98.1, 2.5) | {"high": 100.0}
    assert any("98.1 ±2.5" in line for line in closing.lines(report([cut]), 80))


def test_one_replicate_has_no_interval_and_the_screen_says_so() -> None:
    text = "\n".join(closing.lines(demo(half=None, seeds=1), 80))
    assert "±" not in text
    assert "one replicate: no interval (try --seeds 0,1,2)" in text


def test_pretrained_encoders_alone_have_a_table_that_fits() -> None:
    encoders = [
        {
            "encoder": "tf-efficientnet-b3-noisy-student",
            "task": task,
            "domain": "id",
            "method": method,
            "fraction": 100.0,
            "accuracy": 71.234,
            "macro_f1": None,
            "metric": "accuracy",
            "score": None,
            "deviation": None,
            "tuning_seeds": 1,
        }
        for task in ("imagenet", "caltech101-top1")
        for method in METHODS
    ]
    lines = list(closing.lines(report([], encoders, answer=""), 80))
    assert max(map(len, lines)) <= 80
    shown = " ".join(lines)
    assert all(method in shown for method in METHODS)
    assert shown.count("71.2") == 10
    assert "noise" not in shown
