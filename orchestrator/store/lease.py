"""One writer at a time for each step, on any filesystem, without rename or locks.

A driver that wants a step writes a claim, then lists the claims. If its claim is the only living
one, it has the lease; otherwise it deletes its claim and waits. Two drivers that write at once see
each other and both withdraw. So two cannot have one lease on a store with consistent listings
(local disks, S3, GCS). One heartbeat file for each driver keeps all its claims alive, so a thousand
leases cost no more than one. Ages are differences between the store's own timestamps, so the clocks
of hosts need not agree. A claim of a dead process (same host, same boot, same namespace of process
ids) does not count.

A claim is the file `.leases/claims/<two digits>/<hash of the address>.<owner>`: listings stay
short, and no folder remains for each step. A heartbeat is `.leases/beats/<owner>`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from pydantic_core import to_json

from jobs import records
from jobs.storage.folder import Folder
from orchestrator.errors import StoreError

BEAT_SECONDS = 10.0
EXPIRE_SECONDS = 60.0
CLAIMS, BEATS = "claims", "beats"


@dataclass(frozen=True, kw_only=True)
class _Process:
    """The process of a driver, as its files name it."""

    pid: Annotated[int, Field(gt=0, lt=2**31)]
    host: str | None = None
    boot: str | None = None
    pids: str | None = None

    def dead(self) -> bool:
        """Whether its process is known to be gone."""
        if any(getattr(self, name) != value for name, value in _here().items()):
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return False


@dataclass(frozen=True, kw_only=True)
class _Claim(_Process):
    """A claim's file. A file that is none of these is a claim too; it ends when it expires."""

    address: str


class Leases:
    """All the claims of one driver on one store, kept alive by one thread."""

    def __init__(
        self, root: Folder, *, beat: float = BEAT_SECONDS, expire: float = EXPIRE_SECONDS
    ) -> None:
        self._store, self._root = root, root / ".leases"
        self._beat, self._expire = beat, expire
        self.owner = uuid.uuid4().hex
        self._who = _Process(**_here(), pid=os.getpid())
        self._held: set[str] = set()
        self._registered: Folder | None = None
        self._beaten = float("-inf")  # by this host's clock, which runs during sleep too
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._keep_alive, daemon=True, name="leases")
        self._thread.start()

    def acquire(self, address: str) -> bool:
        """Try to get the step's lease, without waiting; return whether this driver has it."""
        bucket, mark = _bucket(address)
        folder, mine = self._root / bucket, f"{mark}.{self.owner}"
        claim = to_json({**asdict(self._who), "address": address})
        try:
            with self._lock:
                if time.time() - self._beaten >= self._beat:
                    self._write_beat()
            folder.write_bytes(mine, claim, durable=False)
            if self._others_alive(folder, mark, mine):
                folder.delete(mine)
                return False
        except OSError as error:
            raise StoreError(
                f"the lease of {address} cannot be written ({error}); check that the storage "
                f"is reachable and that you may write to it"
            ) from error
        with self._lock:
            self._held.add(address)
        return True

    def holds(self, address: str) -> bool:
        """Whether this driver still has the lease: after a long sleep another may have taken it."""
        bucket, mark = _bucket(address)
        return address in self._held and (self._root / bucket).exists(f"{mark}.{self.owner}")

    def release(self, address: str) -> None:
        """Release a step's lease; does nothing without the lease."""
        with self._lock:
            if address not in self._held:
                return
            self._held.discard(address)
        bucket, mark = _bucket(address)
        (self._root / bucket).delete(f"{mark}.{self.owner}")

    def register(self, folder: str, record: Mapping[str, Any]) -> None:
        """Write the driver's record into a folder of the store; it lives as its leases do."""
        self._registered = self._store / folder
        text = to_json({**asdict(self._who), **record})
        try:
            with self._lock:
                self._write_beat()
            self._registered.write_bytes(self.owner, text, durable=False)
        except OSError as error:
            raise StoreError(
                f"{self._registered.uri} cannot be written ({error}); check that the storage is "
                f"reachable and that you may write to it"
            ) from error

    def unregister(self) -> None:
        """Delete the driver's record, if there is one."""
        if self._registered is not None:
            self._registered.delete(self.owner)
            self._registered = None

    def close(self) -> None:
        """Release all leases and end the thread."""
        self._closed.set()
        self._thread.join()
        for address in sorted(self._held):
            self.release(address)
        self.unregister()
        (self._root / BEATS).delete(self.owner)

    def _others_alive(self, folder: Folder, mark: str, mine: str) -> bool:
        """Whether another living claim exists. Deletes dead claims."""
        times = {n: t for n, t in _times(folder).items() if n.startswith(f"{mark}.")}
        now = times.pop(mine, None)
        if now is None:  # another process has deleted our claim
            return True
        beats = _times(self._root / BEATS) if times else {}
        alive = False
        for name, written in times.items():
            beaten = max(written, beats.get(name.partition(".")[2], written))
            claim = records.find(folder, name, _Claim)
            if (now - beaten).total_seconds() > self._expire or (claim and claim.dead()):
                folder.delete(name)
            else:
                alive = True
        return alive

    def _keep_alive(self) -> None:
        while not self._closed.wait(self._beat):
            with self._lock, contextlib.suppress(OSError):
                # The next beat tries again; expiry is six beats away.
                if self._held or self._registered:
                    self._write_beat()

    def _write_beat(self) -> None:
        (self._root / BEATS).write_bytes(self.owner, b"", durable=False)
        self._beaten = time.time()


def living(root: Folder) -> set[str]:
    """Addresses that a driver is writing now, as far as this host can tell."""
    claims, beats = root / f".leases/{CLAIMS}", _times(root / f".leases/{BEATS}")
    now, found = datetime.now(UTC), set[str]()
    for name, written in _times(claims).items():
        beaten = max(written, beats.get(name.partition(".")[2], written))
        claim = records.find(claims, name, _Claim)  # none if it was released meanwhile
        if claim and (now - beaten).total_seconds() <= EXPIRE_SECONDS and not claim.dead():
            found.add(claim.address)
    return found


def living_files(root: Folder, folder: str) -> set[str]:
    """The files of living drivers in a folder of the store: the names are their owners."""
    files, beats = root / folder, _times(root / f".leases/{BEATS}")
    now = datetime.now(UTC)
    return {
        name
        for name, written in _times(files).items()
        if (now - max(written, beats.get(name, written))).total_seconds() <= EXPIRE_SECONDS
        and not ((process := records.find(files, name, _Process)) and process.dead())
    }


def _bucket(address: str) -> tuple[str, str]:
    """The folder of a step's claims, and the prefix of their names."""
    mark = hashlib.sha256(address.encode()).hexdigest()[:32]
    return f"{CLAIMS}/{mark[:2]}", mark


def _times(folder: Folder) -> dict[str, datetime]:
    """When each file below was last written, by the store's clock."""
    import pyarrow.fs as pafs

    filesystem, path = folder.open()
    selector = pafs.FileSelector(path, recursive=True, allow_not_found=True)
    return {
        info.path[len(path) :].lstrip("/"): info.mtime.astimezone(UTC)
        for info in filesystem.get_file_info(selector)
        if info.mtime is not None
        and info.type == pafs.FileType.File
        and not info.path.endswith(".partial")  # a local file that is still being written
    }


def _here() -> dict[str, str]:
    """What makes a process id unique: containers on one machine may share all but `pids`."""
    boot, pids = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    return {
        "host": socket.gethostname(),
        "boot": boot.read_text().strip() if boot.exists() else "",  # ids restart at each boot
        "pids": os.readlink(pids) if pids.is_symlink() else "",
    }
