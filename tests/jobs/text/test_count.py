"""Tokens that are counted before anything is encoded."""

from pathlib import Path

import pytest

from jobs.contract import StageError
from jobs.storage.folder import Folder
from jobs.text.count import tokens_per_row
from tests.jobs.text.models import put_corpus, put_model, table


def test_the_mean_counts_special_tokens_pairs_and_the_most_that_a_row_may_have(
    tmp_path: Path,
) -> None:
    tokenizer = (put_model(tmp_path / "m", "bert") / "tokenizer.json").read_bytes()
    none = {"validation": table(["a"]), "test": table(["a"])}
    rows = table(["the film is good", "a"])
    alone = put_corpus(Folder.of(tmp_path / "a"), {"train": rows, **none})
    assert tokens_per_row(alone, tokenizer, None) == (6 + 3) / 2
    assert tokens_per_row(alone, tokenizer, 4) == (4 + 3) / 2
    rows = table(["the film"], ["is good"])
    pairs = put_corpus(Folder.of(tmp_path / "b"), {"train": rows, **none})
    assert tokens_per_row(pairs, tokenizer, None) == 7
    with pytest.raises(StageError, match=r"tokenizer\.json cannot be read"):
        tokens_per_row(alone, b"{}", None)
