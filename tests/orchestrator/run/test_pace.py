"""The time left of a sweep: from the rates of what has run, never from what has not."""

import pytest

from orchestrator.run.pace import Left, Pace, in_words


def test_the_time_left_follows_from_the_rate_of_each_kind() -> None:
    pace = Pace()
    pace.pass_time(0.0, {"pretrain"})
    pace.pass_time(100.0, {"pretrain"})
    pace.pass_time(120.0, {"tune"})
    left = pace.left({"pretrain": 2, "tune": 10}, {"pretrain": 3, "tune": 20})
    assert left == Left(3 * 50 + 20 * 2, partial=False)


def test_kinds_that_run_at_once_share_the_time() -> None:
    pace = Pace()
    pace.pass_time(0.0, set())
    pace.pass_time(60.0, {"features", "tune"})
    left = pace.left({"features": 3, "tune": 30}, {"features": 3, "tune": 30})
    assert left is not None
    assert left.seconds == pytest.approx(60), "twice the work in all takes the same time again"


def test_a_kind_without_a_rate_makes_it_a_lower_bound() -> None:
    pace = Pace()
    pace.pass_time(0.0, {"pretrain"})
    pace.pass_time(600.0, {"pretrain"})
    left = pace.left({"pretrain": 1.0, "tune": 0}, {"pretrain": 2.0, "tune": 40})
    assert str(left) == "at least 20 min left"


def test_nothing_is_told_before_anything_has_a_rate_and_after_all_is_done() -> None:
    pace = Pace()
    assert pace.left({}, {"tune": 4}) is None
    pace.pass_time(0.0, {"tune"})
    pace.pass_time(5.0, {"tune"})
    assert pace.left({"tune": 4}, {"tune": 0}) is None


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (5, "1 min"),
        (840, "14 min"),
        (3600, "1 h"),
        (12_000, "3 h 20 min"),
        (400_000, "5 days"),
    ],
)
def test_a_time_is_told_roughly(seconds: float, words: str) -> None:
    assert in_words(seconds) == words
