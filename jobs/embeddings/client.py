"""One request to an embedding API, with every check on its answer.

Takes texts; gives their vectors, or says which kind of failure it was: `BusyError` (wait and try
again; `UselessAnswerError` where it did answer), `RefusedError` (these texts, perhaps one of them),
or a StageError that ends the step. Retries nothing (`jobs/embeddings/ask.py` does) and stores
nothing. The key is read from the environment here alone, and registered so that no text of this
process shows it.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib.util import find_spec
from types import TracebackType
from typing import Any, Self

import numpy as np

from jobs.contract import StageError
from jobs.embeddings.ledger import Vectors
from jobs.encoders.api import ApiEncoder
from jobs.redaction import keep_secret, redact

SHOWN = 300  # characters of a server's message in ours

_QUOTA = ("insufficient_quota", "billing_hard_limit_reached", "credit_balance_too_low")
_ENDS: Mapping[int, str] = {
    401: "the key is not accepted; correct the environment variable {key}",
    402: "it wants to be paid first; settle the account",
    403: "the key may not use this model; correct {key}, or name another model",
    404: "it knows no such model or address; correct base_url and model",
}
_BUSY = (408, 409, 425, 429)


class BusyError(Exception):
    """The server cannot answer now. `wait`: the seconds that it asks for, if it does."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(redact(reason))
        self.wait = wait


class UselessAnswerError(BusyError):
    """The server answered, and not with one vector for each text."""


class RefusedError(Exception):
    """The server refuses these texts; the message is its own."""

    def __init__(self, reason: str) -> None:
        super().__init__(redact(reason))


@dataclass(frozen=True)
class Answer:
    """The vectors of N texts."""

    vectors: Vectors  # [N, D]
    usage: int  # tokens that the server reports; 0 if none
    faults: Mapping[int, str] = field(default_factory=dict)  # text -> why its vector is useless


class Client:
    """An API that is open. Use it as an asynchronous context."""

    def __init__(self, encoder: ApiEncoder) -> None:
        if find_spec("openai") is None:
            raise StageError(
                "an encoder of kind api needs the openai package; install nml-orch[api]"
            )
        import openai

        self._encoder, self._library = encoder, openai
        self._own = openai.AsyncOpenAI(
            api_key=_key(encoder),
            base_url=encoder.base_url,
            timeout=encoder.timeout,
            max_retries=0,  # retries are ours: they know what is paid and when to give up
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        await self._own.close()

    async def ask(self, texts: Sequence[str]) -> Answer:
        """The vectors of texts, in their order.

        Raises BusyError, RefusedError, and StageError for what trying again cannot cure.
        """
        library, encoder = self._library, self._encoder
        extra = dict(encoder.extra)
        # Always sent: the library asks for base64 where it is not, which some servers ignore and
        # others cannot do.
        form: Any = extra.pop("encoding_format", "float")
        asked: dict[str, Any] = {}
        if encoder.dimensions is not None:
            asked["dimensions"] = encoder.dimensions
        try:
            raw = await self._own.embeddings.with_raw_response.create(
                model=encoder.model,
                input=list(texts),
                encoding_format=form,
                extra_body=extra or None,
                **asked,
            )
            body = raw.content
        except library.APIStatusError as error:
            raise self._failure(error) from None
        except library.APITimeoutError:
            raise BusyError(f"no answer in {encoder.timeout:g} s") from None
        except library.APIConnectionError as error:
            raise BusyError(f"no connection ({_short(str(error.__cause__ or error))})") from None
        return self._checked(body, len(texts))

    def _failure(self, error: Any) -> Exception:
        """What a status other than 200 means."""
        status, message = int(error.status_code), _message(error)
        codes = {str(getattr(error, name, None)) for name in ("code", "type")}
        if codes & set(_QUOTA) or any(name in message for name in _QUOTA):
            return self.ending(f"the account has no credit left ({message}); pay, then sweep again")
        if status in _ENDS:
            key = self._encoder.key_env or "key_env"
            return self.ending(f"{_ENDS[status].format(key=key)} ({status}: {message})")
        if status in _BUSY or status >= 500:
            return BusyError(f"{status}: {message}", _retry_after(error.response.headers))
        return RefusedError(f"{status}: {message}")

    def ending(self, what: str) -> StageError:
        """An error that ends the step, about this API."""
        encoder = self._encoder
        return StageError(redact(f"{encoder.base_url}, {encoder.model}: {what}"))

    # -- the answer ------------------------------------------------------------------------------

    def _checked(self, body: bytes, count: int) -> Answer:
        """The answer's vectors in the order of the texts, after every check."""
        try:
            found = json.loads(body)
            data, usage = found["data"], found.get("usage") or {}
            order = [int(item["index"]) for item in data]
            numbers = [_numbers(item["embedding"]) for item in data]
            tokens = int(usage.get("total_tokens") or usage.get("prompt_tokens") or 0)
        except (ValueError, KeyError, TypeError, AttributeError, binascii.Error) as error:
            what = f"{type(error).__name__}: {_short(str(error))}"
            raise UselessAnswerError(f"its answer is no list of embeddings ({what})") from None
        if sorted(order) != list(range(count)):
            raise UselessAnswerError(
                f"its answer has {len(order)} vectors for {count} texts, or numbers them wrongly"
            )
        lengths = sorted({len(one) for one in numbers})
        wanted = self._encoder.dimensions
        if len(lengths) != 1 or lengths[0] == 0 or (wanted is not None and lengths != [wanted]):
            asked = "of one length" if wanted is None else f"of {wanted} numbers"
            raise self.ending(
                f"vectors {asked} were asked for and its answer has "
                f"{', '.join(map(str, lengths))}; correct dimensions, or leave "
                f"it out for the model's own"
            )
        vectors = np.empty((count, lengths[0]), np.float32)
        with np.errstate(over="ignore"):  # beyond float32: infinite, refused below
            vectors[order] = np.array(numbers)
        faults = {int(n): "its vector is all zero" for n in np.flatnonzero(~vectors.any(axis=1))}
        infinite = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
        faults |= {int(n): "its vector is not finite" for n in infinite}
        return Answer(vectors, tokens, faults)


def _numbers(embedding: Any) -> Any:
    """One vector, given as numbers or as base64 of little-endian float32; null is NaN."""
    if isinstance(embedding, str):
        return np.frombuffer(base64.b64decode(embedding, validate=True), "<f4").astype(np.float64)
    return np.array([np.nan if one is None else one for one in embedding], np.float64)


def _key(encoder: ApiEncoder) -> str:
    """The key's value; a placeholder for a server without keys. StageError if it is not set."""
    if encoder.key_env is None:
        return "none"
    value = os.environ.get(encoder.key_env, "").strip()
    if not value:
        raise StageError(
            f"{encoder.base_url} needs a key and the environment variable {encoder.key_env} of "
            f"the process that runs the sweep is not set; set it there"
        )
    keep_secret(value)
    return value


def _message(error: Any) -> str:
    """A server's own words about a failure."""
    body = error.body
    if isinstance(body, Mapping):
        inner = body.get("error", body)
        message = inner.get("message") if isinstance(inner, Mapping) else inner
        return _short(str(message or inner or body))
    return _short(str(body or error))


def _short(text: str) -> str:
    """Redacted before it is cut: half a key would not be found."""
    return " ".join(redact(text).split())[:SHOWN]


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """The seconds that a server asks to wait: as seconds or as a date; None if it says nothing."""
    in_ms = headers.get("retry-after-ms")
    if in_ms is not None and in_ms.strip().isdecimal():
        return int(in_ms) / 1000
    value = (headers.get("retry-after") or "").strip()
    if not value:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        when = parsedate_to_datetime(value)
    except ValueError:
        return None
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    return max(0.0, (when - datetime.now(UTC)).total_seconds())
