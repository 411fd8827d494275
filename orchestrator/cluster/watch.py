"""Says which nodes come and go while a sweep runs, one line each.

A lost node costs what ran on it, and stages run that again by themselves; a lost head ends the
driver (Ray ends it when the head's control store has not answered for a minute). Neither is told by
anybody else: Ray's own words for it, a screenful of the raylet's log, are not shown. Only for a
cluster that was joined; a private Ray has one node, which goes with it.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LOOK_SECONDS = 3.0
ANSWER_SECONDS = 5.0  # how long the head may take to accept a connection


@contextmanager
def watching(say: Callable[[str], None]) -> Iterator[None]:
    """Tell of nodes for the length of the block; inside a `session` only."""
    if not os.environ.get("RAY_ADDRESS"):
        yield
        return
    ended = threading.Event()
    thread = threading.Thread(target=_watch, args=(say, ended), name="watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(ANSWER_SECONDS)  # it may wait for a head that is gone


def _watch(say: Callable[[str], None], ended: threading.Event) -> None:
    import ray

    head = ray.get_runtime_context().gcs_address
    known, silent = _alive(), False
    while not ended.wait(LOOK_SECONDS):
        now = _alive() if _accepts(head) else None
        if now is None:
            if not silent:
                say(
                    f"the cluster's head {head} does not answer; if it stays away Ray ends this "
                    f"sweep within a minute, and the same command goes on with another cluster"
                )
            silent = True
            continue
        silent = False
        known = now if known is None else known
        for node in known.keys() - now.keys():
            say(f"node {known[node]} is gone; what ran there runs again")
        for node in now.keys() - known.keys():
            say(f"node {now[node]} has joined")
        known = now


def _alive() -> dict[str, str] | None:
    """Addresses of the nodes that are there, by their ids; none when the head went meanwhile."""
    import ray

    try:
        return {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    except Exception:  # of several kinds, Ray's own and the transport's; the next look tells
        return None


def _accepts(address: str) -> bool:
    """Whether something listens there. Asked first, since Ray's own calls wait for a lost head."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), ANSWER_SECONDS).close()
    except OSError:
        return False
    return True
