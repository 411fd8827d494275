"""Buys vectors: asks an API for the texts that a ledger lacks, each answer once.

`concurrency` slots send requests at the same time, in one process and one thread. A slot sends its
next request only when its last answer is on the disk. A busy server is waited for; a batch that is
refused is halved until the bad text stands alone, and the rest is bought. The first request of each
start is the canary, whose vector says whether the model behind the name has changed.

    Retry-After, 429     no slot sends before that time
    5xx, no answer       the slot waits 0.5, 1, 2, ... 30 s
    above two minutes    `ParkedError`: what is bought stays, the next sweep goes on from there
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np

from jobs.contract import StageError
from jobs.embeddings.client import Answer, BusyError, Client, RefusedError, UselessAnswerError
from jobs.embeddings.ledger import Drift, Ledger, Paid
from jobs.embeddings.texts import key_of
from jobs.embeddings.tokens import Counter, counter
from jobs.encoders.api import ApiEncoder

PATIENCE = 120.0  # seconds without an answer, by waiting, until the step is parked
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0  # seconds
USELESS_ANSWERS = 3  # in a row, until a server that answers nonsense ends the step
ALL_REFUSED = 20  # refused texts and none bought, until a server that refuses all ends the step
SILENTLY_CUT = 0.9  # a server that counts less than this share of an exact count has cut texts
POLL = 0.2  # seconds between two looks at a request to stop
GRACE = 10.0  # seconds for requests in flight once a stop is asked for: they are paid

CANARY = "The harbour lay quiet in the early light, and three grey gulls stood on the wall."
"""The text whose vector is compared at each start."""

SAME_MODEL = 0.999
"""The least cosine of the canary's vectors. One model's own answers differ by less than 1e-3."""


class ParkedError(StageError):
    """The server cannot serve now; the step is done by a later sweep."""


@dataclass
class Batch:
    """Texts of one request."""

    keys: list[bytes] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)  # tokens of each, by our table

    @property
    def tokens(self) -> int:
        """Tokens of all texts."""
        return sum(self.counts)

    def halves(self) -> tuple[Batch, Batch]:
        """The batch in two."""
        middle = len(self.keys) // 2
        first, second = slice(None, middle), slice(middle, None)
        made = [Batch(self.keys[one], self.texts[one], self.counts[one]) for one in (first, second)]
        return made[0], made[1]


def batches(texts: Mapping[bytes, str], encoder: ApiEncoder, own: Counter) -> Iterable[Batch]:
    """Texts in batches of the encoder's rows and tokens, in order; at least one text in each."""
    batch = Batch()
    for key, text in texts.items():
        tokens = own.count(text)
        full = len(batch.keys) >= encoder.batch_rows
        if batch.keys and (full or batch.tokens + tokens > encoder.batch_tokens):
            yield batch
            batch = Batch()
        batch.keys.append(key)
        batch.texts.append(text)
        batch.counts.append(tokens)
    if batch.keys:
        yield batch


@dataclass(frozen=True)
class Bought:
    """What was asked for: progress, and at the end the result."""

    texts: int  # bought so far
    of: int
    paid: Paid
    refused: Mapping[bytes, str]  # text -> why it has no vector


Tell = Callable[[Bought], None]


def buy(
    texts: Mapping[bytes, str],
    encoder: ApiEncoder,
    ledger: Ledger,
    *,
    stopping: Callable[[], bool] = lambda: False,
    tell: Tell = lambda bought: None,
    spent: float = 0.0,
    canary: bool = True,
) -> Bought:
    """Ask for these texts, all of which the ledger lacks; returns when it has them.

    `spent`: what this sweep has paid before. `canary=False`: it has been compared just now. Texts
    that the server refuses are in the result. Raises StageError when the step cannot go on, with
    all that was paid for in the ledger.
    """
    return asyncio.run(_Buying(texts, encoder, ledger, stopping, tell, spent).run(canary))


class _Buying:
    """One start of asking, and its state."""

    def __init__(
        self,
        texts: Mapping[bytes, str],
        encoder: ApiEncoder,
        ledger: Ledger,
        stopping: Callable[[], bool],
        tell: Tell,
        spent: float,
    ) -> None:
        self._encoder, self._ledger = encoder, ledger
        self._stopping, self._tell = stopping, tell
        self._counter = counter(encoder.table)
        self._queue = deque(batches(texts, encoder, self._counter))
        self._of, self._bought = len(texts), 0
        self._before, self._paid = ledger.paid, Paid()
        self._unkept = Paid()  # for vectors that are not kept; recorded with the next answer
        self._spent = spent
        self._refused: dict[bytes, str] = {}
        self._error: BaseException | None = None
        self._ended = asyncio.Event()
        self._not_before = 0.0  # no slot sends before this time (monotonic)
        self._waiting_since: float | None = None  # when the server last became busy

    async def run(self, canary: bool) -> Bought:
        async with Client(self._encoder) as client:
            watch = asyncio.create_task(self._watch())
            try:
                if canary:
                    await self._check_canary(client)
                slots = [
                    asyncio.create_task(self._slot(client))
                    for _ in range(min(self._encoder.concurrency, len(self._queue)))
                ]
                await self._join(slots)
            finally:
                watch.cancel()
        if self._error is not None:
            raise self._error
        return self._state()

    async def _join(self, slots: Sequence[asyncio.Task[None]]) -> None:
        """Wait for all slots; after a stop, only a while for what is in flight."""
        left = set(slots)
        while left:
            _, left = await asyncio.wait(left, timeout=POLL)
            if left and self._ended.is_set():
                _, left = await asyncio.wait(left, timeout=GRACE)
                for slot in left:
                    slot.cancel()
                await asyncio.gather(*slots, return_exceptions=True)
                return

    async def _watch(self) -> None:
        while not self._stopping():
            await asyncio.sleep(POLL)
        self._ended.set()

    def _end(self, error: BaseException) -> None:
        self._error = self._error or error
        self._ended.set()

    def _state(self) -> Bought:
        return Bought(self._bought, self._of, self._paid, dict(self._refused))

    # -- a slot ----------------------------------------------------------------------------------

    async def _slot(self, client: Client) -> None:
        try:
            while self._queue and not self._ended.is_set():
                await self._settle(client, self._queue.popleft())
        except (StageError, OSError) as error:
            self._end(error)

    async def _settle(self, client: Client, batch: Batch) -> None:
        """Buy a batch, or put its halves back, or note the text that is refused."""
        self._check_purse(client, batch)
        try:
            answer = await self._answer(client, batch.texts)
        except RefusedError as error:
            if len(batch.keys) == 1:
                self._refused[batch.keys[0]] = str(error)
                if len(self._refused) >= ALL_REFUSED and not self._bought:
                    raise client.ending(
                        f"it refuses every text ({error}); correct max_length or extra"
                    ) from None
            else:
                self._queue.extendleft(reversed(batch.halves()))
            return
        if answer is None:
            return
        self._check_length(client, answer)
        await self._keep(batch, answer)
        self._check_usage(client, batch, answer)
        self._tell(self._state())

    async def _keep(self, batch: Batch, answer: Answer) -> None:
        """Put an answer into the ledger; of a text whose vector is useless only the price."""
        good = [n for n in range(len(batch.keys)) if n not in answer.faults]
        for n, why in answer.faults.items():
            self._refused[batch.keys[n]] = why
        paid = self._price(batch, answer)
        self._paid += paid
        if not good:
            self._unkept += paid
        else:
            paid, self._unkept = paid + self._unkept, Paid()
            keys, vectors = [batch.keys[n] for n in good], answer.vectors[good]
            await asyncio.to_thread(self._ledger.add, keys, vectors, paid)
        self._bought += len(good)

    def _price(self, batch: Batch, answer: Answer) -> Paid:
        known = answer.usage > 0
        tokens = answer.usage if known else round(batch.tokens * self._scale)
        return Paid(
            requests=1,
            counted=batch.tokens,
            usage=answer.usage,
            counted_with_usage=batch.tokens if known else 0,
            price=tokens * (self._encoder.price_per_million or 0) / 1e6,
        )

    @property
    def _scale(self) -> float:
        return (self._before + self._paid).scale

    # -- waiting ---------------------------------------------------------------------------------

    async def _answer(self, client: Client, texts: Sequence[str]) -> Answer | None:
        """The answer, after as many tries as it takes; None if the run stops before."""
        pause, useless = FIRST_PAUSE, 0
        while True:
            if not await self._sleep(self._not_before - time.monotonic()):
                return None
            try:
                answer = await client.ask(texts)
            except BusyError as error:
                useless += isinstance(error, UselessAnswerError)
                if useless >= USELESS_ANSWERS:
                    raise client.ending(
                        f"{error}, {useless} times in a row; correct base_url, or sweep again"
                    ) from None
                wait = max(pause, error.wait or 0.0)
                self._check_patience(client, wait, error)
                if error.wait is not None:  # the server speaks to all slots
                    self._not_before = max(self._not_before, time.monotonic() + error.wait)
                pause = min(2 * pause, LONGEST_PAUSE)
                if not await self._sleep(wait):
                    return None
                continue
            self._waiting_since = None
            return answer

    async def _sleep(self, seconds: float) -> bool:
        """Wait so long; false if the run stops."""
        if seconds > 0:
            try:
                await asyncio.wait_for(self._ended.wait(), seconds)
            except TimeoutError:
                return True
        return not self._ended.is_set()

    def _check_patience(self, client: Client, wait: float, error: BusyError) -> None:
        now = time.monotonic()
        if self._waiting_since is None:
            self._waiting_since = now
        waited = now - self._waiting_since
        if waited + wait > PATIENCE:
            asks = f"asks to wait {error.wait:.0f} s" if error.wait else f"did not answer ({error})"
            raise ParkedError(
                str(
                    client.ending(
                        f"the server {asks}, more than two minutes in all; {self._bought:,} of "
                        f"{self._of:,} texts were bought and stay; the same command goes on from "
                        f"there"
                    )
                )
            )

    # -- checks ----------------------------------------------------------------------------------

    def _check_purse(self, client: Client, batch: Batch) -> None:
        """Raise StageError before a request that would cost more than the sweep may."""
        most, each = self._encoder.max_price, self._encoder.price_per_million
        if most is None or each is None:
            return
        spent = self._spent + self._paid.price
        if spent + batch.tokens * self._scale * each / 1e6 > most:
            raise client.ending(
                f"{spent:.2f} is spent and max_price is {most:g}: the server counts more tokens "
                f"than were estimated; {self._bought:,} of {self._of:,} texts were bought and "
                f"stay; raise max_price and sweep again"
            )

    def _check_length(self, client: Client, answer: Answer) -> None:
        dim = answer.vectors.shape[1]
        if self._ledger.dim not in (None, dim):
            raise client.ending(
                f"its vectors have {dim} numbers, and those it gave before have "
                f"{self._ledger.dim}; the model behind the name has changed; give the encoder "
                f"another model, or dimensions"
            )

    def _check_usage(self, client: Client, batch: Batch, answer: Answer) -> None:
        """Raise StageError where the server's count shows that it has cut texts silently."""
        if self._counter.exact and 0 < answer.usage < SILENTLY_CUT * batch.tokens:
            raise client.ending(
                f"it counts {answer.usage:,} tokens where {batch.tokens:,} were sent: it cuts long "
                f"texts without a word, or counts otherwise; set max_length to what the model "
                f"reads, or tokens: characters"
            )

    async def _check_canary(self, client: Client) -> None:
        """Compare the canary's vector with the stored one; store it if there is none."""
        key = key_of(CANARY)
        batch = Batch([key], [CANARY], [self._counter.count(CANARY)])
        try:
            self._check_purse(client, batch)
            answer = await self._answer(client, batch.texts)
        except RefusedError as error:
            raise client.ending(
                f"it refuses even a short plain text ({error}); correct model, dimensions or extra"
            ) from None
        if answer is None:
            return
        if answer.faults:
            raise client.ending(f"of a short plain text {answer.faults[0]}; nothing was bought")
        self._check_length(client, answer)
        known = self._ledger.canary(key)
        if known is None:
            await self._keep(batch, answer)
            self._bought -= 1  # it is no sample
            return
        self._unkept = self._price(batch, answer)
        self._paid += self._unkept
        cosine = _cosine(known, answer.vectors[0])
        if cosine >= SAME_MODEL:
            return
        if not self._encoder.accept_drift:
            raise client.ending(
                f"the model behind the name has changed: the canary's vector has cosine "
                f"{cosine:.4f} with the stored one (at least {SAME_MODEL}); give the encoder the "
                f"model's new name, or go on with `nml-orch sweep --accept-drift`, which mixes "
                f"vectors of both"
            )
        now = datetime.now(UTC).isoformat(timespec="seconds")
        vector = tuple(float(one) for one in answer.vectors[0])
        self._ledger.accept(Drift(now, cosine, vector))


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
