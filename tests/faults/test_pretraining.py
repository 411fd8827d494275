"""What happens to pre-training when a worker dies, a disk fills, a shard rots or drivers meet."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from commands import Command, Start

pytestmark = [pytest.mark.faults, pytest.mark.slow]

RUN = "pretrain/digits/symmetric/resnet-small/noise=20/seed=0"


def words(*sets: str) -> list[str]:
    """A sweep that is hardly more than one pre-training run, long enough to be hit."""
    fixed = [
        "pretrain.recipe.schedule.epochs=12",
        "pretrain.recipe.schedule.batch_size=32",
        "pretrain.checkpoint_minutes=0.005",
        "tasks=[digits]",
        "tuning.fractions=[100]",
        "tuning.configurations=1",
        "tuning.epochs=1",
        "tuning.methods={lp: {head: linear, space: {lr: 0.01}}}",
    ]
    return ["sweep", "--noise", "20", *[w for each in (*fixed, *sets) for w in ("--set", each)]]


STREAMED = "pretrain.resources.decoded_gb=0"


def weights(folder: Path) -> bytes:
    return (folder / "nml-store" / RUN / "model.safetensors").read_bytes()


def table(folder: Path) -> bytes:
    return (folder / "nml-store/report/demo/table.csv").read_bytes()


@pytest.fixture(scope="module")
def undisturbed(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep that nothing happened to."""
    folder = tmp_path_factory.mktemp("undisturbed")
    code, output = start(folder, *words()).finish()
    assert code == 0, output
    return folder


def scratch(folder: Path) -> Path:
    return folder / "nml-store/.scratch/pretrain"


def checkpoints(folder: Path) -> list[Path]:
    return sorted(scratch(folder).rglob("checkpoint-*.json"))


def wait_until(command: Command, reached: Callable[[], bool], timeout: float = 180) -> None:
    deadline = time.monotonic() + timeout
    while not reached():
        assert command.process.poll() is None, command.finish()
        assert time.monotonic() < deadline, "the moment to strike never came"
        time.sleep(0.02)


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
    command = start(tmp_path, *words(STREAMED))
    wait_until(command, lambda: bool(checkpoints(tmp_path)))
    worker = worker_of(command)
    assert worker is not None
    worker.kill()
    code, output = command.finish()
    assert code == 0, output
    assert weights(tmp_path) == weights(undisturbed)
    assert table(tmp_path) == table(undisturbed)


def test_a_signal_to_all_of_a_sweep_leaves_what_the_next_one_goes_on_from(
    start: Start, undisturbed: Path, tmp_path: Path
) -> None:
    command = start(tmp_path, *words())
    wait_until(command, lambda: bool(checkpoints(tmp_path)))
    os.killpg(command.process.pid, signal.SIGTERM)
    code, output = command.finish(timeout=60)
    assert code == 130, output
    assert "Traceback" not in output
    deadline = time.monotonic() + 20
    while command.alive() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert command.alive() == []
    code, output = start(tmp_path, *words()).finish()
    assert code == 0, output
    assert weights(tmp_path) == weights(undisturbed)
    assert table(tmp_path) == table(undisturbed)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], None]]:
    """The pre-training's scratch on a file system of its own, of a size that can be changed."""
    folder = scratch(tmp_path)
    folder.mkdir(parents=True)
    if (
        os.geteuid() != 0
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1200k", "tmpfs", folder], check=False
        ).returncode
    ):
        pytest.skip("needs the right to mount a tmpfs")

    def resize(size: str) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", folder], check=True)

    yield resize
    subprocess.run(["umount", "--lazy", folder], check=True)


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
    assert weights(tmp_path) == weights(undisturbed)
    assert table(tmp_path) == table(undisturbed)


def test_a_shard_altered_between_epochs_of_a_streamed_run_is_named(
    start: Start, tmp_path: Path
) -> None:
    # More files than a reader holds, so that each epoch reads them again.
    small = ("corpus.name=shards", "corpus.rows_per_shard=48")
    command = start(tmp_path, *words(STREAMED, *small))
    wait_until(command, lambda: bool(checkpoints(tmp_path)))
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
    assert table(tmp_path) == table(undisturbed)
    manifests = [
        json.loads(path.read_text())
        for path in (tmp_path / "nml-store").rglob("manifest.json")
        if "report" not in path.parts
    ]
    assert manifests
    assert all(each["provenance"]["attempts"] == 1 for each in manifests)
