"""Prints one line for each node that joins or is lost while a sweep runs.

When a node is lost, stages run its work again. When the head is lost, the driver ends: Ray ends it
when the head's control store has not answered for a minute. No other message reports either: Ray's
own, a screenful of the raylet's log, is switched off. Works only for a joined cluster; a private
Ray has one node.
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
    """Report nodes to `say` until the block ends. Works only inside a `session`."""
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
                    f"the cluster's head {head} does not answer; if it stays silent, Ray ends this "
                    f"sweep within a minute; the same command continues it on another cluster"
                )
            silent = True
            continue
        silent = False
        known = now if known is None else known
        for node in known.keys() - now.keys():
            say(f"node {known[node]} is gone; its work runs again")
        for node in now.keys() - known.keys():
            say(f"node {now[node]} has joined")
        known = now


def _alive() -> dict[str, str] | None:
    """Addresses of the live nodes, by id; None if the head was lost meanwhile."""
    import ray

    try:
        return {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    except Exception:  # Ray's and the transport's, of several kinds; the next look decides
        return None


def _accepts(address: str) -> bool:
    """Whether a server listens at the address. Ray's own calls would wait for a lost head."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), ANSWER_SECONDS).close()
    except OSError:
        return False
    return True
