"""Tokenizing: from a corpus's texts to tokens, by a tokenizer of the transformers library.

Takes the tokenizer's own files and a `TextInput`; gives the tokens of rows, cut or refused where
they are too long. Reads local files alone and runs no code of theirs. A row's tokens depend on the
row alone.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from jobs.contract import StageError
from jobs.text.spec import TextInput
from jobs.text.tokens import Sequences, TokenRows

Texts = Sequence[str]


def open_tokenizer(files: Mapping[str, bytes], config: Mapping[str, Any]) -> Any:
    """The tokenizer of these files, by name; `config` is the model's, which may name its kind.

    Raises StageError when they are no tokenizer.
    """
    from transformers import AutoTokenizer

    # Its own threads would compete with the model's, and tokenizing takes little of the time.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with tempfile.TemporaryDirectory() as folder:
        for name, data in files.items():
            if name != Path(name).name:
                raise StageError(f"{name} is no tokenizer's file; make this encoder again")
            (Path(folder) / name).write_bytes(data)
        (Path(folder) / "config.json").write_text(json.dumps(dict(config)), encoding="utf-8")
        try:
            return AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # the library raises nearly anything for files it cannot use
            reason = " ".join(str(error).replace(folder, "").split())[:200]
            raise StageError(
                f"the files {', '.join(files)} are no tokenizer that transformers can open without "
                f"code of their own ({type(error).__name__}: {reason}); save the tokenizer again "
                f"with save_pretrained, which writes tokenizer.json"
            ) from error


class Tokenizer:
    """A tokenizer with the settings of an encoder's input."""

    def __init__(self, own: Any, spec: TextInput, *, types: bool, pad: int, budget: int) -> None:
        self._own, self._spec, self._types = own, spec, types
        self.pad, self.budget = pad, budget
        own.truncation_side = "right"

    @property
    def special(self) -> list[int]:
        """The ids of tokens that are no part of a text."""
        return sorted({*self._own.all_special_ids, self.pad})

    @property
    def mask(self) -> int | None:
        """The id of the token that stands for a hidden one; None when there is none."""
        found: int | None = self._own.mask_token_id
        return found

    def rows(self, table: pa.Table) -> TokenRows:
        """The tokens of rows with the columns key, text and pair.

        Raises StageError, which names the first such key, for a text that is too long under
        `truncate: refuse`, and for a row without a pair under `pair: concat4`.
        """
        keys = table["key"]
        texts, pairs = table["text"].to_pylist(), table["pair"].to_pylist()
        sides: list[tuple[Texts, Sequence[str | None]]]
        nothing: list[str | None] = [None] * len(texts)
        first = [self._spec.prompt + self._lowered(text) for text in texts]
        second = [None if pair is None else self._lowered(pair) for pair in pairs]
        if self._spec.pair == "concat4":
            if None in second:
                raise StageError(
                    f"sample {keys[second.index(None)]} has no second text, which pair: concat4 "
                    f"needs; give every row a pair, or the encoder another `pair`"
                )
            prompt = self._spec.prompt
            sides = [(first, nothing), ([f"{prompt}{pair}" for pair in second], nothing)]
        elif self._spec.pair == "join":
            both = zip(first, second, strict=True)
            sides = [([a if b is None else f"{a}\n{b}" for a, b in both], nothing)]
        else:
            sides = [(first, second)]
        found = [self._sequences(*side) for side in sides]
        truncated = np.any([cut for _, cut in found], axis=0)
        if self._spec.truncate == "refuse" and truncated.any():
            raise StageError(
                f"sample {keys[int(np.argmax(truncated))]} has more than {self._spec.max_length} "
                f"tokens ({int(truncated.sum())} rows of these {len(truncated)} have); set the "
                f"encoder's max_length higher, or truncate: end"
            )
        return TokenRows(tuple(one for one, _ in found), truncated, self.pad, self.budget)

    def _lowered(self, text: str) -> str:
        return text.lower() if self._spec.lower_case else text

    def _sequences(
        self, texts: Texts, pairs: Sequence[str | None]
    ) -> tuple[Sequences, npt.NDArray[np.bool_]]:
        """The tokens of texts and pairs [N], and which of them were cut [N]."""
        ids: list[list[int]] = [[] for _ in texts]
        types: list[list[int]] = [[] for _ in texts]

        def tokenize(rows: Sequence[int], truncate: bool) -> None:
            with_pair = [n for n in rows if pairs[n] is not None]
            without = [n for n in rows if pairs[n] is None]
            for chosen, second in ((without, None), (with_pair, [pairs[n] for n in with_pair])):
                if not chosen:
                    continue
                found = self._own(
                    [texts[n] for n in chosen],
                    second,
                    padding=False,
                    truncation=truncate,  # of a pair: from the longer one, token by token
                    max_length=self._spec.max_length if truncate else None,
                    return_attention_mask=False,
                    return_token_type_ids=self._types,
                    verbose=False,
                )
                for n, row in zip(chosen, range(len(chosen)), strict=True):
                    ids[n] = found["input_ids"][row]
                    types[n] = found["token_type_ids"][row] if self._types else []

        tokenize(range(len(texts)), truncate=False)
        cut = np.array([len(one) > self._spec.max_length for one in ids], bool)
        tokenize(np.flatnonzero(cut).tolist(), truncate=True)
        for n in [n for n, one in enumerate(ids) if not one]:  # an empty text
            ids[n], types[n] = [self._start], [0] if self._types else []
        return Sequences.of(ids, types if self._types else None), cut

    @property
    def _start(self) -> int:
        """The token that an empty text is read as, where the tokenizer adds no special tokens."""
        known = (self._own.bos_token_id, self._own.eos_token_id, self.pad)
        return int(next(one for one in known if one is not None))
