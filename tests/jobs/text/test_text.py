"""Texts become tokens row by row: what is cut is counted, what is masked is drawn by key."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from jobs.contract import StageError
from jobs.images.spec import Affine, Views
from jobs.text.pooling import joined, pooled
from jobs.text.spec import TextInput
from jobs.text.tokenizer import Tokenizer
from jobs.text.tokens import TokenRows, Tokens, batches
from jobs.text.views import masked
from tests.jobs.text.models import bytes_tokenizer, table, texts, words_tokenizer

VIEWS = Views(count=2, mask=0.3)


def reader(own: Any = None, **changes: Any) -> Tokenizer:
    spec = TextInput(max_length=12, pooling="cls", tokenizer_sha256="0" * 64)
    text = spec.model_copy(update=changes)
    return Tokenizer(own or words_tokenizer(), text, types=True, pad=0, budget=64)


def ids(rows: TokenRows, row: int, side: int = 0) -> list[int]:
    one = rows.sides[side]
    return one.ids[one.ends[row] : one.ends[row + 1]].tolist()


def test_a_row_is_read_as_the_tokenizer_itself_reads_it() -> None:
    own = words_tokenizer()
    rows = reader(own).rows(table(["the film", "good"], [None, "bad plot"]))
    assert ids(rows, 0) == own("the film")["input_ids"]
    assert ids(rows, 1) == own("good", "bad plot")["input_ids"]
    batch = rows.take(torch.tensor([0, 1]))
    assert batch.types is not None
    assert batch.types[0, 1].tolist() == own("good", "bad plot")["token_type_ids"]
    assert batch.mask[0].sum(1).tolist() == [4, 6]
    assert len(batch) == 2


@pytest.mark.parametrize(
    ("pair", "sides"),
    [("tokenizer", [("q: good", "bad")]), ("join", [("q: good\nbad",)])],
)
def test_a_pair_is_read_as_the_encoder_asks(pair: str, sides: list[tuple[str, ...]]) -> None:
    own = words_tokenizer()
    rows = reader(own, pair=pair, prompt="q: ").rows(table(["good"], ["bad"]))
    assert [ids(rows, 0, n) for n in range(len(rows.sides))] == [
        own(*one)["input_ids"] for one in sides
    ]


def test_both_texts_are_read_by_themselves_where_their_vectors_are_joined() -> None:
    own = words_tokenizer()
    rows = reader(own, pair="concat4").rows(table(["good"], ["bad plot"]))
    assert [ids(rows, 0, n) for n in (0, 1)] == [
        own(one)["input_ids"] for one in ("good", "bad plot")
    ]
    assert rows.take(torch.tensor([0])).ids.shape == (2, 1, 4)
    with pytest.raises(StageError, match="sample r0001 has no second text"):
        reader(pair="concat4").rows(table(["good", "good"], ["bad", None]))


def test_letters_are_made_small_before_the_tokenizer_where_the_folder_says_so() -> None:
    assert ids(reader(lower_case=True).rows(table(["The FILM"])), 0) == ids(
        reader().rows(table(["the film"])), 0
    )


def test_a_text_that_is_too_long_loses_its_end_and_is_counted() -> None:
    rows = reader().rows(table(["good", "bad " * 40, "film " * 10]))
    assert rows.truncated.tolist() == [False, True, False]
    assert ids(rows, 1) == words_tokenizer()("bad " * 10)["input_ids"]
    with pytest.raises(StageError, match=r"sample r0001 has more than 12 tokens \(1 rows of"):
        reader(truncate="refuse").rows(table(["good", "bad " * 40]))


def test_an_empty_text_without_special_tokens_is_one_token() -> None:
    rows = reader(bytes_tokenizer()).rows(table(["", "good"]))
    assert ids(rows, 0) == [bytes_tokenizer().bos_token_id]


def test_batches_hold_every_row_once_within_rows_and_tokens() -> None:
    lengths = np.random.default_rng(0).integers(1, 40, 500)
    found = batches(lengths, 30, 128)
    assert sorted(np.concatenate(found).tolist()) == list(range(500))
    for rows in found:
        assert len(rows) <= 30
        assert len(rows) == 1 or len(rows) * lengths[rows].max() <= 128
    assert [len(rows) for rows in batches(np.array([500, 3]), 9, 64)] == [1, 1]


def test_rows_kept_in_memory_can_be_taken_in_any_order() -> None:
    rows = reader().rows(table(texts(20, longest=8)))
    some = rows.take(torch.tensor([7, 2]))
    assert some.ids[0, 1, : some.mask[0, 1].sum()].tolist() == ids(rows, 2)
    shuffled = rows.sides[0].ordered(np.array([3, 1, 1]))
    again = dataclasses.replace(rows, sides=(shuffled,))
    assert [ids(again, n) for n in range(3)] == [ids(rows, n) for n in (3, 1, 1)]
    assert again.digests() == [rows.digests()[n] for n in (3, 1, 1)]
    assert len(set(rows.digests())) == len({tuple(ids(rows, n)) for n in range(20)})


# -- views -----------------------------------------------------------------------------------------


def view(batch: Tokens, keys: list[str], number: int = 1, views: Views = VIEWS) -> Tokens:
    own = reader()
    assert own.mask is not None
    return masked(batch, pa.array(keys), views, number, "c", mask=own.mask, special=own.special)


def test_a_view_is_the_same_in_any_batch_and_another_for_each_number_and_seed() -> None:
    rows, keys = reader().rows(table(texts(30, longest=9))), [f"r{n:04d}" for n in range(30)]
    whole = view(rows.take(torch.arange(30)), keys)
    for row in (0, 11, 29):
        alone = view(rows.take(torch.tensor([row])), [keys[row]])
        assert torch.equal(alone.ids[0, 0], whole.ids[0, row, : alone.ids.shape[2]])
    for other in (
        view(rows.take(torch.arange(30)), keys, 2),
        view(rows.take(torch.arange(30)), keys, 1, VIEWS.model_copy(update={"seed": 1})),
    ):
        assert not torch.equal(other.ids, whole.ids)


def test_a_view_masks_the_asked_share_and_never_a_special_token() -> None:
    own = words_tokenizer()
    rows = reader(max_length=200).rows(table(["good " * 150 for _ in range(40)]))
    plain = rows.take(torch.arange(40))
    seen = view(plain, [f"k{n}" for n in range(40)])
    changed = seen.ids != plain.ids
    assert set(seen.ids[changed].tolist()) == {own.mask_token_id}
    assert not changed[torch.isin(plain.ids, torch.tensor(own.all_special_ids))].any()
    assert float(changed.sum() / (40 * 150)) == pytest.approx(0.3, abs=0.02)


def test_views_belong_to_one_kind_of_input() -> None:
    assert Views().of("image") == Views()
    assert Views().of("text") == Views(count=0)
    both = Views(count=3, mask=0.15, seed=4)
    assert both.of("text") == Views(count=3, augment=Affine(), seed=4, mask=0.15)
    assert both.of("image") == Views(count=3, seed=4)
    assert both.of("text").of("text") == both.of("text")
    assert both.of("text").of("image").count == 0
    with pytest.raises(ValueError, match="change nothing are copies"):
        Views(augment=Affine())


def test_a_share_of_masked_tokens_bears_identity_only_where_it_is_given() -> None:
    assert "mask" not in Views().semantic()
    assert Views(mask=0.15).semantic()["mask"] == 0.15


# -- pooling ---------------------------------------------------------------------------------------


def test_pooling_reads_a_rows_own_tokens_wherever_its_padding_is() -> None:
    hidden = torch.randn(1, 5, 3)
    right, left = torch.tensor([[1, 1, 1, 0, 0]]), torch.tensor([[0, 0, 1, 1, 1]])
    assert torch.equal(pooled(hidden, right, "last"), hidden[:, 2])
    assert torch.equal(pooled(hidden, left, "last"), hidden[:, 4])
    assert torch.equal(pooled(hidden, right, "cls"), hidden[:, 0])
    assert torch.equal(pooled(hidden, left, "cls"), hidden[:, 2])
    assert torch.allclose(pooled(hidden, left, "mean"), hidden[:, 2:].mean(1))
    u, v = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, -1.0]])
    assert joined(u, v).tolist() == [[1, 2, 3, -1, 2, 3, 3, -2]]
