"""Tokens are counted offline, and texts are cut by the stated rule."""

from __future__ import annotations

import socket
import time

import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from jobs.contract import StageError
from jobs.embeddings.texts import sent
from jobs.embeddings.tokens import counter
from jobs.encoders.api import ApiEncoder, Table

SENTENCE = "a film that is not very long , but it's 103 minutes of pure joy , unfortunately"
OWN = ApiEncoder(name="ada", base_url="http://h/v1", model="text-embedding-ada-002")
TABLES: tuple[Table, ...] = ("cl100k_base", "o200k_base", "voyage3_base", "characters")


def rows(texts: list[str], pairs: list[str | None] | None = None) -> pa.Table:
    keys = [f"k{n}" for n in range(len(texts))]
    given = pa.array(pairs or [None] * len(texts), pa.string())
    return pa.table({"key": keys, "text": texts, "pair": given})


@pytest.mark.parametrize(
    ("table", "text", "tokens"),
    [
        ("cl100k_base", "tiktoken is great!", 6),  # as OpenAI's own cookbook counts
        ("cl100k_base", "antidisestablishmentarianism", 6),
        ("cl100k_base", "お誕生日おめでとう", 9),
        ("cl100k_base", "<|endoftext|>", 7),  # a text, not a command
        ("characters", "nine char", 3),
        ("characters", "", 1),
    ],
)
def test_tokens_are_those_of_the_vocabulary(table: Table, text: str, tokens: int) -> None:
    assert counter(table).count(text) == tokens


def test_counting_needs_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: object, **named: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    counter.cache_clear()
    assert counter("o200k_base").count("hello world") == 2


def test_a_million_tokens_take_less_than_five_processor_seconds() -> None:
    own = counter("cl100k_base")
    texts = [f"{n} {SENTENCE}" for n in range(52_000)]
    started = time.process_time()
    total = sum(map(own.count, texts))
    assert total >= 1_000_000
    assert time.process_time() - started < 5


@pytest.mark.parametrize("table", TABLES)
@given(text=st.text(max_size=80), most=st.integers(1, 12))
@example(text="\ufa15" + "0", most=2)  # composed (NFC), it is another character
@example(text="e\u0301" * 9, most=3)
def test_a_cut_text_is_a_beginning_within_the_limit(table: Table, text: str, most: int) -> None:
    own = counter(table)
    found = own.cut(text, most)
    assert text.startswith(found)
    assert own.count(found) <= most
    if own.count(text) <= most:
        assert found == text


def test_the_prompt_stands_before_each_text_and_counts_for_its_limit() -> None:
    own = OWN.model_copy(update={"prompt": "query: ", "max_length": 4})
    found = sent(rows(["one two three four five", "one"]), own, counter("cl100k_base"))
    assert found.sides == (("query: one two", "query: one"),)
    assert found.truncated.tolist() == [True, False]


def test_a_pair_is_two_texts_or_one() -> None:
    both = rows(["a", "b"], ["c", "d"])
    own = counter("cl100k_base")
    assert sent(both, OWN, own).sides == (("a", "b"), ("c", "d"))
    joined = OWN.model_copy(update={"pair": "join"})
    assert sent(both, joined, own).sides == (("a\nc", "b\nd"),)
    assert sent(rows(["a"]), OWN, own).sides == (("a",),)
    with pytest.raises(StageError, match="sample k1 has no second text"):
        sent(rows(["a", "b"], ["c", None]), OWN, own)


def test_a_text_that_is_too_long_is_refused_by_its_key() -> None:
    own = OWN.model_copy(update={"truncate": "refuse", "max_length": 3})
    with pytest.raises(StageError, match="sample k1 has more than 3 tokens"):
        sent(rows(["one", "one two three four"]), own, counter("cl100k_base"))


@pytest.mark.parametrize(
    ("model", "table", "longest"),
    [
        ("text-embedding-ada-002", "cl100k_base", 8191),
        ("text-embedding-3-large", "cl100k_base", 8191),
        ("voyage-3-lite", "voyage3_base", 32_000),
        ("multilingual-e5-small", "characters", None),
    ],
)
def test_the_table_follows_the_model(model: str, table: str, longest: int | None) -> None:
    own = OWN.model_copy(update={"model": model})
    assert (own.table, own.longest) == (table, longest)
