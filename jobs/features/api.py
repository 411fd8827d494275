"""Features of an encoder behind an API: buy what the ledger lacks, then read the ledger.

`buy_texts` runs in the one process that asks: the driver, which alone needs the key. It takes the
steps of one encoder and says of each whether its texts are all there. `write_features` runs
anywhere, reads the ledger alone, and writes the files that extraction writes (`parts.finish`), with
view 0 alone. So features are those of the ledger, whatever the server would answer today.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from jobs.contract import Hooks, Outcome, StageError, Work
from jobs.corpus.shards import Index
from jobs.corpus.units import units_of
from jobs.embeddings.ask import Bought, buy
from jobs.embeddings.ledger import Ledger
from jobs.embeddings.price import estimate, lacking, money, too_dear
from jobs.embeddings.texts import Sent, key_of, of_corpus
from jobs.embeddings.tokens import counter
from jobs.encoders.api import ApiEncoder
from jobs.features.parts import finish, save_unit
from jobs.features.spec import FeaturesStep
from jobs.features.unit_table import BATCH, COUNTS, IDENTITY, ROWS, view_table

LEASE_POLL = 2.0  # seconds between two tries for a ledger that another sweep writes
LEASE_LOOK = 10.0  # seconds between two looks whether the lease is still ours
TRUNCATED, NAMED = "rows_truncated", 3  # refused samples that an error names

_SPENT: dict[str, float] = {}
"""What this process has paid by ledger: `max_price` is of a sweep, which may ask more than once."""


def encoder_of(work: Work) -> ApiEncoder:
    """The API of a features step."""
    found = cast(FeaturesStep, work.spec).api
    if found is None:
        raise TypeError(f"{work.address} has no API")
    return found


# -- buying ----------------------------------------------------------------------------------------


def buy_texts(works: Sequence[Work], hooks: Hooks) -> Iterator[tuple[Work, Exception | None]]:
    """Each work of one encoder as its texts are in the ledger, or with the error that ended it.

    The price of all works is compared with `max_price` before the first request. After a stop, the
    others do not come.
    """
    encoder = encoder_of(works[0])
    left = {work.address: work for work in works}
    try:
        ledger = Ledger.of(works[0].root, encoder)
        lacking_some = [work for work in works if _lacking(work, encoder, ledger)]
        for work in works:
            if work not in lacking_some:
                yield left.pop(work.address), None
        if not lacking_some:
            return
        with _writing(ledger, encoder, lacking_some, hooks) as held:
            for work, ended in _buy_each(lacking_some, encoder, ledger, hooks) if held else ():
                yield left.pop(work.address), ended
    except Exception as error:  # of all that are left
        for work in left.values():
            yield work, error


def _lacking(work: Work, encoder: ApiEncoder, ledger: Ledger) -> dict[bytes, str]:
    parts = cast(FeaturesStep, work.spec).wanted
    return lacking(encoder, ledger, [(work.inputs["corpus"], parts)])


@contextmanager
def _writing(
    ledger: Ledger, encoder: ApiEncoder, works: Sequence[Work], hooks: Hooks
) -> Iterator[bool]:
    """Hold the ledger's lease, and compact it at the end; false if the run stops before."""
    name, leases = lease_of(encoder), hooks.leases
    while leases is not None and not leases.acquire(name):
        for work in works:
            hooks.say(work.address, 0.0, "waiting for another sweep, which asks the same model")
        time.sleep(LEASE_POLL)
        if hooks.stopping():
            yield False
            return
    try:
        ledger.load()
        ledger.begin(encoder)
        yield True
    finally:
        if leases is None or leases.holds(name):
            ledger.compact()
        if leases is not None:
            leases.release(name)


def lease_of(encoder: ApiEncoder) -> str:
    """The name of the lease that the one writer of an encoder's ledger holds."""
    return f"embeddings/{encoder.ledger}"


class _Stop:
    """Whether to stop: as asked, or because another sweep has the lease (after a long sleep)."""

    def __init__(self, encoder: ApiEncoder, hooks: Hooks) -> None:
        self._name, self._hooks = lease_of(encoder), hooks
        self._looked = time.monotonic()
        self.lost = False

    def __call__(self) -> bool:
        leases = self._hooks.leases
        if leases is not None and time.monotonic() - self._looked >= LEASE_LOOK:
            self._looked = time.monotonic()
            self.lost = self.lost or not leases.holds(self._name)
        return self.lost or self._hooks.stopping()


def _buy_each(
    works: Sequence[Work], encoder: ApiEncoder, ledger: Ledger, hooks: Hooks
) -> Iterator[tuple[Work, Exception | None]]:
    """Buy work by work: one that ends early lets its cells begin."""
    wanted = {work.address: _lacking(work, encoder, ledger) for work in works}
    everything = {key: text for texts in wanted.values() for key, text in texts.items()}
    where = ledger.folder.uri
    _check_price(encoder, ledger, everything, _SPENT.get(where, 0.0))
    ended: Exception | None = None
    canary, stop = True, _Stop(encoder, hooks)
    for work in works:
        if stop():
            break
        texts = {k: t for k, t in wanted[work.address].items() if k not in ledger}
        error = ended if texts else None
        if texts and ended is None:
            try:
                bought = _buy(work, texts, encoder, ledger, hooks, stop, canary)
                canary = False
            except StageError as raised:
                ended = error = raised  # the same would end the next one
            else:
                if bought.texts + len(bought.refused) < bought.of:  # stopped
                    break
                if bought.refused:
                    error = _refused_error(work, encoder, bought.refused)
        yield work, error
    if stop.lost:  # no StageError: the steps that are left are tried again
        raise RuntimeError(f"another sweep has taken the lease {lease_of(encoder)} meanwhile")


def _buy(
    work: Work,
    texts: Mapping[bytes, str],
    encoder: ApiEncoder,
    ledger: Ledger,
    hooks: Hooks,
    stop: _Stop,
    canary: bool,
) -> Bought:
    where = ledger.folder.uri
    before = _SPENT.get(where, 0.0)
    left = estimate(encoder, ledger, texts.values())

    def tell(bought: Bought) -> None:
        _SPENT[where] = before + bought.paid.price
        share = bought.texts / max(1, bought.of)
        words = f"{bought.texts:,} of {bought.of:,} texts"
        if left.price is not None:
            rest = max(0.0, left.price * (1 - share))
            words += f", spent {money(bought.paid.price)}, left {money(rest)}"
        hooks.say(work.address, 0.9 * share, words)

    found = buy(texts, encoder, ledger, stopping=stop, tell=tell, spent=before, canary=canary)
    _SPENT[where] = before + found.paid.price
    return found


def _check_price(
    encoder: ApiEncoder, ledger: Ledger, texts: Mapping[bytes, str], spent: float
) -> None:
    """Raise StageError, before the first request, if a sweep would cost more than it may."""
    if encoder.max_price is None:
        return
    left = estimate(encoder, ledger, texts.values())
    if left.price is not None and spent + left.price > encoder.max_price:
        before = f", and {money(spent)} is spent" if spent else ""
        raise StageError(too_dear(encoder, f"{left.words} are left{before}"))


def _refused_error(work: Work, encoder: ApiEncoder, refused: Mapping[bytes, str]) -> StageError:
    """Names the samples whose texts have no vector; all others are in the ledger."""
    parts, names = cast(FeaturesStep, work.spec).wanted, dict[str, str]()
    for _, rows, texts in of_corpus(work.inputs["corpus"], parts, encoder, counter(encoder.table)):
        for side in texts.sides:
            for row, text in enumerate(side):
                why = refused.get(key_of(text))
                if why is not None:
                    names[rows["key"][row].as_py()] = why
    listed = ", ".join(list(names)[:NAMED]) + (", ..." if len(names) > NAMED else "")
    return StageError(
        f"{encoder.base_url} gives no vector for {len(names)} samples ({listed}): "
        f"{next(iter(names.values()))}; all others were bought and stay; take these samples out "
        f"of the task, or shorten them (max_length), and sweep again"
    )


# -- writing ---------------------------------------------------------------------------------------


def write_features(work: Work) -> Outcome:
    """Write the features of a step whose texts are all in the ledger.

    Counts and metrics: see `parts.finish`. Raises StageError for a text that is not there, and for
    features that are not finite in the step's dtype.
    """
    step, encoder = cast(FeaturesStep, work.spec), encoder_of(work)
    ledger = Ledger.of(work.root, encoder)
    corpus = work.inputs["corpus"]
    index = Index.read(corpus)
    for unit, rows, texts in of_corpus(corpus, step.wanted, encoder, counter(encoder.table)):
        vectors = _vectors(ledger, texts)
        with np.errstate(over="ignore"):  # beyond float16: infinite, refused below
            stored = vectors.astype(step.dtype)
        finite = np.isfinite(stored).all(axis=1)
        if not finite.all():
            first = rows["key"][int(finite.argmin())]
            raise StageError(
                f"the vector of sample {first} is not finite as {step.dtype}; set features.dtype "
                f"to float32"
            )
        keys, labels = rows["key"].combine_chunks(), rows["label"].combine_chunks()
        # The spectrum of the test part is computed before its features are stored.
        table = view_table(keys, labels, 0, vectors if unit.part == "test" else stored)
        metadata = {IDENTITY: _identity(step, encoder), BATCH: "1", ROWS: unit.rows}
        if texts.truncated.any():
            metadata[COUNTS] = json.dumps({TRUNCATED: int(texts.truncated.sum())})
        save_unit(work.scratch, unit, table.replace_schema_metadata(metadata))
    return finish(step, index, units_of(index, step.wanted), work.scratch, work.output)


def _vectors(ledger: Ledger, texts: Sent) -> npt.NDArray[np.float32]:
    """Features of rows, [N, D]; [N, 4 * D] where a row's two texts were sent by themselves."""
    try:
        sides = [ledger.vectors([key_of(text) for text in side]) for side in texts.sides]
    except KeyError:
        raise StageError(
            f"{ledger.folder.uri} lacks texts that were there before; run the same command again"
        ) from None
    if len(sides) == 1:
        return sides[0]
    u, v = sides
    return np.concatenate([u, v, np.abs(u - v), u * v], axis=1)


def _identity(step: FeaturesStep, encoder: ApiEncoder) -> str:
    """What a step's features were made with, as canonical JSON."""
    made_with: dict[str, Any] = {
        "ledger": encoder.ledger,
        "api": encoder.identity,
        "pair": encoder.pair,
        "dtype": step.dtype,
    }
    return json.dumps(made_with, sort_keys=True)
