"""From rows of a corpus to the exact texts that are sent to an API, and their keys in a ledger.

A text is sent as prompt and text, cut at the encoder's limit by the stated table of tokens. Its key
is the sha256 of what is sent. Sends nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from jobs.contract import StageError
from jobs.corpus.shards import Index, read_rows
from jobs.corpus.units import Unit, units_of
from jobs.embeddings.tokens import Counter
from jobs.encoders.api import ApiEncoder
from jobs.storage.folder import Folder

COLUMNS = ("key", "text", "pair")


@dataclass(frozen=True)
class Sent:
    """The texts of N rows as they are sent: one for each row, or two (`pair: concat4`)."""

    sides: tuple[tuple[str, ...], ...]  # one or two, each [N]
    truncated: npt.NDArray[np.bool_]  # [N]


def key_of(text: str) -> bytes:
    """The key of a text that is sent, 32 bytes."""
    return hashlib.sha256(text.encode()).digest()


def sent(rows: pa.Table, encoder: ApiEncoder, counter: Counter) -> Sent:
    """The texts of rows with the columns key, text and pair.

    Raises StageError, which names the first such key, for a text that is too long under
    `truncate: refuse`, and for a row of one text among rows of two.
    """
    texts, pairs = rows["text"].to_pylist(), rows["pair"].to_pylist()
    if any(pair is not None for pair in pairs) and None in pairs:
        raise StageError(
            f"sample {rows['key'][pairs.index(None)]} has no second text and others of its task "
            f"have one; give every row a pair, or none"
        )
    paired = bool(pairs) and pairs[0] is not None
    if not paired:
        sides = [texts]
    elif encoder.pair == "join":
        sides = [[f"{a}\n{b}" for a, b in zip(texts, pairs, strict=True)]]
    else:
        sides = [texts, pairs]
    whole = [[encoder.prompt + text for text in side] for side in sides]
    most = encoder.longest
    if most is None:
        return Sent(tuple(map(tuple, whole)), np.zeros(len(rows), bool))
    cut = [[counter.cut(text, most) for text in side] for side in whole]
    changed = [
        [a != b for a, b in zip(*both, strict=True)] for both in zip(whole, cut, strict=True)
    ]
    truncated = np.any(np.array(changed, bool), axis=0)
    if encoder.truncate == "refuse" and truncated.any():
        raise StageError(
            f"sample {rows['key'][int(truncated.argmax())]} has more than {most} tokens "
            f"({int(truncated.sum())} rows of these {len(rows)} have); set the encoder's "
            f"max_length higher, or truncate: end"
        )
    return Sent(tuple(map(tuple, cut)), truncated)


def of_corpus(
    corpus: Folder, parts: tuple[str, ...], encoder: ApiEncoder, counter: Counter
) -> Iterator[tuple[Unit, pa.Table, Sent]]:
    """Every unit of a finished corpus's parts, with its rows and the texts that are sent.

    Raises StageError as `sent` does, also for rows of one text in one unit and of two in another.
    """
    paired: bool | None = None
    for unit in units_of(Index.read(corpus), parts):
        rows = read_rows(corpus, unit.file, unit.start, unit.stop, [*COLUMNS, "label"])
        texts = sent(rows, encoder, counter)
        if len(rows):
            found = rows["pair"].null_count == 0
            if paired not in (None, found):
                which, other = ("a", "none") if found else ("no", "one")
                raise StageError(
                    f"sample {rows['key'][0]} has {which} second text and others of its task have "
                    f"{other}; give every row a pair, or none"
                )
            paired = found
        yield unit, rows, texts
