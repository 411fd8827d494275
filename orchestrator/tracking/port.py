"""The ports of this machine: is one free, whose is it, which is the next that is free."""

from __future__ import annotations

import errno
import os
import socket
from contextlib import closing

HOST = "127.0.0.1"
TRIED = 100  # ports after the wanted one


def is_free(port: int) -> bool:
    """Whether a server of ours could listen at the port."""
    with closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                return False
            raise
    return True


def next_free(port: int) -> int | None:
    """The first free port from this one on; None if none of the next hundred is."""
    wanted = range(port, min(port + TRIED, 65536))
    return next((one for one in wanted if is_free(one)), None)


def owner(port: int) -> str:
    """Who listens at a port, such as "mlflow (process 4711)"; as far as this user may know."""
    import psutil

    if port < 1024 and os.geteuid() != 0:
        return "the system: ports below 1024 are for administrators"
    try:
        connections = psutil.net_connections(kind="tcp")
    except psutil.AccessDenied:
        connections = []
    for found in connections:
        address = list(found.laddr)
        if found.status != psutil.CONN_LISTEN or not found.pid or address[1:2] != [port]:
            continue
        try:
            process = psutil.Process(found.pid)
            words = " ".join(os.path.basename(w) for w in process.cmdline()[:3])
            return f"{words or process.name()} (process {found.pid})"
        except psutil.Error:
            break
    return "another process"
