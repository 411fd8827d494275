"""Starts a worker of a private Ray: asks the fork server for it, or else runs Ray's script.

Ray runs this by its path, and it imports nothing of ours.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import sys
from importlib.util import find_spec

ADDRESS = "NML_FORK_SERVER"
PATIENCE = 30.0  # seconds, of the 60 in which Ray expects its worker


def forked(words: list[str]) -> bool:
    """Whether the server has forked a worker of this command line."""
    environment = dict(os.environ)
    address = environment.pop(ADDRESS, "")
    asked = {
        "words": words,
        "environment": environment,
        "folder": os.getcwd(),
        "files": resource.getrlimit(resource.RLIMIT_NOFILE),
        "blocked": [int(each) for each in signal.pthread_sigmask(signal.SIG_BLOCK, ())],
    }
    try:
        with open(os.memfd_create("worker"), "w+") as file, socket.socket(socket.AF_UNIX) as server:
            json.dump(asked, file)
            file.seek(0)
            server.settimeout(PATIENCE)
            server.connect(address)
            socket.send_fds(server, [b"1"], [0, 1, 2, file.fileno()])
            return server.recv(1) != b""
    except OSError:
        return False


def script() -> str:
    """Ray's script of a worker."""
    ray = find_spec("ray")
    assert ray is not None
    assert ray.origin is not None
    return os.path.join(os.path.dirname(ray.origin), "_private", "workers", "default_worker.py")


if __name__ == "__main__":
    usual = script()
    if not forked([usual, *sys.argv[1:]]):
        flags = sys.orig_argv[1 : len(sys.orig_argv) - len(sys.argv)]
        os.execv(sys.executable, [sys.executable, *flags, usual, *sys.argv[1:]])
