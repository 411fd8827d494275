"""Values of a YAML document are what a person reads in them, and a hostile one is one sentence."""

import math
import re
from itertools import pairwise

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from jobs import strict_yaml

WORDS = ["010", "007", "1_000", "12:30", "1:2.5", "0x10", "0b11", "0o17", "+-1", "no", "1e-3"]


@pytest.mark.parametrize("word", WORDS)
def test_a_number_in_another_spelling_is_a_word(word: str) -> None:
    """YAML 1.1 reads 010 as 8 and 12:30 as 750: as a label, that is another class."""
    assert strict_yaml.parse(f"[{word}, '{word}']") == [word, word]


@given(st.integers() | st.floats(allow_nan=False))
def test_a_number_is_that_number(number: float) -> None:
    text = yaml.safe_dump(number)
    assert strict_yaml.parse(text) == number
    assert type(strict_yaml.parse(text)) is type(number)


def test_infinity_and_no_number_are_numbers_that_fields_refuse() -> None:
    infinite, lost = strict_yaml.parse("[-.inf, .nan]")
    assert infinite == -math.inf
    assert math.isnan(lost)


def bomb(levels: int) -> str:
    """A list of lists of ... of the same list, ten times each."""
    names = [f"n{level}" for level in range(levels)]
    lines = [f"n0: &n0 [{', '.join('x' * 10)}]"]
    for below, name in pairwise(names):
        lines.append(f"{name}: &{name} [{', '.join([f'*{below}'] * 10)}]")
    return "\n".join(lines)


HOSTILE = {
    "a bomb": (bomb(12), "its aliases (*name) repeat values without end"),
    "a value in itself": ("a: &a [*a]", "repeat values without end"),
    "a mapping merged into itself": ("a: &a {<<: *a}", "repeat values without end"),
    "a set, which has no order": ("tasks: !!set {a, b}", "a tag (!...) makes an object"),
    "bytes": ("name: !!binary aGk=", "a tag (!...) makes an object"),
    "a NUL": ('path: "a\\0b"', "a NUL or half a character"),
    "half a character": ('"\\ud800": a', "a NUL or half a character"),
    "pairs": ("tasks: !!omap [a: 1]", "a tag (!...) makes an object"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_document_is_one_sentence(what: str) -> None:
    text, sentence = HOSTILE[what]
    with pytest.raises(yaml.YAMLError) as caught:
        strict_yaml.parse(text)
    assert re.fullmatch(f".*{re.escape(sentence)}.*", strict_yaml.in_words(caught.value))


def test_an_alias_that_is_used_often_is_no_bomb() -> None:
    found = strict_yaml.parse("a: &a {x: 1}\nb: [" + ", ".join(["*a"] * 1000) + "]")
    assert found["b"] == [{"x": 1}] * 1000
