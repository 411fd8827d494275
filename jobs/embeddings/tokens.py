"""Counts and cuts texts by tokens, without a network.

The vocabularies come with the package `bpe-openai` (cl100k and o200k of OpenAI, Voyage's): tiktoken
counts the same, but downloads its tables at the first use. A model whose vocabulary is not known is
counted by characters, four to a token; what the server reports as `usage` corrects that count.
"""

from __future__ import annotations

from bisect import bisect_right
from functools import lru_cache
from importlib.util import find_spec
from typing import Protocol

from jobs.contract import StageError
from jobs.encoders.api import Table

CHARACTERS = 4  # of a token, where the vocabulary is not known: usual for English


class Counter(Protocol):
    """Counts tokens of a text."""

    exact: bool  # whether the server counts so too

    def count(self, text: str) -> int:
        """Tokens of a text, at least 1."""

    def cut(self, text: str, most: int) -> str:
        """The longest beginning of a text, in whole characters, with at most `most` tokens."""


class _Characters:
    exact = False

    def count(self, text: str) -> int:
        return max(1, -(-len(text) // CHARACTERS))

    def cut(self, text: str, most: int) -> str:
        return text[: CHARACTERS * most]


class _Vocabulary:
    exact = True

    def __init__(self, name: str) -> None:
        import bpe_openai

        self._own = bpe_openai.get_encoding(name)

    def count(self, text: str) -> int:
        return max(1, len(self._own.encode_ordinary(text)))

    def cut(self, text: str, most: int) -> str:
        if len(text.encode()) <= most:  # a token has a byte or more
            return text
        ids = self._own.encode_ordinary(text)
        for size in range(min(most, len(ids)), 0, -1):
            if size == len(ids):
                return text
            # A token may end within a character; the rest of a text may make other tokens.
            found: str = self._own.decode_bytes(ids[:size]).decode("utf-8", "ignore")
            if not text.startswith(found):  # Voyage's vocabularies compose characters (NFC) first
                return self._cut_by_characters(text, most)
            if self.count(found) <= most:
                return found
        return ""

    def _cut_by_characters(self, text: str, most: int) -> str:
        """`cut` for a text whose tokens are those of another text."""
        size = bisect_right(range(len(text)), most, key=lambda end: self.count(text[:end])) - 1
        while self.count(text[:size]) > most:  # a longer text may have fewer tokens
            size -= 1
        return text[:size]


@lru_cache(maxsize=4)
def counter(table: Table) -> Counter:
    """The counter of a table. Raises StageError if its package is not installed."""
    if table == "characters":
        return _Characters()
    if find_spec("bpe_openai") is None:
        raise StageError(
            f"tokens: {table} needs the package bpe-openai; install nml-orch[api], or set the "
            f"encoder's tokens to characters"
        )
    return _Vocabulary(table)
