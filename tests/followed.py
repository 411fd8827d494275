"""Tables of what is refused with a remedy, for the tests that follow it.

A `Table` holds the cases of a room. `Cases` is one of commands: `Cases.check` gives the command,
reads the remedy from its message, follows it, gives the command again, and looks at what it shows.
"""

import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import synthetic
from commands import Run
from jobs.storage.folder import Folder
from orchestrator.experiment import last_sweep, load
from orchestrator.plan import build
from orchestrator.store.store import Store

T = TypeVar("T", bound=Callable[..., Any])
SMALL = ("tasks=[digits]", "tuning.methods={lp: {head: linear, space: {lr: 0.01}}}")


@dataclass
class Case:
    """A command line, and the folder in which it is given."""

    folder: Path
    words: list[str] = field(default_factory=list)

    def say(self, line: str) -> None:
        self.words = shlex.split(line)

    def store(self, name: str = "nml-store", *overrides: str) -> Store:
        """A store of a finished sweep of the levels 0 and 10, with made-up numbers."""
        experiment = load.load(noise="0,10", seeds="0", overrides=[*SMALL, *overrides])
        store = Store(Folder.of(self.folder / name))
        synthetic.fill(build.build(experiment), store)
        last_sweep.remember(experiment, store.root)
        return store

    def write(self, name: str, content: str | bytes = "") -> None:
        (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        data = content.encode() if isinstance(content, str) else content
        (self.folder / name).write_bytes(data)


Follow = Callable[[Case, re.Match[str]], None]


def say(line: str) -> Follow:
    """Give another command line, with what the message gives."""
    return lambda case, found: case.say(line.format(**found.groupdict()))


def put(at: int) -> Follow:
    """Write what the message gives in place of one word."""
    return lambda case, found: case.words.__setitem__(at, found["meant"])


def also(line: str) -> Follow:
    """Add words, with what the message gives."""
    return lambda case, found: case.words.extend(shlex.split(line.format(**found.groupdict())))


def delete(case: Case, found: re.Match[str]) -> None:
    """Delete the file or folder that the message names."""
    path = case.folder / found["meant"]
    for below in sorted(path.rglob("*"), reverse=True):
        below.rmdir() if below.is_dir() else below.unlink()
    path.rmdir() if path.is_dir() else path.unlink()


def nothing(case: Case, found: re.Match[str]) -> None:
    """Give the same command again."""


class Table(dict[str, tuple[Any, ...]]):
    """Cases by name: how each is made, what stands in its message, how that is followed, and what a
    room's tests find then (`usual`, where a case does not say).
    """

    def __init__(self, *usual: Any) -> None:
        super().__init__()
        self._usual = usual

    def case(self, remedy: str, follow: Callable[..., Any], *found: Any) -> Callable[[T], T]:
        """Add a case: the decorated function makes it, and names it."""

        def add(make: T) -> T:
            name = make.__name__
            assert name not in self, f"two cases are called {name}"
            self[name] = (make, remedy, follow, *(found or self._usual))
            return make

        return add


class Cases(Table):
    """Commands: `found` is what the followed one shows."""

    def check(self, name: str, folder: Path, run: Run) -> None:
        make, remedy, follow, shows = self[name]
        case = Case(folder)
        make(case)
        code, message = run(folder, *case.words)
        found = re.search(remedy, " ".join(message.split()))
        assert found is not None, message
        assert shows not in message
        if code and "made from other settings:" not in message:  # these are listed
            assert message.count("\n") == 1, message
        follow(case, found)
        code, output = run(folder, *case.words)
        assert code == 0, output
        assert shows in output
