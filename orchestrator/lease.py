"""One writer at a time for each step, on any filesystem, without rename or locks.

A driver that wants a step writes a claim into the step's lease folder and then lists the folder:
alone there, it holds the lease; beside another living claim, it takes its own back and waits. Two
claims written at once both see each other and both withdraw, so two holders are impossible on a
store whose listings are consistent (local disks, S3, GCS). A claim is kept alive by rewriting it;
ages are differences between the store's own timestamps, so clocks of hosts need not agree. A claim
whose process is known to be dead (same host, same boot) counts for nothing at once.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import uuid
from datetime import UTC, datetime
from pathlib import Path

from jobs.place import Place
from orchestrator.errors import StoreError

BEAT_SECONDS = 10.0
EXPIRE_SECONDS = 60.0


class Leases:
    """All the claims of one driver on one store, kept alive by one thread."""

    def __init__(
        self, root: Place, *, beat: float = BEAT_SECONDS, expire: float = EXPIRE_SECONDS
    ) -> None:
        self._root = root / ".leases"
        self._beat, self._expire = beat, expire
        self._owner = uuid.uuid4().hex
        self._claim = json.dumps(
            {"host": socket.gethostname(), "boot": _boot(), "pid": os.getpid()}
        ).encode()
        self._held: set[str] = set()
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._keep_alive, daemon=True, name="leases")
        self._thread.start()

    def acquire(self, address: str) -> bool:
        """Whether this driver now holds the step's lease; never blocks."""
        folder = self._root / address
        mine = f"{self._owner}.lease"
        try:
            folder.write_bytes(mine, self._claim)
            if self._others_alive(folder, mine):
                folder.delete(mine)
                return False
        except OSError as error:
            raise StoreError(
                f"the lease of {address} cannot be written ({error}); check that the storage "
                f"is reachable and yours to write"
            ) from error
        with self._lock:
            self._held.add(address)
        return True

    def holds(self, address: str) -> bool:
        """Whether the lease is still ours: after a long sleep another driver may have taken it."""
        return address in self._held and (self._root / address).exists(f"{self._owner}.lease")

    def release(self, address: str) -> None:
        """Give a step's lease back; silent when it is not held."""
        with self._lock:
            if address not in self._held:
                return
            self._held.discard(address)
            (self._root / address).delete(f"{self._owner}.lease")

    def close(self) -> None:
        """Give everything back and end the thread."""
        self._closed.set()
        self._thread.join()
        for address in sorted(self._held):
            self.release(address)

    def _others_alive(self, folder: Place, mine: str) -> bool:
        filesystem, path = folder.open()
        times: dict[str, datetime] = {}
        for name, _ in folder.files():
            info = filesystem.get_file_info(f"{path}/{name}")
            if info.mtime is not None and name.endswith(".lease"):
                times[name] = info.mtime
        now = times.pop(mine, None)
        if now is None:  # our own claim has vanished: somebody cleaned up under us
            return True
        alive = False
        for name, beaten in times.items():
            if (now - beaten).total_seconds() > self._expire or _dead(folder, name):
                folder.delete(name)
            else:
                alive = True
        return alive

    def _keep_alive(self) -> None:
        while not self._closed.wait(self._beat):
            with self._lock:
                for address in sorted(self._held):
                    try:
                        (self._root / address).write_bytes(f"{self._owner}.lease", self._claim)
                    except OSError:
                        continue  # the next beat tries again; expiry is six beats away


def living(root: Place) -> set[str]:
    """Addresses that some driver is writing now, as far as this host can tell."""
    folder = root / ".leases"
    filesystem, path = folder.open()
    found: set[str] = set()
    for name, _ in folder.files():
        beaten = filesystem.get_file_info(f"{path}/{name}").mtime
        fresh = beaten is not None and (
            (datetime.now(UTC) - beaten.astimezone(UTC)).total_seconds() <= EXPIRE_SECONDS
        )
        if name.endswith(".lease") and fresh and not _dead(folder, name):
            found.add(name.rpartition("/")[0])
    return found


def _dead(folder: Place, name: str) -> bool:
    """Whether a claim's process is known to be gone."""
    try:
        claim = json.loads(folder.read_bytes(name))
    except (OSError, ValueError):
        return False
    if claim.get("host") != socket.gethostname() or claim.get("boot") != _boot():
        return False
    try:
        os.kill(int(claim["pid"]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _boot() -> str:
    """What tells two runs of one machine apart (process ids start anew at each)."""
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else ""
