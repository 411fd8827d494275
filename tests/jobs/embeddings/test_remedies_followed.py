"""What a message about an encoder behind an API tells its user to do works when it is done.

Each case raises its message, from the settings or from a stub server; the remedy is read from the
message and followed; then every text has its vector.
"""

import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from embedding_server import Stub, error, serving, vector
from followed import Table
from jobs.contract import StageError
from jobs.embeddings import ask, client, tokens
from jobs.embeddings.ask import buy
from jobs.embeddings.client import Client
from jobs.embeddings.ledger import Ledger
from jobs.embeddings.texts import key_of, sent
from jobs.embeddings.tokens import counter
from jobs.encoders import known
from jobs.encoders.api import ApiEncoder
from jobs.storage.folder import Folder

TEXTS = [f"a remark about film number {n}, which is {n % 7} stars long" for n in range(6)]


@pytest.fixture(autouse=True)
def _no_certificates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stub speaks plain HTTP, and reading all certificates was most of a test's cost."""
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))


@dataclass
class Case:
    """An encoder that is refused, with what following the message needs."""

    stub: Stub
    settings: dict[str, Any]
    environment: pytest.MonkeyPatch
    texts: list[str] = field(default_factory=lambda: [*TEXTS])
    pairs: list[str | None] = field(default_factory=lambda: [None] * len(TEXTS))

    def set(self, **fields: Any) -> None:
        self.settings |= fields

    def refuse(self, *reply: Any, unless: Callable[[dict[str, Any]], bool]) -> None:
        """Let the server refuse every request whose fields are not these."""
        self.stub.fault = lambda texts, number: (
            None if unless(self.stub.requests[-1]) else error(*reply)
        )

    def buy(self, root: Path) -> list[np.ndarray]:
        """The vectors of the texts, of each side."""
        own = ApiEncoder.model_validate(self.settings)
        keys = [f"k{n}" for n in range(len(self.texts))]
        rows = pa.table(
            {"key": keys, "text": self.texts, "pair": pa.array(self.pairs, pa.string())}
        )
        sides = sent(rows, own, counter(own.table)).sides
        ledger = Ledger.of(Folder.of(root), own)
        ledger.begin(own)
        lacking = {key_of(t): t for side in sides for t in side if key_of(t) not in ledger}
        found = buy(lacking, own, ledger)
        assert not found.refused
        ledger = Ledger.of(Folder.of(root), own)
        return [ledger.vectors([key_of(text) for text in side]) for side in sides]


Follow = Callable[[Case, re.Match[str]], object]
CASES = Table()
case = CASES.case


def set_to(**fields: Any) -> Follow:
    return lambda case, found: case.set(**fields)


def drop(*names: str) -> Follow:
    return lambda case, found: [case.settings.pop(name) for name in names]


# -- the settings ----------------------------------------------------------------------------------


@case(
    r"give one like (?P<scheme>https?)://",
    lambda case, found: case.set(base_url=case.stub.url),
)
def an_address_without_a_scheme(case: Case) -> None:
    case.set(base_url=case.stub.url.partition("://")[2])


@case(
    r"has a user, a password or a query; .* and other fields by (?P<field>extra)",
    lambda case, found: case.set(base_url=case.stub.url, **{found["field"]: {"user": "me"}}),
)
def an_address_with_a_query(case: Case) -> None:
    case.set(base_url=f"{case.stub.url}?user=me")


@case(
    r"give the key by an environment variable \((?P<field>key_env)\)",
    lambda case, found: (
        case.environment.setenv("OWN_KEY", "secret-of-mine"),
        case.set(base_url=case.stub.url, **{found["field"]: "OWN_KEY"}),
    ),
)
def an_address_with_a_password(case: Case) -> None:
    case.set(base_url=case.stub.url.replace("://", "://me:secret-of-mine@"))


@case(
    r"(?P<field>dimensions) is a field of its own; take it out of extra",
    lambda case, found: case.set(
        extra={}, **{found["field"]: case.settings["extra"][found["field"]]}
    ),
)
def a_field_in_extra(case: Case) -> None:
    case.set(extra={"dimensions": 16})


@case(
    r"looks like a key, which would be stored; give it by (?P<field>key_env)",
    lambda case, found: (
        case.environment.setenv("OWN_KEY", "secret-of-mine"),
        case.set(extra={}, **{found["field"]: "OWN_KEY"}),
    ),
)
def a_key_in_extra(case: Case) -> None:
    case.set(extra={"api_key": "secret-of-mine"})


@case(
    r"without (?P<field>price_per_million) nothing has a price; give it too",
    lambda case, found: case.set(**{found["field"]: 0.1}),
)
def a_limit_without_a_price(case: Case) -> None:
    case.set(max_price=1)


@case(
    r"the environment variable (?P<name>\w+) of the process that runs the sweep is not set; set it",
    lambda case, found: case.environment.setenv(found["name"], "secret-of-mine"),
)
def a_key_that_is_not_set(case: Case) -> None:
    case.environment.delenv("OWN_KEY", raising=False)
    case.set(key_env="OWN_KEY")


# -- the texts -------------------------------------------------------------------------------------


@case(
    r"sample k(?P<row>\d) has no second text .*; give every row a pair",
    lambda case, found: case.pairs.__setitem__(int(found["row"]), "or not"),
)
def a_row_without_a_second_text(case: Case) -> None:
    case.pairs = ["or not"] * 3 + [None] + ["or not"] * 2


@case(r"give every row a pair, or none$", lambda case, found: case.pairs.__setitem__(3, None))
def a_row_with_a_second_text(case: Case) -> None:
    case.pairs[3] = "or not"


@case(
    r"set the encoder's (?P<field>max_length) higher",
    lambda case, found: case.set(**{found["field"]: 1000}),
)
def texts_that_are_too_long(case: Case) -> None:
    case.set(max_length=4, truncate="refuse")


@case(
    r"or (?P<field>truncate): (?P<value>end)$",
    lambda case, found: case.set(**{found["field"]: found["value"]}),
)
def texts_that_may_be_cut(case: Case) -> None:
    case.set(max_length=4, truncate="refuse")


# -- the server ------------------------------------------------------------------------------------


def serve(case: Case, found: re.Match[str]) -> None:
    """Follow what is done outside of the tool: the server then answers."""
    case.stub.fault = None


@case(r"the account has no credit left .*; pay, then sweep again$", serve)
def no_credit(case: Case) -> None:
    case.stub.fault = lambda texts, number: error(429, "too much", "insufficient_quota")


@case(r"it wants to be paid first; settle the account", serve)
def a_bill(case: Case) -> None:
    case.stub.fault = lambda texts, number: error(402, "pay")


@case(
    r"the key is not accepted; correct the environment variable (?P<name>\w+) ",
    lambda case, found: case.environment.setenv(found["name"], "right-key-of-mine"),
)
def a_wrong_key(case: Case) -> None:
    case.environment.setenv("OWN_KEY", "wrong-key-of-mine")
    case.set(key_env="OWN_KEY")
    case.stub.fault = lambda texts, number: (
        error(401, "no") if "wrong" in case.stub.headers[-1]["authorization"] else None
    )


@case(
    r"correct key_env, or name another (?P<field>model) ",
    lambda case, found: case.set(**{found["field"]: "text-embedding-3-small"}),
)
def a_model_that_is_not_allowed(case: Case) -> None:
    case.refuse(403, "no", unless=lambda asked: asked["model"] == "text-embedding-3-small")


@case(
    r"no such model or address; correct base_url and (?P<field>model) ",
    lambda case, found: case.set(**{found["field"]: "text-embedding-3-small"}),
)
def a_model_that_does_not_exist(case: Case) -> None:
    case.refuse(404, "no", unless=lambda asked: asked["model"] == "text-embedding-3-small")


@case(
    r"its answer has (?P<value>\d+); correct (?P<field>dimensions)",
    lambda case, found: case.set(**{found["field"]: int(found["value"])}),
)
def other_dimensions(case: Case) -> None:
    case.set(dimensions=8)


@case(r"correct dimensions, or leave it out for the model's own$", drop("dimensions"))
def other_dimensions_than_the_model_has(case: Case) -> None:
    case.set(dimensions=8)


@case(
    r"it refuses even a short plain text .*; correct model, (?P<field>dimensions) or extra$",
    drop("dimensions"),
)
def dimensions_that_a_model_does_not_take(case: Case) -> None:
    case.set(dimensions=16)
    case.refuse(400, "no dimensions", unless=lambda asked: "dimensions" not in asked)


@case(
    r"it refuses every text .*; correct (?P<field>max_length) or extra$",
    lambda case, found: case.set(**{found["field"]: 8}),
)
def texts_that_the_model_cannot_read(case: Case) -> None:
    def long(texts: Sequence[str]) -> bool:
        return max(map(len, texts)) > 100

    case.texts = [text * 4 for text in TEXTS]
    case.stub.fault = lambda texts, number: error(400, "too long") if long(texts) else None


@case(
    r"set (?P<field>max_length) to what the model reads",
    lambda case, found: case.set(**{found["field"]: 16}),
)
def texts_that_the_server_cuts(case: Case) -> None:
    case.texts = [text * 4 for text in TEXTS]
    case.stub.usage_of = lambda texts: 16 * len(texts) if len(texts) > 1 else 18


@case(
    r"or (?P<field>tokens): (?P<value>characters)$",
    lambda case, found: case.set(**{found["field"]: found["value"]}),
)
def a_server_that_counts_otherwise(case: Case) -> None:
    case.texts = [text * 4 for text in TEXTS]
    case.stub.usage_of = lambda texts: 16 * len(texts) if len(texts) > 1 else 18


@case(
    r"max_price is 0\.01: .*; raise (?P<field>max_price) and sweep again$",
    lambda case, found: case.set(**{found["field"]: 100}),
)
def a_price_above_the_limit(case: Case) -> None:
    case.set(price_per_million=1000, max_price=0.01)


@case(r"in a row; correct base_url, or sweep again$", lambda c, m: setattr(c.stub, "change", None))
def answers_without_vectors(case: Case) -> None:
    case.stub.change = lambda items, texts: items.clear()


@pytest.mark.parametrize("name", CASES)
def test_a_remedy_works_when_it_is_followed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, remedy, follow = CASES[name]
    monkeypatch.setattr(ask, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(ask, "ALL_REFUSED", len(TEXTS))
    with serving() as stub:
        own = {"name": "ada", "base_url": stub.url, "model": "text-embedding-ada-002"}
        refused = Case(stub, own, monkeypatch)
        make(refused)
        with pytest.raises((StageError, ValidationError)) as caught:
            refused.buy(tmp_path)
        message = str(caught.value).partition(" [type=")[0]
        found = re.search(remedy, message)
        assert found is not None, message
        follow(refused, found)
        vectors = refused.buy(tmp_path)
    if refused.settings.get("max_length") is None:
        assert np.array_equal(vectors[0], np.stack([vector(text) for text in refused.texts]))
    assert [len(side) for side in vectors] == [len(TEXTS)] * (1 + (refused.pairs[0] is not None))


def test_a_package_that_is_missing_is_installed_or_not_needed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = {"name": "ada", "base_url": "http://h/v1", "model": "text-embedding-ada-002"}
    ada, install = ApiEncoder.model_validate(own), r"; install nml-orch\[api\]"
    calls: list[tuple[Callable[[], object], str]] = [
        (lambda: counter("cl100k_base"), f"{install}, or set the encoder's tokens to characters$"),
        (lambda: Client(ada), f"{install}$"),
    ]
    counter.cache_clear()
    with monkeypatch.context() as without:
        for module in (tokens, client, known):
            without.setattr(module, "find_spec", lambda name: None)
        for call, remedy in calls:
            with pytest.raises(StageError, match=remedy):
                call()
        assert re.search(f"needs openai and bpe_openai{install}$", known.check_names(ada) or "")
        assert counter("characters").count("a word") > 0
    assert [call() for call, _ in calls]
    assert known.check_names(ada) is None


@pytest.mark.parametrize("remedy", ["accept_drift", "name"])
def test_a_model_that_changed_behind_its_name_is_accepted_or_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, remedy: str
) -> None:
    with serving() as stub:
        own = {"name": "ada", "base_url": stub.url, "model": "text-embedding-ada-002"}
        one = Case(stub, own, monkeypatch)
        one.buy(tmp_path)
        stub.model, one.texts = "second", [f"{text}!" for text in TEXTS]
        with pytest.raises(StageError, match=r"the model's new name, or .* `.*--accept-drift`"):
            one.buy(tmp_path)
        one.set(**{"accept_drift": True} if remedy == "accept_drift" else {"model": "ada-003"})
        wanted = np.stack([vector(text, "second") for text in one.texts])
        assert np.array_equal(one.buy(tmp_path)[0], wanted)


@pytest.mark.parametrize("remedy", ["model", "dimensions"])
def test_a_model_whose_vectors_have_another_length_is_another_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, remedy: str
) -> None:
    with serving() as stub:
        own = {"name": "ada", "base_url": stub.url, "model": "text-embedding-ada-002"}
        one = Case(stub, own, monkeypatch)
        one.buy(tmp_path)
        stub.dim, one.texts = 5, [f"{text}!" for text in TEXTS]
        with pytest.raises(StageError, match=r"give the encoder another model, or dimensions$"):
            one.buy(tmp_path)
        one.set(**{"dimensions": 5} if remedy == "dimensions" else {"model": "ada-003"})
        assert one.buy(tmp_path)[0].shape == (len(TEXTS), 5)


def test_a_damaged_ledger_gives_its_vectors_once_it_is_restored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving() as stub:
        own = {"name": "ada", "base_url": stub.url, "model": "text-embedding-ada-002"}
        one = Case(stub, own, monkeypatch)
        one.buy(tmp_path / "store")
        shutil.copytree(tmp_path / "store", tmp_path / "copy")
        for file in (tmp_path / "store").rglob("*.arrow"):
            file.write_bytes(file.read_bytes()[:-100])
        with pytest.raises(StageError, match=r"; restore it from a copy; .*") as caught:
            one.buy(tmp_path / "store")
        damaged = Path(str(caught.value).partition(" is not what")[0].removeprefix("file://"))
        assert damaged.is_relative_to(tmp_path / "store")
        for file in (tmp_path / "copy").rglob("*.arrow"):
            shutil.copy(file, tmp_path / "store" / file.relative_to(tmp_path / "copy"))
        sold = stub.sold.total()
        assert len(one.buy(tmp_path / "store")[0]) == len(TEXTS)
        assert stub.sold.total() == sold + 1  # the canary, and no text again
