"""Features of an encoder behind an API: bought once for all tasks, then read from the ledger."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from embedding_server import DIM, Stub, error, serving, vector
from jobs.contract import Hooks, Outcome, StageError, Work
from jobs.embeddings.ledger import Ledger
from jobs.encoders.api import ApiEncoder
from jobs.features import api
from jobs.features.api import buy_texts, write_features
from jobs.features.spec import FeaturesStep
from jobs.images.spec import Views
from jobs.storage.folder import Folder
from tests.jobs.text.models import put_corpus, table, texts

FIRST, SECOND = texts(90, seed=1), texts(90, seed=2)


@pytest.fixture
def stub() -> Iterator[Stub]:
    with serving() as found:
        yield found


@dataclass
class Leases:
    """A lease that another sweep holds for a while."""

    refusals: int = 0
    held: list[str] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)

    def acquire(self, address: str) -> bool:
        self.seen.append(address)
        if self.refusals:
            self.refusals -= 1
            return False
        self.held.append(address)
        return True

    def holds(self, address: str) -> bool:
        return address in self.held

    def release(self, address: str) -> None:
        self.held.remove(address)


def hooks(leases: Leases | None = None, said: list[str] | None = None) -> Hooks:
    def say(address: str, share: float, words: str) -> None:
        if said is not None:
            said.append(words)

    return Hooks(lambda *_: None, say, lambda: False, leases)


def work(root: Path, stub: Stub, name: str, pairs: bool = False, **changes: Any) -> Work:
    """A features step over 60 training and 30 test rows."""
    given = {"name": "ada", "base_url": stub.url, "model": "text-embedding-ada-002"}
    own = ApiEncoder.model_validate({**given, "batch_rows": 16, **changes})
    rows = table(FIRST, list(SECOND) if pairs else None)
    parts = {"train": rows.slice(0, 60), "validation": rows.slice(0, 0), "test": rows.slice(60)}
    corpus = put_corpus(Folder.of(root / f"corpus-{name}"), parts)
    step = FeaturesStep(images=name, parts=("train", "test"), views=Views(count=0), api=own)
    address = f"features/encoder/ada/{name}"
    folder = Folder.of(root / "store")
    scratch = Folder.of(root / "scratch" / name)
    return Work(address, "f", step, {"corpus": corpus}, folder / address, scratch)


def done(*works: Work, given: Hooks | None = None) -> dict[str, Outcome | Exception]:
    found: dict[str, Outcome | Exception] = {}
    for one, failed in buy_texts(works, given or hooks()):
        found[one.address] = failed or write_features(one)
    return found


def features(one: Work, part: str) -> np.ndarray:
    read = pq.read_table(Path(one.output.uri) / f"features-{part}.parquet")
    return np.stack(read["vector"].to_numpy())


def test_features_are_the_vectors_of_the_rows(stub: Stub, tmp_path: Path) -> None:
    one = work(tmp_path, stub, "films")
    outcome = done(one)[one.address]
    assert isinstance(outcome, Outcome)
    assert (outcome.counts["rows_train"], outcome.counts["dim"]) == (60, DIM)
    assert np.array_equal(features(one, "train"), np.stack([vector(t) for t in FIRST[:60]]))
    assert np.array_equal(features(one, "test"), np.stack([vector(t) for t in FIRST[60:]]))
    assert "ledger" in one.output.read_json("extraction.json")


def test_two_texts_of_a_row_are_sent_by_themselves(stub: Stub, tmp_path: Path) -> None:
    one = work(tmp_path, stub, "pairs", pairs=True)
    assert isinstance(done(one)[one.address], Outcome)
    u, v = (np.stack([vector(t) for t in side[60:]]) for side in (FIRST, SECOND))
    assert np.array_equal(
        features(one, "test"), np.concatenate([u, v, np.abs(u - v), u * v], axis=1)
    )


def test_a_second_task_over_the_same_texts_costs_nothing(stub: Stub, tmp_path: Path) -> None:
    done(work(tmp_path, stub, "films"))
    requests = len(stub.requests)
    more = work(tmp_path, stub, "more")
    assert isinstance(done(more)[more.address], Outcome)
    assert len(stub.requests) == requests


def test_what_is_in_the_ledger_needs_neither_key_nor_server(
    stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "planted-1234")
    done(work(tmp_path, stub, "films", key_env="MY_KEY"))
    assert {one["authorization"] for one in stub.headers} == {"Bearer planted-1234"}
    monkeypatch.delenv("MY_KEY")
    stub.fault = lambda texts, number: error(500, "gone")
    again = work(tmp_path, stub, "films", key_env="MY_KEY")
    assert isinstance(done(again)[again.address], Outcome)


def test_a_bad_text_is_named_by_its_samples_and_the_rest_is_kept(
    stub: Stub, tmp_path: Path
) -> None:
    bad = FIRST[7]
    stub.fault = lambda texts, number: error(400, "bad words") if bad in texts else None
    named = [f"r{n:04d}" for n, text in enumerate(FIRST) if text == bad]
    one = work(tmp_path, stub, "films")
    found = done(one)[one.address]
    assert isinstance(found, StageError)
    assert f"no vector for {len(named)} samples ({', '.join(named)}): 400: bad words" in str(found)
    own = one.spec.api  # type: ignore[attr-defined]
    assert len(Ledger.of(one.root, own)) == len(set(FIRST))  # one less, and the canary


def test_a_price_above_the_limit_is_refused_before_the_first_request(
    stub: Stub, tmp_path: Path
) -> None:
    both = [work(tmp_path, stub, name, price_per_million=1e4, max_price=5) for name in ("a", "b")]
    found = done(*both)
    assert {type(one) for one in found.values()} == {StageError}
    assert "more than max_price 5" in str(found[both[0].address])
    assert stub.requests == []


def test_the_limit_is_of_all_that_one_process_spends(stub: Stub, tmp_path: Path) -> None:
    cheap = {"price_per_million": 1e4, "max_price": 25}
    one = work(tmp_path, stub, "films", **cheap)
    assert isinstance(done(one)[one.address], Outcome)
    other = work(tmp_path, stub, "pairs", pairs=True, **cheap)
    assert "is spent, more than max_price" in str(done(other)[other.address])


def test_the_estimated_price_is_what_the_server_reports(stub: Stub, tmp_path: Path) -> None:
    one = work(tmp_path, stub, "films", tokens="characters", price_per_million=1000)
    own = one.spec.api  # type: ignore[attr-defined]
    done(one)
    ledger = Ledger.of(one.root, own)
    assert ledger.paid.usage == stub.tokens
    assert ledger.paid.price == pytest.approx(stub.tokens / 1000)
    pairs = work(tmp_path, stub, "pairs", pairs=True, tokens="characters", price_per_million=1000)
    estimated = api.estimate(own, ledger, api._lacking(pairs, own, ledger).values())
    before = stub.tokens
    done(pairs)
    assert estimated.tokens == pytest.approx(stub.tokens - before, rel=0.05)


def test_one_process_asks_and_others_wait(
    stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "LEASE_POLL", 0.01)
    leases, said = Leases(refusals=3), list[str]()
    one = work(tmp_path, stub, "films")
    assert isinstance(done(one, given=hooks(leases, said))[one.address], Outcome)
    assert len(leases.seen) == 4
    assert leases.held == []
    assert "waiting for another sweep, which asks the same model" in said


def test_who_has_lost_the_lease_asks_no_more(
    stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "LEASE_LOOK", 0.0)
    leases = Leases()
    monkeypatch.setattr(leases, "holds", lambda address: False)
    one = work(tmp_path, stub, "films")
    found = done(one, given=hooks(leases))[one.address]
    assert not isinstance(found, StageError)  # so it is tried again
    assert "another sweep has taken the lease" in str(found)
    assert len(stub.requests) <= 5


def test_progress_tells_what_is_spent_and_left(stub: Stub, tmp_path: Path) -> None:
    said: list[str] = []
    one = work(tmp_path, stub, "films", price_per_million=1000, concurrency=1)
    done(one, given=hooks(said=said))
    assert any("of" in words and "spent" in words and "left" in words for words in said), said


def test_vectors_that_float16_cannot_hold_are_refused(stub: Stub, tmp_path: Path) -> None:
    def change(items: list[dict[str, Any]], texts: Any) -> None:
        for item in items:
            item["embedding"][0] = 1e6

    stub.change = change
    one = work(tmp_path, stub, "films")
    spec = one.spec.model_copy(update={"dtype": "float16"})
    half = Work(one.address, "f", spec, one.inputs, one.output, one.scratch)
    with pytest.raises(StageError, match="not finite as float16"):
        done(half)
