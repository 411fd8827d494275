"""Sweeps on one store: equal settings share it, other settings wait, and the first one stands."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from commands import TINY, Run
from jobs.storage.folder import Folder
from orchestrator.errors import StoreError
from orchestrator.experiment import load
from orchestrator.plan import build
from orchestrator.plan.plan import Plan
from orchestrator.store import register
from orchestrator.store.lease import Leases


def plan(*overrides: str) -> Plan:
    return build.build(load.load(noise="0,10", seeds="0", overrides=["tasks=[digits]", *overrides]))


SAME = ["pretrain.resources.cpus_per_worker=2", "name=another", "tracking.enabled=false"]
OTHER = {
    "recipe.schedule.epochs": "pretrain.recipe.schedule.epochs=7",
    "(another noise)": "noise.seed=3",
    "epochs: 8 -> 5": "tuning.epochs=5",
    "recipe.schedule.batch_size": "pretrain.recipe.schedule.batch_size=48",
}


@contextmanager
def running(root: Path, made: Plan, redo: tuple[str, ...] = ()) -> Iterator[Leases]:
    with closing(Leases(Folder.of(root), beat=3600)) as leases:
        register.enter(Folder.of(root), leases, made.steps, redo)
        yield leases


@pytest.mark.parametrize("override", SAME)
def test_sweeps_with_equal_settings_share_a_store(override: str, tmp_path: Path) -> None:
    with running(tmp_path, plan()), running(tmp_path, plan(override)):
        pass


def test_a_sweep_of_other_steps_shares_the_store(tmp_path: Path) -> None:
    other = plan("pretrain.recipe.name=mine", "pretrain.recipe.schedule.epochs=7")
    with running(tmp_path, plan()), running(tmp_path, other):
        pass


@pytest.mark.parametrize("field", OTHER)
def test_a_sweep_with_other_settings_is_refused_with_the_field(field: str, tmp_path: Path) -> None:
    with running(tmp_path, plan()):
        with pytest.raises(StoreError) as raised, running(tmp_path, plan(OTHER[field])):
            pass
        message = str(raised.value)
        assert field in message
        assert f"(process {os.getpid()} on " in message
        assert "its settings stand" in message
        assert "\n" not in message
        assert len(list((tmp_path / register.SWEEPS).iterdir())) == 1
    with running(tmp_path, plan(OTHER[field])):  # once the first has ended
        pass


def test_what_another_sweep_reads_is_not_done_again(tmp_path: Path) -> None:
    made = plan()
    with (
        running(tmp_path, made),
        pytest.raises(StoreError, match="reads corpus/digits, which is to be done again; wait"),
        running(tmp_path, made, redo=("corpus/digits",)),
    ):
        pass
    with (
        running(tmp_path, made, redo=("corpus/digits",)),
        pytest.raises(StoreError, match="does corpus/digits again; wait"),
        running(tmp_path, made),
    ):
        pass


def test_of_many_sweeps_at_once_one_kind_of_settings_stands(tmp_path: Path) -> None:
    plans = [plan(), plan("pretrain.recipe.schedule.epochs=7")]
    entered: list[int] = []
    drivers = [Leases(Folder.of(tmp_path), beat=3600) for _ in range(8)]

    def compete(number: int) -> None:
        try:
            register.enter(Folder.of(tmp_path), drivers[number], plans[number % 2].steps)
        except StoreError:
            return
        entered.append(number % 2)

    threads = [threading.Thread(target=compete, args=(n,)) for n in range(len(drivers))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for driver in drivers:
        driver.close()
    assert len(set(entered)) == 1
    assert not list((tmp_path / register.SWEEPS).iterdir())


def test_a_registration_that_becomes_visible_late_does_not_replace_one_that_stands(
    tmp_path: Path,
) -> None:
    """A file's time is from before its rename: the first driver's may be the later of the two."""
    with running(tmp_path, plan()):
        (first,) = (tmp_path / register.SWEEPS).iterdir()
        os.utime(first, (first.stat().st_atime, first.stat().st_mtime + 5))
        with pytest.raises(StoreError, match="stand"), running(tmp_path, plan("noise.seed=3")):
            pass


def test_two_that_register_at_once_both_withdraw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither stands yet, so neither is refused: the one that tries again first stands."""
    monkeypatch.setattr(register, "TRIES", 3)
    made, other = plan(), plan("noise.seed=3")
    waited = []

    def wait(_: float) -> None:
        waited.append(1)
        if len(waited) == 2:
            rival.unregister()

    monkeypatch.setattr(register.time, "sleep", wait)
    with closing(Leases(Folder.of(tmp_path), beat=3600)) as rival:
        marks = {a: s.fingerprint[: register.MARK] for a, s in other.steps.items()}
        rival.register(
            register.SWEEPS, {"fingerprints": marks, "fields": {}, "redo": [], "stands": False}
        )
        with running(tmp_path, made):
            assert len(waited) == 2


@pytest.mark.parametrize("junk", ["", "[]", "{", '{"pid": 1}', "null"])
def test_a_damaged_registration_stops_nobody(junk: str, tmp_path: Path) -> None:
    (tmp_path / register.SWEEPS).mkdir(parents=True)
    (tmp_path / register.SWEEPS / "someone").write_text(junk)
    with running(tmp_path, plan()):
        pass


HOLDER = """
import sys, time
from jobs.storage.folder import Folder
from orchestrator.cli.options import choose
from orchestrator.store import register
from orchestrator.store.lease import Leases

chosen = choose(None, *{words!r}, storage={root!r})
register.enter(Folder.of({root!r}), Leases(Folder.of({root!r})), chosen.plan.steps)
print("entered", flush=True)
time.sleep(3600)
"""


def test_a_forced_sweep_waits_for_the_one_that_runs_and_not_for_a_dead_one(
    run: Run, tmp_path: Path
) -> None:
    """Of two driver processes, the second replaces nothing while the first lives."""
    root = str(tmp_path / "nml-store")
    code = HOLDER.format(words=["0,20", "0", tuple(TINY[5::2])], root=root)
    holder = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=tmp_path
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "entered\n"
        changed = ["--set", "pretrain.recipe.schedule.lr=0.05", "--force"]
        status, output = run(tmp_path, "sweep", *TINY, *changed)
        assert status == 2, output
        assert f"another sweep on this store (process {holder.pid} on " in output
        assert "recipe.schedule.lr: 0.1 -> 0.05" in output
        assert "Traceback" not in output
        assert not (tmp_path / "nml-store/last-sweep.yaml").exists()
    finally:
        holder.kill()
        holder.wait()
    other = plan("pretrain.recipe.schedule.lr=0.05")
    with running(tmp_path / "nml-store", other):
        pass
