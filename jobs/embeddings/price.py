"""What the texts that a ledger lacks will cost, estimated without a request.

Reads finished corpora and the ledger. Tokens are counted by the encoder's table, and corrected by
what the server has reported so far: its count over ours.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from jobs.embeddings.ledger import Ledger
from jobs.embeddings.texts import key_of, of_corpus
from jobs.embeddings.tokens import counter
from jobs.encoders.api import ApiEncoder
from jobs.storage.folder import Folder

Samples = tuple[Folder, tuple[str, ...]]
"""A finished corpus and some of its parts."""


@dataclass(frozen=True)
class Estimate:
    """What is left to buy of an encoder."""

    texts: int  # unique, not in the ledger
    tokens: int
    price: float | None  # None without price_per_million

    @property
    def words(self) -> str:
        """In words, as in `1,203 texts, 24,112 tokens, price 2.41`."""
        price = "" if self.price is None else f", price {money(self.price)}"
        return f"{self.texts:,} texts, {self.tokens:,} tokens{price}"


def money(value: float) -> str:
    """An amount with as many digits as it needs."""
    return f"{value:,.2f}" if value >= 1 or value == 0 else f"{value:.2g}"


def lacking(encoder: ApiEncoder, ledger: Ledger, samples: Iterable[Samples]) -> dict[bytes, str]:
    """The texts that some samples need and the ledger lacks, each once, by key, in order."""
    own = counter(encoder.table)
    found: dict[bytes, str] = {}
    for corpus, parts in samples:
        for _, _, texts in of_corpus(corpus, parts, encoder, own):
            for text in (text for side in texts.sides for text in side):
                key = key_of(text)
                if key not in ledger:
                    found[key] = text
    return found


def estimate(encoder: ApiEncoder, ledger: Ledger, texts: Iterable[str]) -> Estimate:
    """The price of texts that the ledger lacks."""
    own = counter(encoder.table)
    counts = [own.count(text) for text in texts]
    tokens = round(sum(counts) * ledger.paid.scale)
    each = encoder.price_per_million
    return Estimate(len(counts), tokens, None if each is None else tokens * each / 1e6)


def too_dear(encoder: ApiEncoder, what: str) -> str:
    """One sentence for a price above the encoder's `max_price`."""
    return (
        f"encoders: {encoder.name}: {what}, more than max_price {encoder.max_price:g}; raise "
        f"max_price, or ask for fewer tasks; nothing was asked for"
    )
