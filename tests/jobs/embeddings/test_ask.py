"""Buying vectors from a server that fails in every way: paid once, checked, said in a sentence."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedding_server import DIM, Reply, Stub, error, serving, vector
from jobs.contract import StageError
from jobs.embeddings import ask
from jobs.embeddings.ask import CANARY, Bought, ParkedError, buy
from jobs.embeddings.ledger import Ledger
from jobs.embeddings.texts import key_of
from jobs.encoders.api import ApiEncoder
from jobs.storage.folder import Folder

TEXTS = [f"a remark about film number {n}, which is {n % 7} stars long" for n in range(1000)]


@pytest.fixture
def stub() -> Iterator[Stub]:
    with serving() as found:
        yield found


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ask, "FIRST_PAUSE", 0.01)


def encoder(stub: Stub, **changes: Any) -> ApiEncoder:
    given = {"name": "ada", "base_url": stub.url, "model": "text-embedding-ada-002"}
    return ApiEncoder.model_validate({**given, "batch_rows": 50, **changes})


def bought(
    root: Path, own: ApiEncoder, texts: Sequence[str] = TEXTS, **more: Any
) -> tuple[Bought, Ledger]:
    ledger = Ledger.of(Folder.of(root), own)
    ledger.begin(own)
    wanted = {key_of(text): text for text in texts if key_of(text) not in ledger}
    return buy(wanted, own, ledger, **more), Ledger.of(Folder.of(root), own)


def vectors(ledger: Ledger, texts: Sequence[str] = TEXTS) -> np.ndarray:
    return ledger.vectors([key_of(text) for text in texts])


def expected(texts: Sequence[str] = TEXTS) -> np.ndarray:
    return np.stack([vector(text) for text in texts])


def test_every_text_is_bought_once_and_its_vector_is_kept_exactly(
    stub: Stub, tmp_path: Path
) -> None:
    found, ledger = bought(tmp_path, encoder(stub))
    assert (found.texts, found.of) == (1000, 1000)
    assert np.array_equal(vectors(ledger), expected())
    assert set(stub.sold.values()) == {1}
    assert len(stub.requests) == 1 + 20
    assert ledger.paid.usage == stub.tokens == ledger.paid.counted


def test_an_encoding_is_always_asked_for(stub: Stub, tmp_path: Path) -> None:
    bought(tmp_path, encoder(stub), TEXTS[:3])
    assert {one["encoding_format"] for one in stub.requests} == {"float"}
    assert all("dimensions" not in one for one in stub.requests)


def test_base64_and_other_fields_of_a_request_come_from_extra(stub: Stub, tmp_path: Path) -> None:
    own = encoder(stub, extra={"encoding_format": "base64", "input_type": "query"}, dimensions=DIM)
    _, ledger = bought(tmp_path, own, TEXTS[:60])
    assert np.array_equal(vectors(ledger, TEXTS[:60]), expected(TEXTS[:60]))
    asked = {
        (one["encoding_format"], one["input_type"], one["dimensions"]) for one in stub.requests
    }
    assert asked == {("base64", "query", DIM)}


def test_requests_run_at_once_as_many_as_asked_for(stub: Stub, tmp_path: Path) -> None:
    stub.delay = 0.1
    bought(tmp_path, encoder(stub, concurrency=3))
    assert stub.most_at_once == 3


def test_vectors_are_put_into_the_order_of_the_texts(stub: Stub, tmp_path: Path) -> None:
    stub.change = lambda items, texts: items.reverse()
    _, ledger = bought(tmp_path, encoder(stub))
    assert np.array_equal(vectors(ledger), expected())


# -- a busy server ---------------------------------------------------------------------------------


def test_retry_after_is_waited_for_by_every_slot(stub: Stub, tmp_path: Path) -> None:
    def fault(texts: Sequence[str], number: int) -> Reply | None:
        return error(429, "slow down", Retry_After="3") if number == 2 else None

    stub.fault = fault
    _, ledger = bought(tmp_path, encoder(stub, concurrency=1))
    assert stub.times[2] - stub.times[1] >= 3.0
    assert np.array_equal(vectors(ledger), expected())


def test_retry_after_may_be_a_date(stub: Stub, tmp_path: Path) -> None:
    when = format_datetime(datetime.now(UTC) + timedelta(seconds=3), usegmt=True)
    stub.faults = [error(503, "later", Retry_After=when)]
    bought(tmp_path, encoder(stub), TEXTS[:1])
    assert stub.times[1] - stub.times[0] >= 1.5  # a date has whole seconds


def test_five_percent_of_failures_change_no_vector(stub: Stub, tmp_path: Path) -> None:
    stub.fault = lambda texts, number: error(503, "busy") if number % 20 == 0 else None
    own = encoder(stub, batch_rows=5)
    _, ledger = bought(tmp_path, own)
    assert len(stub.requests) > 201
    assert np.array_equal(vectors(ledger), expected())
    assert set(stub.sold.values()) == {1}


def test_a_wait_of_more_than_two_minutes_parks_the_step(stub: Stub, tmp_path: Path) -> None:
    stub.fault = lambda texts, number: (
        error(429, "tomorrow", Retry_After="3600") if number > 5 else None
    )
    own = encoder(stub, concurrency=1)
    started = time.monotonic()
    with pytest.raises(ParkedError, match=r"asks to wait 3600 s.*200 of 1,000 texts.*goes on"):
        bought(tmp_path, own)
    assert time.monotonic() - started < 30
    stub.fault = None
    before = len(stub.requests)
    _, ledger = bought(tmp_path, own)
    assert len(stub.requests) - before == 1 + 16
    assert np.array_equal(vectors(ledger), expected())


def test_growing_pauses_end_in_parking_too(
    stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ask, "PATIENCE", 0.5)
    stub.fault = lambda texts, number: error(500, "broken") if number > 1 else None
    with pytest.raises(ParkedError, match=r"did not answer \(500: broken\)"):
        bought(tmp_path, encoder(stub))


def test_a_server_that_hangs_is_not_waited_for_for_ever(
    stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ask, "PATIENCE", 0.5)
    stub.delay = 3.0
    with pytest.raises(ParkedError, match=r"no answer in 0\.2 s"):
        bought(tmp_path, encoder(stub, timeout=0.2), TEXTS[:3])


# -- what ends the step ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (error(429, "You exceeded your quota", "insufficient_quota"), "no credit left"),
        (error(401, "Incorrect API key provided"), "key is not accepted"),
        (error(403, "Not for you"), "may not use this model"),
        (error(404, "The model does not exist"), "no such model"),
    ],
)
def test_what_waiting_cannot_cure_ends_the_step_at_once(
    stub: Stub, tmp_path: Path, fault: Reply, words: str
) -> None:
    stub.fault = lambda texts, number: fault if number > 1 else None
    with pytest.raises(StageError, match=words) as raised:
        bought(tmp_path, encoder(stub, concurrency=2))
    assert "\n" not in str(raised.value)
    assert len(stub.requests) <= 1 + 2


def test_a_missing_key_is_said_before_a_request(stub: Stub, tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"variable NO_SUCH_KEY of the process .* is not set"):
        bought(tmp_path, encoder(stub, key_env="NO_SUCH_KEY"))
    assert stub.requests == []


def test_a_server_that_gives_another_length_than_asked_for_ends_the_step(
    stub: Stub, tmp_path: Path
) -> None:
    with pytest.raises(StageError, match=r"vectors of 8 numbers were asked for .* has 16"):
        bought(tmp_path, encoder(stub, dimensions=8))
    assert len(stub.requests) == 1


def test_a_server_that_cuts_texts_silently_is_found_out(stub: Stub, tmp_path: Path) -> None:
    stub.usage_of = lambda texts: 16 * len(texts) if len(texts) > 1 else 18
    long = [f"{text} " + "and so on " * 50 for text in TEXTS[:10]]
    with pytest.raises(StageError, match="cuts long texts without a word"):
        bought(tmp_path, encoder(stub), long)


@pytest.mark.parametrize("kind", ["fewer", "twice", "null"])
def test_an_answer_that_cannot_be_matched_is_asked_again_a_few_times(
    stub: Stub, tmp_path: Path, kind: str
) -> None:
    def change(items: list[dict[str, Any]], texts: Sequence[str]) -> None:
        if len(texts) == 1:
            return
        if kind == "fewer":
            items.pop()
        elif kind == "twice":
            items[1]["index"] = 0
        else:
            items[0]["embedding"] = None

    stub.change = change
    with pytest.raises(StageError, match=r"its answer .*, 3 times in a row"):
        bought(tmp_path, encoder(stub, concurrency=1), TEXTS[:10])
    assert len(stub.requests) == 1 + 3


# -- bad texts -------------------------------------------------------------------------------------


def test_one_bad_text_among_a_thousand_stands_alone(stub: Stub, tmp_path: Path) -> None:
    bad = TEXTS[637]
    stub.fault = lambda texts, number: error(400, "invalid input") if bad in texts else None
    found, ledger = bought(tmp_path, encoder(stub, batch_rows=256))
    assert found.refused == {key_of(bad): "400: invalid input"}
    good = [text for text in TEXTS if text != bad]
    assert np.array_equal(vectors(ledger, good), expected(good))
    assert set(stub.sold.values()) == {1}


@pytest.mark.parametrize(
    ("value", "why"), [(float("nan"), "not finite"), (0.0, "all zero")], ids=["nan", "zero"]
)
def test_a_useless_vector_costs_its_text_alone(
    stub: Stub, tmp_path: Path, value: float, why: str
) -> None:
    def change(items: list[dict[str, Any]], texts: Sequence[str]) -> None:
        if TEXTS[5] in texts:
            items[list(texts).index(TEXTS[5])]["embedding"] = [value] * DIM

    stub.change = change
    found, ledger = bought(tmp_path, encoder(stub))
    assert found.refused == {key_of(TEXTS[5]): f"its vector is {why}"}
    assert len(ledger) == 1000  # 999, and the canary


def test_a_server_that_refuses_everything_is_not_asked_for_every_text(
    stub: Stub, tmp_path: Path
) -> None:
    stub.fault = lambda texts, number: error(422, "no") if texts != [CANARY] else None
    with pytest.raises(StageError, match="refuses every text"):
        bought(tmp_path, encoder(stub))
    assert len(stub.requests) < 150


# -- the model behind the name ---------------------------------------------------------------------


def test_another_model_behind_the_name_is_refused_and_can_be_accepted(
    stub: Stub, tmp_path: Path
) -> None:
    own = encoder(stub)
    bought(tmp_path, own, TEXTS[:100])
    stub.model = "second"
    before = len(stub.requests)
    with pytest.raises(StageError, match=r"has changed.*--accept-drift"):
        bought(tmp_path, own)
    assert len(stub.requests) == before + 1
    _, ledger = bought(tmp_path, own.model_copy(update={"accept_drift": True}))
    assert np.array_equal(vectors(ledger, TEXTS[:100]), expected(TEXTS[:100]))
    assert np.array_equal(vectors(ledger, TEXTS[500:501])[0], vector(TEXTS[500], "second"))
    assert [one.cosine < 0.99 for one in ledger.drifts()] == [True]
    bought(tmp_path, own, ["one more"])  # the accepted model is the one to compare with


def test_a_little_noise_in_the_vectors_is_no_other_model(stub: Stub, tmp_path: Path) -> None:
    own = encoder(stub)
    bought(tmp_path, own, TEXTS[:10])

    def change(items: list[dict[str, Any]], texts: Sequence[str]) -> None:
        for item in items:
            item["embedding"][0] += 1e-3

    stub.change = change
    bought(tmp_path, own, TEXTS[:20])


# -- money -----------------------------------------------------------------------------------------


def test_a_server_that_counts_more_is_not_paid_above_the_limit(stub: Stub, tmp_path: Path) -> None:
    stub.usage_of = lambda texts: 200 * len(texts)
    own = encoder(stub, price_per_million=1000, max_price=50, concurrency=1, tokens="characters")
    with pytest.raises(StageError, match="max_price is 50"):
        bought(tmp_path, own)
    assert stub.tokens * 1000 / 1e6 <= 50


def test_a_stop_keeps_what_is_in_flight(stub: Stub, tmp_path: Path) -> None:
    stub.delay = 0.2
    asked = iter([False] * 3)
    found, ledger = bought(tmp_path, encoder(stub), stopping=lambda: next(asked, True))
    assert 0 < found.texts < 1000
    assert len(ledger) == len(stub.sold)
