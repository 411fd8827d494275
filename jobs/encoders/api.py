"""The settings of an encoder behind an embedding API: a server that gives vectors for texts.

Any server with OpenAI's `/embeddings` protocol. Its answers are kept in a ledger of the store
(`jobs/embeddings/ledger.py`), which is identified by all that decides a text's vector: host, model,
dimensions, extra, prompt and truncation. The key's name, the sizes of requests and the price never
bear identity. A key itself is never a setting.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Annotated, Any, ClassVar, Literal, TypeAlias
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, JsonValue, field_validator

from jobs.contract import NOT_SEMANTIC, Slug, Spec
from jobs.corpus.form import Modality
from jobs.text.spec import Truncate

Table: TypeAlias = Literal["cl100k_base", "o200k_base", "voyage3_base", "characters"]
"""How tokens are counted: by a vocabulary, or four characters as one token."""

ApiPair = Literal["concat4", "join"]

_TABLES: tuple[tuple[str, Table], ...] = (
    ("text-embedding-ada-002", "cl100k_base"),
    ("text-embedding-3", "cl100k_base"),
    ("voyage-3", "voyage3_base"),
)
_LONGEST: dict[Table, int] = {"cl100k_base": 8_191, "o200k_base": 8_191, "voyage3_base": 32_000}
_SECRET = re.compile(r"key|token$|secret|password|authorization", re.IGNORECASE)


def _plain_url(url: str) -> str:
    """The URL in its one form; ValueError if it is none, or holds more than host and path."""
    found = urlsplit(url)
    if found.scheme.lower() not in ("http", "https") or not found.hostname:
        raise ValueError("it is no http(s):// address; give one like https://api.openai.com/v1")
    if found.username or found.password or found.query or found.fragment:
        raise ValueError(
            "it has a user, a password or a query; give the key by an environment variable "
            "(key_env) and other fields by extra"
        )
    return f"{found.scheme.lower()}://{found.netloc.lower()}{found.path.rstrip('/')}"


class ApiEncoder(Spec):
    """A model behind an OpenAI-compatible `/embeddings` API: its weights are never seen."""

    modality: ClassVar[Modality] = "text"

    kind: Literal["api"] = "api"
    name: Slug = Field(description="the encoder's name in addresses and tables")
    base_url: Annotated[str, AfterValidator(_plain_url)] = Field(
        description="the API without /embeddings, as in https://api.openai.com/v1"
    )
    model: str = Field(min_length=1, description="the model's name at that API")
    dimensions: int | None = Field(None, ge=1, description="asked for; none: the model's own")
    extra: dict[str, JsonValue] = Field(
        default_factory=dict, description="further fields of every request, as in input_type"
    )
    prompt: str = Field("", description="stands before each text")
    pair: ApiPair = Field(
        "concat4",
        description="how two texts of a row are read: concat4: each by itself, [u; v; |u - v|; "
        "u * v]; join: with a line break between. A row of one text is that text's vector",
    )
    tokens: Literal["auto"] | Table = Field(
        "auto",
        description="how tokens are counted; auto: by OpenAI's and Voyage's vocabularies for their "
        "models, else four characters as one",
    )
    max_length: int | None = Field(
        None, ge=1, description="tokens of a text; none: 8,191 (Voyage: 32,000; characters: any)"
    )
    truncate: Truncate = Field("end", description="what happens to a longer text")
    key_env: Annotated[str | None, NOT_SEMANTIC] = Field(
        None,
        pattern=r"^[A-Z_][A-Z0-9_]*$",
        description="the environment variable that holds the key, never the key; none: no key",
    )
    batch_rows: Annotated[int, NOT_SEMANTIC] = Field(256, ge=1, description="texts of a request")
    batch_tokens: Annotated[int, NOT_SEMANTIC] = Field(
        250_000, ge=1, description="tokens of a request; a longer text is sent alone"
    )
    concurrency: Annotated[int, NOT_SEMANTIC] = Field(
        4, ge=1, le=256, description="requests at once, of the one process that asks"
    )
    timeout: Annotated[float, NOT_SEMANTIC] = Field(
        60, gt=0, description="seconds to wait for an answer"
    )
    price_per_million: Annotated[float | None, NOT_SEMANTIC] = Field(
        None, ge=0, description="of a million tokens, in any currency"
    )
    max_price: Annotated[float | None, NOT_SEMANTIC] = Field(
        None, ge=0, description="the most that one sweep may cost; needs price_per_million"
    )
    accept_drift: Annotated[bool, NOT_SEMANTIC] = Field(
        False, description="set by `nml-orch sweep --accept-drift`"
    )

    @field_validator("extra")
    @classmethod
    def _no_key_in_extra(cls, extra: dict[str, Any]) -> dict[str, Any]:
        for name in extra:
            if name in ("model", "input", "dimensions"):
                raise ValueError(f"{name} is a field of its own; take it out of extra")
            if _SECRET.search(name):
                raise ValueError(
                    f"{name} looks like a key, which would be stored; give it by key_env"
                )
        return extra

    @field_validator("max_price")
    @classmethod
    def _has_price(cls, most: float | None, info: Any) -> float | None:
        if most is not None and info.data.get("price_per_million") is None:
            raise ValueError("without price_per_million nothing has a price; give it too")
        return most

    @property
    def table(self) -> Table:
        """How tokens are counted."""
        if self.tokens != "auto":
            return self.tokens
        found = (table for start, table in _TABLES if self.model.startswith(start))
        return next(found, "characters")

    @property
    def longest(self) -> int | None:
        """Tokens of the longest text that is sent whole; None if there is no limit."""
        return self.max_length or _LONGEST.get(self.table)

    @property
    def identity(self) -> dict[str, Any]:
        """All that decides the vector of a text that is sent, as JSON values."""
        cut = {"tokens": self.table, "max_length": self.longest, "truncate": self.truncate}
        return {
            "host": self.base_url.partition("://")[2],
            "model": self.model,
            "dimensions": self.dimensions,
            "extra": self.extra,
            "prompt": self.prompt,
            "truncation": cut,
        }

    @property
    def ledger(self) -> str:
        """The name of its ledger: the model's, and a digest of the identity."""
        text = json.dumps(self.identity, sort_keys=True)
        plain = re.sub(r"[^a-z0-9._-]+", "-", self.model.lower()).strip("-.")[:40] or "model"
        return f"{plain}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


class ApiInput(Spec):
    """What an API reads, as its card records it: see `ApiEncoder`."""

    kind: ClassVar[str] = "api"

    ledger: str
    host: str
    dimensions: int | None
    extra: dict[str, JsonValue]
    prompt: str
    pair: ApiPair
    tokens: Table
    max_length: int | None
    truncate: Truncate

    @staticmethod
    def of(encoder: ApiEncoder) -> ApiInput:
        """The input of an encoder of an experiment file."""
        return ApiInput(
            ledger=encoder.ledger,
            host=encoder.identity["host"],
            tokens=encoder.table,
            max_length=encoder.longest,
            **{
                name: getattr(encoder, name)
                for name in ("dimensions", "extra", "prompt", "pair", "truncate")
            },
        )
