"""Leases: never two holders, never lost to a dead process."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from commands import waiting
from jobs.storage.folder import Folder
from orchestrator.store.lease import Leases, living


def test_one_holder_at_a_time(tmp_path: Path) -> None:
    first, second = Leases(Folder.of(tmp_path)), Leases(Folder.of(tmp_path))
    assert first.acquire("corpus/a")
    assert not second.acquire("corpus/a")
    assert second.acquire("corpus/b")
    first.release("corpus/a")
    assert second.acquire("corpus/a")
    first.close()
    second.close()


def test_a_race_of_many_never_gives_two_holders(tmp_path: Path) -> None:
    drivers = [Leases(Folder.of(tmp_path)) for _ in range(8)]
    holding, most, lock = 0, 0, threading.Lock()

    def compete(driver: Leases) -> None:
        nonlocal holding, most
        for _ in range(30):
            if driver.acquire("step"):
                with lock:
                    holding += 1
                    most = max(most, holding)
                time.sleep(0.001)
                with lock:
                    holding -= 1
                driver.release("step")

    threads = [threading.Thread(target=compete, args=(driver,)) for driver in drivers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for driver in drivers:
        driver.close()
    assert most == 1


def test_the_lease_of_a_killed_process_is_free_at_once(tmp_path: Path) -> None:
    code = (
        "import os, sys; from jobs.storage.folder import Folder;"
        "from orchestrator.store.lease import Leases;"
        f"assert Leases(Folder.of({str(tmp_path)!r})).acquire('step'); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    mine = Leases(Folder.of(tmp_path))
    assert mine.acquire("step")
    mine.close()


@pytest.mark.parametrize("pids", ["pid:[1]", None], ids=["another", "not recorded"])
def test_a_process_id_of_another_namespace_proves_nothing(tmp_path: Path, pids: str | None) -> None:
    """In two containers of one machine: the holder lives, under an id that no process has here."""
    holder, other = Leases(Folder.of(tmp_path)), Leases(Folder.of(tmp_path))
    assert holder.acquire("step")
    (path,) = (tmp_path / ".leases/claims").rglob("*.*")
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    claim = {**json.loads(path.read_text()), "pid": gone.pid, "pids": pids}
    path.write_text(json.dumps({name: value for name, value in claim.items() if value}))
    assert not other.acquire("step")
    assert holder.holds("step")
    assert living(Folder.of(tmp_path)) == {"step"}
    holder.close()
    other.close()


def age(root: Path) -> None:
    """Make all claims and heartbeats an hour old."""
    for path in (root / ".leases").rglob("*"):
        if path.is_file():
            os.utime(path, (time.time() - 3600, time.time() - 3600))


def test_a_lease_without_a_heartbeat_expires(tmp_path: Path) -> None:
    silent = Leases(Folder.of(tmp_path), beat=3600)
    other = Leases(Folder.of(tmp_path), beat=3600)
    assert silent.acquire("step")
    assert not other.acquire("step")
    age(tmp_path)
    assert other.acquire("step")
    assert not silent.holds("step")
    silent.close()
    other.close()


def test_a_lease_with_a_heartbeat_outlives_its_expiry(tmp_path: Path) -> None:
    beating = Leases(Folder.of(tmp_path), beat=0.05)
    other = Leases(Folder.of(tmp_path), beat=3600)
    assert beating.acquire("step")
    age(tmp_path)
    (beat,) = (tmp_path / ".leases/beats").iterdir()
    for _ in waiting("the next beat"):
        if beat.stat().st_mtime > time.time() - 600:
            break
    assert not other.acquire("step")
    beating.close()
    other.close()


def test_a_thousand_leases_are_kept_alive_by_one_file(tmp_path: Path) -> None:
    driver = Leases(Folder.of(tmp_path), beat=0.05)
    assert all(driver.acquire(f"tune/{n}") for n in range(50))
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    (beat,) = (tmp_path / ".leases/beats").iterdir()
    for _ in waiting("the next beat"):
        if beat.stat().st_mtime_ns != before[beat]:
            break
    after = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    assert before.keys() == after.keys()
    assert [path for path in before if before[path] != after[path]] == [beat]
    assert living(Folder.of(tmp_path)) == {f"tune/{n}" for n in range(50)}
    driver.close()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
