"""A network that fails when told to: a relay in front of a server, a bucket behind one."""

import socket
import struct
import threading
import time
from dataclasses import dataclass
from typing import Literal

Mood = Literal["well", "slow", "busy", "resetting"]

BUSY = b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class Relay:
    """Passes connections on to a port; `mood` decides what becomes of new and open ones."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._mood: Mood = "well"
        self._open: set[socket.socket] = set()
        self.delay = 0.0
        """Seconds that each piece (64 kB at most) of an answer is kept back while it is slow."""
        self.refused = 0
        """Connections that were answered with 503 or reset."""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def mood(self) -> Mood:
        """`well`: passed on; `slow`: late by `delay`; `busy`: 503; `resetting`: cut off."""
        return self._mood

    @mood.setter
    def mood(self, mood: Mood) -> None:
        self._mood = mood
        if mood in ("busy", "resetting"):
            for connection in list(self._open):
                _cut(connection)

    def close(self) -> None:
        """Accept nothing any more, and cut what is open."""
        self._listener.close()
        self.mood = "resetting"

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        if self._mood in ("busy", "resetting"):
            self.refused += 1
            if self._mood == "busy":
                try:
                    client.settimeout(5)
                    client.recv(1 << 16)
                    client.sendall(BUSY)
                except OSError:
                    pass
                client.close()
            else:
                _cut(client)
            return
        try:
            server = socket.create_connection(("127.0.0.1", self._target))
        except OSError:
            _cut(client)
            return
        self._open |= {client, server}
        back = threading.Thread(target=self._pump, args=(server, client, True), daemon=True)
        back.start()
        self._pump(client, server)
        back.join()
        self._open -= {client, server}

    def _pump(self, source: socket.socket, sink: socket.socket, answers: bool = False) -> None:
        try:
            while data := source.recv(1 << 16):
                if answers and self._mood == "slow":
                    time.sleep(self.delay)
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            _cut(sink)


@dataclass(frozen=True)
class Bucket:
    """An S3 store of its own."""

    relay: Relay

    def uri(self, folder: str) -> str:
        """A folder of it, as `--storage` takes it."""
        return f"s3://nml/{folder}?endpoint_override=http://127.0.0.1:{self.relay.port}"


def _cut(connection: socket.socket) -> None:
    """Close with a reset in place of a goodbye."""
    try:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
    except OSError:
        pass
