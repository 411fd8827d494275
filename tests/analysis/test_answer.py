"""The one sentence of an experiment: what noise did in which domain, against what, how sure."""

from collections.abc import Callable

from analysis.answer import replicates, sentence
from analysis.readout import Readout

Make = Callable[..., Readout]


def test_it_says_what_changed_where_against_what_and_how_sure(make: Make) -> None:
    said = sentence(make(jitter=0.3))
    assert said.startswith("With 30 % label noise in pre-training, accuracy ")
    assert "in domain (ID)" in said
    assert "out of domain (OOD), against pre-training without noise" in said
    assert "mean over 4 methods; brackets: 95 % interval over 3 replicates" in said
    assert said.count("[") == 2
    assert said.endswith(").")


def test_one_replicate_has_no_interval_and_may_be_chance(make: Make) -> None:
    said = sentence(make(seeds=(0,)))
    assert "one replicate: no interval, so this may be chance" in said
    assert "[" not in said


def test_two_replicates_have_none_either(make: Make) -> None:
    assert "2 replicates: no interval" in sentence(make(seeds=(0, 1)))
    assert replicates(3) == "95 % interval over 3 replicates"


def test_without_anything_to_compare_it_says_so(make: Make) -> None:
    assert "nothing to compare it with" in sentence(make(levels=(0.0,)))
    assert "nothing was measured at 0 %" in sentence(make(levels=(10.0, 30.0))).lower()


def test_an_interval_with_zero_in_it_is_no_change(make: Make) -> None:
    assert "shows no clear change" in sentence(make(levels=(0.0, 0.001), jitter=2.0))
