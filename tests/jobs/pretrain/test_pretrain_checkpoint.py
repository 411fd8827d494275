"""Checkpoints are written during training, whole or not at all; their errors are never lost."""

import errno
import os
import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from commands import PATIENCE
from jobs.contract import StageError, Work
from jobs.pretrain.checkpoint import Checkpoints, Position, Progress
from jobs.pretrain.loop import Pace, Watch
from jobs.pretrain.run import train_run
from jobs.storage.folder import Folder


@dataclass(frozen=True)
class Slow(Folder):
    """A folder that writes files once `open_gate` is set, and fails as a full disk if `full` is."""

    open_gate: threading.Event = field(default_factory=threading.Event)
    full: threading.Event = field(default_factory=threading.Event)

    def write_bytes(self, name: str, data: bytes) -> None:
        assert self.open_gate.wait(PATIENCE)
        if self.full.is_set():
            raise OSError(errno.ENOSPC, "No space left on device")
        super().write_bytes(name, data)


def trained(value: float) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = nn.Linear(3, 2)
    with torch.no_grad():
        model.weight.fill_(value)
    return model, torch.optim.AdamW(model.parameters())


def at(updates: int) -> Progress:
    return Progress(Position(0, updates, updates))


def test_saving_returns_at_once_and_keeps_the_state_of_that_moment(tmp_path: Path) -> None:
    folder = Slow(str(tmp_path))
    checkpoints = Checkpoints(folder)
    model, optimizer = trained(1.0)
    checkpoints.save(model, optimizer, at(1))
    assert list(folder.files()) == []
    with torch.no_grad():
        model.get_parameter("weight").fill_(2.0)
    folder.open_gate.set()
    checkpoints.join()
    read = checkpoints.latest()
    assert read is not None
    assert read.tensors["model.weight"].unique().tolist() == [1.0]
    assert checkpoints.seconds > 0


def test_a_failed_checkpoint_is_raised_once_with_the_last_good_one(
    tmp_path: Path,
) -> None:
    folder = Slow(str(tmp_path))
    folder.open_gate.set()
    checkpoints = Checkpoints(folder)
    checkpoints.save(*trained(1.0), at(1))
    checkpoints.join()
    folder.full.set()
    checkpoints.save(*trained(2.0), at(2))
    checkpoints.wait()
    message = r"after update 2 cannot be written .*No space left.*last good .*checkpoint-000000001"
    with pytest.raises(StageError, match=message):
        checkpoints.check()
    checkpoints.check()
    read = checkpoints.latest()
    assert read is not None
    assert read.progress.position.updates == 1
    assert not [name for name, _ in folder.files() if "partial" in name]


def test_weights_that_are_not_finite_are_not_written(tmp_path: Path) -> None:
    checkpoints = Checkpoints(Folder.of(tmp_path))
    checkpoints.save(*trained(float("nan")), at(1))
    with pytest.raises(StageError, match="weight is not finite after update 1; no checkpoint was"):
        checkpoints.join()
    assert checkpoints.latest() is None


def test_a_run_stops_at_the_step_after_a_failed_checkpoint(
    supervised: Callable[..., Any], make_work: Callable[..., Work]
) -> None:
    work = make_work(supervised(epochs=4))
    folder = Slow(work.scratch.uri)
    folder.open_gate.set()
    updates: list[float] = []

    def on_progress(share: float, words: str) -> None:
        updates.append(share)
        if len(updates) > 3:
            folder.full.set()

    blocked = Work(work.address, work.fingerprint, work.spec, work.inputs, work.output, folder)
    with pytest.raises(StageError, match="No space left on device"):
        train_run(blocked, watch=Watch(on_progress=on_progress), pace=Pace(minutes=0))
    assert len(updates) < 9
    whole = make_work(supervised(epochs=4), "whole")
    train_run(whole)
    train_run(work)
    name = "model.safetensors"
    assert work.output.read_bytes(name) == whole.output.read_bytes(name)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], None]]:
    """The scratch of the run `run` on its own file system; gives a function that resizes it."""
    folder = tmp_path / "run/scratch"
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False).returncode:
        pytest.skip("needs the right to mount a tmpfs")

    def resize(size: str) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)

    yield resize
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.faults
def test_a_full_disk_is_reported_in_one_sentence_and_nothing_is_lost(
    supervised: Callable[..., Any],
    make_work: Callable[..., Work],
    small_disk: Callable[[str], None],
) -> None:
    whole, work = make_work(supervised(), "whole"), make_work(supervised())
    train_run(whole)
    with pytest.raises(StageError, match=r"cannot be written to .*run/scratch \(.*No space left"):
        train_run(work, pace=Pace(minutes=0))
    assert not [name for name, _ in work.scratch.files() if "partial" in name]
    small_disk("16m")
    train_run(work, pace=Pace(minutes=0))
    name = "model.safetensors"
    assert work.output.read_bytes(name) == whole.output.read_bytes(name)


def test_a_checkpoint_whose_position_has_changed_is_not_used(tmp_path: Path) -> None:
    model = torch.nn.Linear(3, 2)
    checkpoints = Checkpoints(Folder.of(tmp_path))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    checkpoints.save(model, optimizer, Progress(Position(1, 2, 10)))
    assert checkpoints.latest() is not None
    (path,) = tmp_path.glob("*.json")
    good = path.read_text()
    path.write_text(re.sub(r'("updates": ?)10', r"\g<1>30", good))
    assert path.read_text() != good
    assert checkpoints.latest() is None
    assert checkpoints.damaged == 1
