"""What a person sees while a plan runs: live bars on a terminal, one line an interval elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol, TextIO

from orchestrator.plan.states import StepState
from orchestrator.step.address import kind_of, short

if TYPE_CHECKING:
    from rich.progress import TaskID

INTERVAL_SECONDS = 10.0


class Progress(Protocol):
    """Told of every step's life; callable from any thread."""

    def begin(self, address: str) -> None:
        """A step starts."""

    def say(self, address: str, share: float, words: str) -> None:
        """A running step is `share` (0 to 1) done."""

    def settle(self, address: str, state: StepState, reason: str) -> None:
        """A step has ended."""

    def note(self, line: str) -> None:
        """Something worth one line."""

    def close(self) -> None:
        """The run is over."""


class _Tally:
    """Counts by kind, shared by both faces."""

    def __init__(self, totals: Mapping[str, int], reused: Mapping[str, int]) -> None:
        self.totals = dict(totals)
        self.settled = {kind: reused.get(kind, 0) for kind in totals}
        self.wrong: dict[str, Counter[StepState]] = {kind: Counter() for kind in totals}
        self.shares: dict[str, float] = {}
        self._words: dict[str, str] = {}  # of running steps; who spoke last is last
        self.lock = threading.Lock()

    def begin(self, address: str) -> str:
        self.shares[address] = 0.0
        return kind_of(address)

    def say(self, address: str, share: float, words: str) -> str:
        kind = kind_of(address)
        if address in self.shares:  # else it has settled meanwhile
            self.shares[address] = min(max(share, 0.0), 1.0)
            self._words.pop(address, None)
            self._words[address] = f"{short(address)}  {words}"
        return kind

    def settle(self, address: str, state: StepState) -> str:
        kind = kind_of(address)
        self.shares.pop(address, None)
        self._words.pop(address, None)
        self.settled[kind] += 1
        if not state.finished:
            self.wrong[kind][state] += 1
        return kind

    def words(self, kind: str) -> str:
        """What the running step of a kind that spoke last said, and how many run beside it."""
        spoken = [words for address, words in self._words.items() if kind_of(address) == kind]
        if len(spoken) < 2:
            return "".join(spoken)
        return f"{spoken[-1]} (beside {len(spoken) - 1} more)"

    def count(self, kind: str) -> str:
        """How many of a kind are done, and what will not be: `3/8 (1 failed, 2 blocked)`."""
        wrong = self.wrong[kind]
        words = ", ".join(f"{wrong[state]} {state}" for state in sorted(wrong, reverse=True))
        done = self.settled[kind] - wrong.total()
        return f"{done}/{self.totals[kind]}" + (f" ({words})" if words else "")

    def completed(self, kind: str) -> float:
        running = sum(share for a, share in self.shares.items() if kind_of(a) == kind)
        return self.settled[kind] + running


class Bars:
    """Live bars, one a kind of step."""

    def __init__(self, totals: Mapping[str, int], reused: Mapping[str, int]) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
        from rich.table import Column

        self._tally = _Tally(totals, reused)
        rest = Column(ratio=1, no_wrap=True, overflow="ellipsis")  # what a narrow screen leaves
        self._bars = Progress(
            TextColumn("{task.description:<8}", table_column=Column(no_wrap=True, min_width=8)),
            BarColumn(bar_width=16, pulse_style="bar.back", table_column=Column(min_width=16)),
            TextColumn("{task.fields[count]:>7}", table_column=Column(no_wrap=True, min_width=7)),
            TimeElapsedColumn(table_column=Column(no_wrap=True, min_width=7)),
            TextColumn("{task.fields[words]}", style="dim", table_column=rest),
            console=Console(stderr=True),
            refresh_per_second=5,
            expand=True,
        )
        self._tasks: dict[str, TaskID] = {}
        for kind, total in totals.items():
            if total:
                self._tasks[kind] = self._bars.add_task(
                    kind, total=total, start=False, count="", words=""
                )
                self._show(kind)
        self._bars.start()

    def begin(self, address: str) -> None:
        """Start the clock of the step's kind."""
        with self._tally.lock:
            kind = self._tally.begin(address)
            self._bars.start_task(self._tasks[kind])

    def say(self, address: str, share: float, words: str) -> None:
        """Move the bar by a running step's share."""
        with self._tally.lock:
            self._show(self._tally.say(address, share, words))

    def settle(self, address: str, state: StepState, reason: str) -> None:
        """Count a step, and print a failure above the bars."""
        with self._tally.lock:
            kind = self._tally.settle(address, state)
            self._show(kind)
        if state is StepState.FAILED:
            self._bars.console.print(f"[red]failed[/red] {address}: {_plain(reason)}")

    def note(self, line: str) -> None:
        """Print a line above the bars."""
        self._bars.console.print(_plain(line))

    def close(self) -> None:
        """Leave the last state on the screen."""
        self._bars.stop()

    def _show(self, kind: str) -> None:
        tally = self._tally
        self._bars.update(
            self._tasks[kind],
            completed=tally.completed(kind),
            count=tally.count(kind),
            words=_plain(tally.words(kind)),
        )


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)


class Lines:
    """One line an interval, for logs."""

    def __init__(
        self,
        totals: Mapping[str, int],
        reused: Mapping[str, int],
        *,
        stream: TextIO | None = None,
        interval: float = INTERVAL_SECONDS,
    ) -> None:
        self._tally = _Tally(totals, reused)
        self._stream = stream or sys.stderr
        self._interval = interval
        self._begun = self._last = time.monotonic()

    def begin(self, address: str) -> None:
        """Nothing is printed when a step starts."""
        with self._tally.lock:
            self._tally.begin(address)

    def say(self, address: str, share: float, words: str) -> None:
        """Print the state of all kinds, at most once an interval."""
        with self._tally.lock:
            self._tally.say(address, share, words)
            self._print_if_due()

    def settle(self, address: str, state: StepState, reason: str) -> None:
        """Count a step; failures are printed at once."""
        with self._tally.lock:
            self._tally.settle(address, state)
            if state is StepState.FAILED:
                self._print(f"failed {address}: {reason}")
            self._print_if_due()

    def note(self, line: str) -> None:
        """Print a line."""
        self._print(line)

    def close(self) -> None:
        """Print the last state."""
        self._print(self._state())

    def _print_if_due(self) -> None:
        if time.monotonic() - self._last >= self._interval:
            self._last = time.monotonic()
            self._print(self._state())

    def _state(self) -> str:
        tally = self._tally
        kinds = [f"{kind} {tally.count(kind)}" for kind, total in tally.totals.items() if total]
        busy = " | ".join(words for kind in tally.totals if (words := tally.words(kind)))
        return "  ".join(kinds) + (f" | {busy}" if busy else "")

    def _print(self, line: str) -> None:
        seconds = time.monotonic() - self._begun
        print(f"[{seconds:6.1f} s] {line}", file=self._stream, flush=True)
