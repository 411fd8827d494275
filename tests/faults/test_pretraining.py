"""What happens to pre-training when a worker dies, a disk fills, a shard rots or drivers meet.

`test_driver.py` stops and kills the driver of a sweep that pre-trains.
"""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

import stores
from commands import TINY, Command, Start
from jobs.storage.folder import Folder
from stores import LEVEL_20, digests, manifests

pytestmark = [pytest.mark.faults, pytest.mark.slow]

RUN = "pretrain/digits/symmetric/resnet-small/noise=20/seed=0"


def words(*sets: str) -> list[str]:
    """Of a TINY sweep the pre-training at one level, and hardly more."""
    fixed = [
        "pretrain.checkpoint_minutes=0.005",
        "tasks=[digits]",
        "tuning.methods={lp: {head: linear, space: {lr: 0.01}}}",
    ]
    chosen = [word for each in (*fixed, *sets) for word in ("--set", each)]
    return ["sweep", *TINY, "--noise", "20", *chosen]


STREAMED = "pretrain.resources.decoded_gb=0"


def untrained(undisturbed: Path, folder: Path) -> Path:
    """The folder with the store of a TINY sweep that has only its corpus and its noise."""
    return stores.copy(undisturbed, folder, "pretrain", "features", "tune")


def made(folder: Path) -> dict[str, str]:
    """Digests of what a sweep of `words` makes up to its features."""
    parts = ("corpus/digits/", "noise/digits/symmetric/level=20/", *LEVEL_20[:2])
    return {
        name: digest
        for name, digest in digests(Folder.of(folder / "nml-store")).items()
        if name.startswith(parts) and "digits-rotated" not in name
    }


def scratch(folder: Path) -> Path:
    return folder / "nml-store/.scratch/pretrain"


def checkpoints(folder: Path) -> list[Path]:
    return sorted(scratch(folder).rglob("checkpoint-*.json"))


def worker_of(command: Command) -> psutil.Process | None:
    for process in psutil.Process(command.process.pid).children(recursive=True):
        try:
            if "RayTrainWorker" in " ".join(process.cmdline()):
                return process
        except psutil.NoSuchProcess:
            continue
    return None


def test_a_worker_killed_while_it_streams_ends_with_the_held_runs_weights(
    start: Start, undisturbed: Path, tmp_path: Path
) -> None:
    untrained(undisturbed, tmp_path)
    command = start(tmp_path, *words(STREAMED))
    command.wait_until(lambda: bool(checkpoints(tmp_path)), "a checkpoint")
    worker = worker_of(command)
    assert worker is not None
    worker.kill()
    code, output = command.finish()
    assert code == 0, output
    assert made(tmp_path) == made(undisturbed)


@pytest.fixture
def small_disk(undisturbed: Path, tmp_path: Path) -> Iterator[Callable[[str], None]]:
    """The pre-training's scratch on a file system of its own, of a size that can be changed."""
    place = scratch(untrained(undisturbed, tmp_path))
    place.mkdir(parents=True, exist_ok=True)
    if (
        os.geteuid() != 0
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1200k", "tmpfs", place], check=False
        ).returncode
    ):
        pytest.skip("needs the right to mount a tmpfs")

    def resize(size: str) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", place], check=True)

    yield resize
    subprocess.run(["umount", "--lazy", place], check=True)


def test_a_full_disk_is_said_in_a_sentence_and_nothing_is_lost(
    start: Start, undisturbed: Path, small_disk: Callable[[str], None], tmp_path: Path
) -> None:
    code, output = start(tmp_path, *words()).finish()
    assert code == 1, output
    assert f"failed   {RUN}: the checkpoint after update" in output
    assert "No space left on device" in output
    assert "Traceback" not in output
    small_disk("64m")
    code, output = start(tmp_path, *words()).finish()
    assert code == 0, output
    assert made(tmp_path) == made(undisturbed)


def test_a_shard_altered_between_epochs_of_a_streamed_run_is_named(
    start: Start, tmp_path: Path
) -> None:
    # More files than a reader holds, so that each epoch reads them again.
    small = ("corpus.name=shards", "corpus.rows_per_shard=48")
    command = start(tmp_path, *words(STREAMED, *small))
    command.wait_until(lambda: bool(checkpoints(tmp_path)), "a checkpoint")
    for shard in sorted((tmp_path / "nml-store/corpus/shards").glob("train-*.parquet")):
        data = shard.read_bytes()
        shard.write_bytes(data[:200] + bytes([data[200] ^ 1]) + data[201:])
    code, output = command.finish()
    assert code == 1, output
    assert f"failed   {RUN.replace('digits', 'shards')}: shard train-" in output
    assert "other sha256" in output
    assert "build the corpus again" in output
    assert "Traceback" not in output


def test_two_sweeps_on_one_store_share_its_steps_and_both_end_well(
    start: Start, undisturbed: Path, tmp_path: Path
) -> None:
    commands = [start(tmp_path, *words()) for _ in range(2)]
    for code, output in [command.finish() for command in commands]:
        assert code == 0, output
    assert made(tmp_path) == made(undisturbed)
    found = manifests(tmp_path)
    assert found
    assert all(each["provenance"]["attempts"] == 1 for each in found.values())
