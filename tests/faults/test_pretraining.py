"""What happens to pre-training when a disk fills, a shard rots or drivers meet.

What happens when the driver is killed stands in `test_driver.py`; when a worker is, beside the
stage's own tests.
"""

import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import stores
from commands import TINY, UNTRACKED, Run, Start, waiting
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
    return ["sweep", *TINY, *UNTRACKED, "--noise", "20", *chosen]


def untrained(undisturbed: Path, folder: Path) -> Path:
    """The folder with the store of a TINY sweep that has only its corpus and its noise."""
    return stores.copy(undisturbed, folder, "pretrain", "features", "tune")


def made(folder: Path) -> dict[str, str]:
    """Digests of what a sweep of `words` makes up to its features."""
    parts = ("corpus/digits/", "noise/digits/symmetric/draw=0/level=20/", *LEVEL_20[:2])
    return {
        name: digest
        for name, digest in digests(Folder.of(folder / "nml-store")).items()
        if name.startswith(parts) and "digits-rotated" not in name
    }


def scratch(folder: Path) -> Path:
    return folder / "nml-store/.scratch/pretrain"


def checkpoints(folder: Path) -> list[Path]:
    return sorted(scratch(folder).rglob("checkpoint-*.json"))


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
    run_on_ray: Run, undisturbed: Path, small_disk: Callable[[str], None], tmp_path: Path
) -> None:
    code, output = run_on_ray(tmp_path, *words())
    assert code == 1, output
    assert f"failed   {RUN}: the checkpoint after update" in output
    assert "No space left on device" in output
    assert "Traceback" not in output
    small_disk("64m")
    code, output = run_on_ray(tmp_path, *words())
    assert code == 0, output
    assert made(tmp_path) == made(undisturbed)


def test_a_shard_altered_between_epochs_of_a_streamed_run_is_named(
    run_on_ray: Run, tmp_path: Path
) -> None:
    # More files than a reader holds, so that each epoch reads them again.
    small = ("corpus.name=shards", "corpus.rows_per_shard=48", "overlap=allow")
    ended = threading.Event()

    def alter() -> None:
        for _ in waiting("a checkpoint"):
            if ended.is_set():
                return
            if checkpoints(tmp_path):
                break
        for shard in sorted((tmp_path / "nml-store/corpus/shards").glob("train-*.parquet")):
            data = shard.read_bytes()
            shard.write_bytes(data[:200] + bytes([data[200] ^ 1]) + data[201:])

    altering = threading.Thread(target=alter)
    altering.start()
    code, output = run_on_ray(tmp_path, *words("pretrain.resources.decoded_gb=0", *small))
    ended.set()
    altering.join()
    assert code == 1, output
    assert f"failed   {RUN.replace('digits', 'shards')}: shard train-" in output
    assert "other sha256" in output
    assert "build the corpus again" in output
    assert "Traceback" not in output


def test_two_sweeps_on_one_store_share_its_steps_and_both_end_well(
    start: Start, run_on_ray: Run, undisturbed: Path, tmp_path: Path
) -> None:
    other = start(tmp_path, *words())
    for code, output in (run_on_ray(tmp_path, *words()), other.finish()):
        assert code == 0, output
    assert made(tmp_path) == made(undisturbed)
    found = manifests(tmp_path)
    assert found
    assert all(each["provenance"]["attempts"] == 1 for each in found.values())
