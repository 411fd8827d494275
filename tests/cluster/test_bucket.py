"""Storage in a bucket: the same results as on a disk, and none lost to a bad network."""

import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path

import pyarrow.fs as pafs
import pytest

import stores
from commands import TINY, UNTRACKED, Start, waiting
from jobs.storage.folder import Folder
from orchestrator.store.lease import Leases
from outages import Bucket, Mood
from stores import LEVEL_20, digests

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


def test_a_file_is_there_whole_or_not_at_all(bucket: Bucket) -> None:
    folder = Folder.of(bucket.uri("whole")) / "a"
    folder.write_json("x/y.json", {"a": 1})
    assert (folder / "x").read_json("y.json") == {"a": 1}
    assert list(folder.files()) == [("x/y.json", 13)]
    folder.delete("x")
    assert list(folder.files()) == []
    with pytest.raises(FileNotFoundError):
        folder.read_bytes("x/y.json")


def test_two_drivers_never_hold_one_lease(bucket: Bucket) -> None:
    root = Folder.of(bucket.uri("leases"))
    first, second = Leases(root), Leases(root)
    try:
        assert first.acquire("tune/a")
        assert not second.acquire("tune/a")
        first.release("tune/a")
        assert second.acquire("tune/a")
    finally:
        first.close()
        second.close()


class Outage:
    """A mood of the bucket's, from the start of the block until it has refused so many requests."""

    def __init__(self, bucket: Bucket, mood: Mood, requests: int) -> None:
        self._bucket, self._mood, self._requests = bucket, mood, requests
        self._ending = threading.Thread(target=self._end)

    def __enter__(self) -> None:
        self._until = self._bucket.relay.refused + self._requests
        self._bucket.relay.mood = self._mood
        self._ending.start()

    def __exit__(self, *_: object) -> None:
        self._ending.join()

    def _end(self) -> None:
        for _ in waiting(f"{self._requests} refused requests"):
            if self._bucket.relay.refused >= self._until:
                self._bucket.relay.mood = "well"
                return


@pytest.mark.parametrize("mood", ["busy", "resetting"])
def test_a_request_outlives_an_outage(bucket: Bucket, mood: Mood) -> None:
    """And is sent more often than the three times of the client's own habit."""
    folder = Folder.of(bucket.uri("outage"))
    folder.write_bytes("before", b"1")
    with Outage(bucket, mood, requests=5):
        folder.write_bytes("after", b"2")
    assert folder.read_bytes("before") + folder.read_bytes("after") == b"12"


@contextmanager
def slow(bucket: Bucket, delay: float) -> Iterator[None]:
    """A disk whose every answer, and every 64 kB of one, takes `delay` seconds."""
    bucket.relay.delay, bucket.relay.mood = delay, "slow"
    try:
        yield
    finally:
        bucket.relay.mood = "well"


def test_a_lease_is_kept_through_a_slow_disk(bucket: Bucket) -> None:
    """Every file written takes as long as a beat's pause, and more."""
    root = Folder.of(bucket.uri("slow-lease"))
    with (
        slow(bucket, 0.3),
        closing(Leases(root, beat=0.2)) as holder,
        closing(Leases(root, beat=0.2)) as other,
    ):
        assert holder.acquire("tune/a")
        beats: set[datetime] = set()
        for _ in waiting("three further beats"):
            assert not other.acquire("tune/a")
            beats |= set(beats_of(root, holder))
            if len(beats) > 3:
                break
        assert holder.holds("tune/a")


def beats_of(root: Folder, driver: Leases) -> list[datetime]:
    """When a driver's beat was last written, by the bucket's clock, which tells seconds."""
    filesystem, path = (root / ".leases/beats").open()
    found = filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True))
    return [info.mtime for info in found if info.base_name == driver.owner]


def test_steps_made_on_a_slow_disk_are_those_of_a_fast_one(
    bucket: Bucket, undisturbed: Path, start: Start, tmp_path: Path
) -> None:
    """Survey, shards, overlays and commits, each at its first try and under its own lease."""
    uri = bucket.uri("slow")
    with slow(bucket, 0.1):
        code, output = start(tmp_path, "noise", "build", *TINY, "--storage", uri).finish()
    assert code == 0, output
    assert "another sweep" not in output  # leases lost to itself
    root, fast = Folder.of(uri), digests(Folder.of(undisturbed / "nml-store"))
    expected = {n: d for n, d in fast.items() if n.startswith(("corpus/digits/", "noise/"))}
    assert len(expected) > 4
    assert digests(root) == expected
    made = [root.read_json(name) for name, _ in root.files() if name.endswith("manifest.json")]
    assert [each["provenance"]["attempts"] for each in made] == [1, 1, 1]


def test_what_cannot_be_reached_at_all_is_an_error_not_a_wait(bucket: Bucket) -> None:
    folder = Folder.of(bucket.uri("x").replace("nml/x", "nobodys-bucket/x"))
    with pytest.raises(OSError, match="nobodys-bucket"):
        folder.write_bytes("a", b"1")


def test_credentials_in_a_uri_are_refused() -> None:
    with pytest.raises(ValueError, match="credentials") as raised:
        Folder.of("s3://key:secret-9d1@bucket/nml").read_bytes("x")
    assert "secret-9d1" not in str(raised.value)


def test_a_sweep_through_a_bad_network_ends_as_on_a_disk(
    bucket: Bucket, undisturbed: Path, start: Start, tmp_path: Path
) -> None:
    """503 for 8 s and resets for 8 s, from the first step that it finishes on.

    Of a sweep that lacks one noise level.
    """
    uri = bucket.uri("sweep")
    root = Folder.of(uri)
    missing = ("noise/digits/symmetric/draw=0/level=20", *LEVEL_20)
    filesystem, path = root.open()
    pafs.copy_files(
        str(stores.copy(undisturbed, tmp_path, *missing) / "nml-store"),
        path,
        source_filesystem=pafs.LocalFileSystem(),
        destination_filesystem=filesystem,
    )
    command = start(tmp_path, "sweep", *TINY, *UNTRACKED, "--storage", uri)
    first = f"{missing[0]}/manifest.json"
    command.wait_until(lambda: root.exists(first), "the first step's end", every=0.2)
    for mood in ("busy", "resetting"):
        bucket.relay.mood = mood  # type: ignore[assignment]
        time.sleep(8)
    bucket.relay.mood = "well"
    code, output = command.finish()
    assert code == 0, output
    assert "Traceback" not in output
    assert "testing-secret" not in output
    assert digests(root) == digests(Folder.of(undisturbed / "nml-store"))
    left = [name for name, _ in root.files() if name.startswith((".scratch/", ".leases/"))]
    assert left == []


def test_no_secret_is_kept_in_the_storage(bucket: Bucket) -> None:
    """After the sweep above: not in a manifest, a report or a name."""
    filesystem, path = Folder.of(bucket.uri("sweep")).open()
    found = filesystem.get_file_info(pafs.FileSelector(path, recursive=True))
    small = [i for i in found if i.type == pafs.FileType.File and i.size < 1_000_000]
    assert small
    for info in small:
        with filesystem.open_input_stream(info.path) as stream:
            assert b"testing-secret" not in stream.read(), info.path
