"""MLflow's database in a file: its URI for any path, what is wrong with it, one maker at a time.

Takes tracking URIs and paths. Knows SQLite and SQLAlchemy's URIs, but not MLflow. MLflow itself
tries a database that cannot be opened ten times, for minutes; `check` finds out first, in seconds.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from jobs.storage.bounded import require_regular
from orchestrator.errors import TrackingError

PREFIX = "sqlite:///"
LOCKED_SECONDS = 3.0  # wait so long for a database that another program has locked
MAKING_SECONDS = 60.0  # wait so long for another process that makes the same database
_MAGIC = b"SQLite format 3\0"


def uri_of(path: Path) -> str:
    """The tracking URI of a database file, whatever characters its path has."""
    from sqlalchemy.engine import make_url

    text = str(path)
    if make_url(f"{PREFIX}%25").database == "%":  # SQLAlchemy 2.1 decodes paths, 2.0 does not
        text = text.replace("%", "%25").replace("?", "%3F")
    return f"{PREFIX}{text}"


def path_of(uri: str) -> Path | None:
    """The absolute path of a URI's database file; None if it names no SQLite file."""
    if not uri.startswith("sqlite:"):
        return None
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    with suppress(ArgumentError):
        name = make_url(uri).database
        if name and name != ":memory:" and not name.startswith("file:"):
            return Path(name).absolute()
    return None


def absolute(uri: str) -> str:
    """The URI with an absolute path, if it names an SQLite file by a relative one."""
    path = path_of(uri)
    if path is None or uri.startswith(f"{PREFIX}/"):
        return uri
    _, mark, options = uri.partition("?")
    return f"{uri_of(path)}{mark}{options}"


def check(path: Path) -> None:
    """Raise TrackingError if the file cannot be MLflow's database now. It may be absent."""
    remedy = "or name another with --set tracking.uri=URI"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        require_regular(path)
        with path.open("rb") as file:
            start = file.read(len(_MAGIC))
    except FileNotFoundError:
        return
    except OSError as error:
        raise TrackingError(
            f"MLflow's database {path} cannot be opened ({error.strerror}); correct that, {remedy}"
        ) from error
    if start not in (b"", _MAGIC):
        raise TrackingError(
            f"MLflow's database {path} is not an SQLite file; move it away, {remedy}"
        )
    place = f"file:{urllib.parse.quote(str(path))}?mode=rw"
    try:
        with closing(sqlite3.connect(place, uri=True, timeout=LOCKED_SECONDS)) as database:
            database.execute("SELECT count(*) FROM sqlite_master")
            database.execute("BEGIN IMMEDIATE")
            database.rollback()
    except sqlite3.Error as error:
        if "locked" in str(error):
            what, how = "is locked by another program", "end that program"
        elif "readonly" in str(error) or "unable to open" in str(error):
            what, how = "may not be written", "change its permissions"
        else:
            what, how = f"is damaged ({error})", "move it away"
        raise TrackingError(f"MLflow's database {path} {what}; {how}, {remedy}") from error


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """In this block no other process of ours opens the database: two would make the same tables."""
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        deadline = time.monotonic() + MAKING_SECONDS
        while time.monotonic() < deadline:
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.1)
            except OSError:  # some network filesystems have no locks
                break
        yield
    finally:
        os.close(folder)


def remove_stray(uri: str, path: Path) -> None:
    """Remove the empty folder that MLflow makes of an encoded URI, which it does not decode."""
    made = Path(uri.partition("?")[0].removeprefix(PREFIX)).parent
    if made != path.parent:
        with suppress(OSError):
            os.removedirs(made)
