"""Shows a running plan: live bars on a terminal, else one line for each interval."""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol, TextIO

from orchestrator.plan.states import StepState
from orchestrator.run.pace import Left, Pace
from orchestrator.step.address import kind_of, short

if TYPE_CHECKING:
    from rich.progress import TaskID

INTERVAL_SECONDS = 8.0  # a log is never silent for ten
Works = Mapping[str, str | None]
HEADING = f"{'stage':<8} {'':16} {'steps':>7}    time  what runs"


class Progress(Protocol):
    """Shows steps as they start, run and end. Every method may be called from any thread."""

    def begin(self, address: str) -> None:
        """A step starts."""

    def say(self, address: str, share: float, words: str) -> None:
        """A running step is `share` (0 to 1) done; `words` say what it does."""

    def settle(self, address: str, state: StepState, reason: str) -> None:
        """A step has ended."""

    def note(self, line: str) -> None:
        """Show one line."""

    def close(self) -> None:
        """The run is over."""


class _Counts:
    """Counts by kind of step, for both ways to show them.

    `works`: names of sorts of work, by the address of a step that is to be done. Steps of one sort
    have one rate; those without a name have that of their kind. None: the step takes no time worth
    counting.
    """

    def __init__(
        self, totals: Mapping[str, int], reused: Mapping[str, int], works: Works | None
    ) -> None:
        self.totals = dict(totals)
        self._works = works or {}
        self._to_do = Counter[str | None](self._works.values())
        for kind, total in totals.items():
            self._to_do[kind] += total - reused.get(kind, 0)
        self._to_do.subtract(map(kind_of, self._works))
        self._ended: Counter[str | None] = Counter()
        self._pace = Pace()
        self.settled = {kind: reused.get(kind, 0) for kind in totals}
        self.unfinished: dict[str, Counter[StepState]] = {kind: Counter() for kind in totals}
        self.shares: dict[str, float] = {}
        self._messages: dict[str, str] = {}  # of running steps, the newest last
        self.lock = threading.Lock()

    def begin(self, address: str) -> str:
        self._pass_time()
        self.shares[address] = 0.0
        return kind_of(address)

    def say(self, address: str, share: float, words: str) -> str:
        kind = kind_of(address)
        if address in self.shares:  # else it has ended meanwhile
            self.shares[address] = min(max(share, 0.0), 1.0)
            self._messages.pop(address, None)
            self._messages[address] = f"{short(address)}  {words}"
        return kind

    def settle(self, address: str, state: StepState) -> str:
        kind = kind_of(address)
        self._pass_time()
        self.shares.pop(address, None)
        self._messages.pop(address, None)
        self.settled[kind] += 1
        self._ended[self._work(address)] += 1
        if not state.finished:
            self.unfinished[kind][state] += 1
        return kind

    def message(self, kind: str) -> str:
        """The newest message of a running step of a kind, and how many others of it run."""
        messages = [text for address, text in self._messages.items() if kind_of(address) == kind]
        if len(messages) < 2:
            return "".join(messages)
        return f"{messages[-1]} (beside {len(messages) - 1} more)"

    def count(self, kind: str) -> str:
        """How many steps of a kind are done, failed and blocked: `3/8 (1 failed, 2 blocked)`."""
        unfinished = self.unfinished[kind]
        others = ", ".join(
            f"{unfinished[state]} {state}" for state in sorted(unfinished, reverse=True)
        )
        done = self.settled[kind] - unfinished.total()
        return f"{done}/{self.totals[kind]}" + (f" ({others})" if others else "")

    def completed(self, kind: str) -> float:
        """The ended steps of a kind, plus the shares of its running ones."""
        running = sum(share for a, share in self.shares.items() if kind_of(a) == kind)
        return self.settled[kind] + running

    def left(self) -> Left | None:
        """The time that is left for the whole sweep, as far as this run's rates tell."""
        self._pass_time()
        done: dict[str, float] = {w: self._ended[w] for w in self._to_do if w is not None}
        for address, share in self.shares.items():
            if (work := self._work(address)) in done:
                done[work] += share
        rest = {work: self._to_do[work] - steps for work, steps in done.items()}
        return self._pace.left(done, rest)

    def overall(self) -> str:
        """How many steps of all kinds have ended: `112/403`."""
        return f"{sum(self.settled.values())}/{sum(self.totals.values())}"

    def _pass_time(self) -> None:
        # A step that has begun may wait for a CPU, so the time belongs to those that report.
        working = self._messages or self.shares
        works = {self._work(address) for address in working}
        self._pace.pass_time(time.monotonic(), [work for work in works if work is not None])

    def _work(self, address: str) -> str | None:
        return self._works.get(address, kind_of(address))


SWEEP = "sweep"


class Bars:
    """Live bars, one for each kind of step, and one for the whole sweep with the time left."""

    def __init__(
        self, totals: Mapping[str, int], reused: Mapping[str, int], works: Works | None = None
    ) -> None:
        from rich.console import Console, RenderableType
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
        from rich.table import Column
        from rich.text import Text

        class Headed(Progress):
            """Bars below a heading; the time left is computed again at each update."""

            def get_renderables(shown) -> Iterable[RenderableType]:  # noqa: N805
                self._show_left()
                yield Text(HEADING, style="dim", no_wrap=True, overflow="crop")
                yield from super().get_renderables()

        self._counts = _Counts(totals, reused, works)
        rest = Column(ratio=1, no_wrap=True, overflow="ellipsis")  # cut on a narrow screen
        self._bars = Headed(
            TextColumn("{task.description:<8}", table_column=Column(no_wrap=True, min_width=8)),
            BarColumn(bar_width=16, pulse_style="bar.back", table_column=Column(min_width=16)),
            TextColumn("{task.fields[count]:>7}", table_column=Column(no_wrap=True, min_width=7)),
            TimeElapsedColumn(table_column=Column(no_wrap=True, min_width=7)),
            TextColumn("{task.fields[message]}", style="dim", table_column=rest),
            console=Console(stderr=True),
            refresh_per_second=5,
            expand=True,
        )
        self._begun = False  # whether a step has
        self._tasks: dict[str, TaskID] = {}
        for kind, total in totals.items():
            if total:
                self._tasks[kind] = self._bars.add_task(
                    kind, total=total, start=False, count="", message=""
                )
                self._show(kind)
        self._whole = self._bars.add_task(
            SWEEP, total=sum(totals.values()), count=self._counts.overall(), message=""
        )
        self._bars.start()

    def begin(self, address: str) -> None:
        """Start the clock of the step's kind."""
        with self._counts.lock:
            self._begun = True
            kind = self._counts.begin(address)
            self._bars.start_task(self._tasks[kind])

    def say(self, address: str, share: float, words: str) -> None:
        """Move the bar by a running step's share."""
        with self._counts.lock:
            self._show(self._counts.say(address, share, words))

    def settle(self, address: str, state: StepState, reason: str) -> None:
        """Count a step, and print a failure above the bars."""
        with self._counts.lock:
            kind = self._counts.settle(address, state)
            self._show(kind)
        if state is StepState.FAILED:
            self._bars.console.print(f"[red]failed[/red] {address}: {_escaped(reason)}")

    def note(self, line: str) -> None:
        """Print a line above the bars."""
        self._bars.console.print(_escaped(line))

    def close(self) -> None:
        """End the updates; the last state stays on the screen."""
        self._bars.stop()

    def _show(self, kind: str) -> None:
        counts = self._counts
        self._bars.update(
            self._tasks[kind],
            completed=counts.completed(kind),
            count=counts.count(kind),
            message=_escaped(counts.message(kind)),
        )

    def _show_left(self) -> None:
        if not hasattr(self, "_whole"):  # the bars are being made
            return
        with self._counts.lock:
            left = self._counts.left()
            ended = sum(self._counts.settled.values())
            count = self._counts.overall()
        words = str(left or "") if self._begun else "starting Ray"
        self._bars.update(self._whole, completed=ended, count=count, message=words)


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)


class Lines:
    """One line for each interval, for logs."""

    def __init__(
        self,
        totals: Mapping[str, int],
        reused: Mapping[str, int],
        works: Works | None = None,
        *,
        stream: TextIO | None = None,
        interval: float = INTERVAL_SECONDS,
    ) -> None:
        self._counts = _Counts(totals, reused, works)
        self._stream = stream or sys.stderr
        self._interval = interval
        self._started = self._last = time.monotonic()
        self._ended = threading.Event()
        threading.Thread(target=self._tick, name="progress", daemon=True).start()

    def begin(self, address: str) -> None:
        """Count a step that starts; prints nothing."""
        with self._counts.lock:
            self._counts.begin(address)

    def say(self, address: str, share: float, words: str) -> None:
        """Print the counts of all kinds, at most once in an interval."""
        with self._counts.lock:
            self._counts.say(address, share, words)
            self._print_if_due()

    def settle(self, address: str, state: StepState, reason: str) -> None:
        """Count a step, and print a failure at once."""
        with self._counts.lock:
            self._counts.settle(address, state)
            if state is StepState.FAILED:
                self._print(f"failed {address}: {reason}")
            self._print_if_due()

    def note(self, line: str) -> None:
        """Print a line."""
        self._print(line)

    def close(self) -> None:
        """Print the last counts."""
        self._ended.set()
        self._print(self._line())

    def _tick(self) -> None:
        """Print the counts in each interval in which nothing else has."""
        while self._interval and not self._ended.wait(self._interval / 4):
            with self._counts.lock:
                self._print_if_due()

    def _print_if_due(self) -> None:
        if time.monotonic() - self._last >= self._interval:
            self._last = time.monotonic()
            self._print(self._line())

    def _line(self) -> str:
        counts = self._counts
        kinds = [f"{kind} {counts.count(kind)}" for kind, total in counts.totals.items() if total]
        messages = " | ".join(text for kind in counts.totals if (text := counts.message(kind)))
        left = counts.left()
        time_left = f"  ({left})" if left else ""
        return "  ".join(kinds) + time_left + (f" | {messages}" if messages else "")

    def _print(self, line: str) -> None:
        seconds = time.monotonic() - self._started
        with suppress(OSError, ValueError):  # the log is gone, or a test has closed its stream
            print(f"[{seconds:6.1f} s] {line}", file=self._stream, flush=True)
