"""Which claims an experiment registered before its results were known, and every later change.

Takes the entries that somebody kept (oldest first), gives the registered claims and the history in
words. Reads and writes no file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from analysis import wording


@dataclass(frozen=True)
class Registration:
    """One entry: from then on, these claims and no others share the correction."""

    claims: list[str] | None  # ids; None: none is registered, and all claims share it
    time: str  # ISO 8601, UTC
    finished: int  # steps of the experiment that were finished by then


def in_words(history: Sequence[Registration]) -> str:
    """Such as "3 claims were registered on ..., before any step was finished: ..."; "" for none."""
    sentences: list[str] = []
    before: list[str] | None = None
    for entry in history:
        when = f"{entry.time[:19].replace('T', ' ')} UTC, {_after(entry.finished)}"
        if entry.claims is None:
            sentences.append(f"Changed on {when}: no claim is registered any more.")
        elif before is None:
            were = "was" if len(entry.claims) == 1 else "were"
            sentences.append(
                f"{_count(entry.claims)} {were} registered on {when}: {', '.join(entry.claims)}."
            )
        else:
            sentences.append(f"Changed on {when}: {_change(before, entry.claims)}.")
        before = entry.claims
    return " ".join(sentences)


def next_in_words(history: Sequence[Registration], entry: Registration) -> str:
    """What a next entry would do, such as "registers 1 claim before any step was finished: a"."""
    before, when = history[-1].claims if history else None, _after(entry.finished)
    if entry.claims is None:
        return f"takes all claims out of the registration {when}"
    if before is None:
        return f"registers {_count(entry.claims)} {when}: {', '.join(entry.claims)}"
    return f"changes the registered claims {when}: {_change(before, entry.claims)}"


def _count(claims: Sequence[str]) -> str:
    return wording.count(len(claims), "claim")


def _change(before: Sequence[str], after: Sequence[str]) -> str:
    """Such as "added a; removed b, c"."""
    added = [name for name in after if name not in before]
    removed = [name for name in before if name not in after]
    parts = [
        f"{word} {', '.join(names)}"
        for word, names in (("added", added), ("removed", removed))
        if names
    ]
    return "; ".join(parts)


def _after(finished: int) -> str:
    if not finished:
        return "before any step was finished"
    return f"after {wording.count(finished, 'step')} {'was' if finished == 1 else 'were'} finished"
