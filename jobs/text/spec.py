"""The input of a text encoder: how a row's texts become tokens, and tokens a vector.

All fields are resolved when an encoder is imported: nothing here is a default of some library.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from jobs.contract import Spec

Pooling = Literal["cls", "mean", "last", "pooler"]
"""Which vector stands for a text: of the first token, the mean over all, of the last one, or the
output of the model's own pooler."""

Pair = Literal["tokenizer", "join", "concat4"]
"""How a row of two texts is read: as the tokenizer's own pair, joined by a line break, or each by
itself, as [u; v; |u - v|; u * v]."""

Truncate = Literal["end", "refuse"]


class TextInput(Spec):
    """How a row's text, or its two texts, become the encoder's input and its features."""

    max_length: int = Field(ge=1, description="tokens of a text or a pair, special ones included")
    truncate: Truncate = Field(
        "end", description="longer texts lose their end, or are refused by name"
    )
    pair: Pair = "tokenizer"
    prompt: str = Field("", description="stands before the text (concat4: before each of the two)")
    lower_case: bool = Field(False, description="before the tokenizer's own changes")
    pooling: Pooling
    normalise: bool = Field(False, description="to length 1 (concat4: u and v)")
    layer: int | None = Field(
        None, description="index of the hidden states that are pooled; none: the last ones"
    )
    tokenizer_sha256: str = Field(description="of the names and digests of the tokenizer's files")

    kind: ClassVar[str] = "text"
    """The kind of input, as in an encoder's card."""

    @property
    def vectors(self) -> int:
        """How many vectors of the model's width a row's features are."""
        return 4 if self.pair == "concat4" else 1


class OwnTextInput(TextInput):
    """The input of an extension's encoder, whose module is built for a tokenizer's ids."""

    vocabulary: int = Field(ge=1, description="token ids that the tokenizer has")
    padding: int = Field(ge=0, description="the id that fills a batch")

    kind: ClassVar[str] = "own_text"
