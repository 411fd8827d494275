"""Storage in a bucket: the same results as on a disk, and none lost to a bad network."""

import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path

import pyarrow.fs as pafs
import pytest

from commands import TINY, UNTRACKED, Start, waiting
from jobs.storage.folder import Folder
from orchestrator.store.lease import Leases
from outages import Bucket, Mood
from stores import digests

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


REFUSED = 4  # requests: the client by itself sends one three times, and waits longer each time


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
    with Outage(bucket, mood, requests=REFUSED):
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
        slow(bucket, 0.15),
        closing(Leases(root, beat=0.1)) as holder,
        closing(Leases(root, beat=0.1)) as other,
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


def test_what_cannot_be_reached_at_all_is_an_error_not_a_wait(bucket: Bucket) -> None:
    folder = Folder.of(bucket.uri("x").replace("nml/x", "nobodys-bucket/x"))
    with pytest.raises(OSError, match="nobodys-bucket"):
        folder.write_bytes("a", b"1")


def test_credentials_in_a_uri_are_refused() -> None:
    with pytest.raises(ValueError, match="credentials") as raised:
        Folder.of("s3://key:secret-9d1@bucket/nml").read_bytes("x")
    assert "secret-9d1" not in str(raised.value)


EARLY = ("corpus/digits", "noise/digits/symmetric/draw=0/level=20")


@pytest.fixture(scope="module")
def swept(
    bucket: Bucket, start: Start, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Folder, str]:
    """The store of a sweep in the bucket, and what it printed.

    The bucket is on a slow disk until the steps of EARLY are there. Then the network answers 503,
    and then it cuts connections, until REFUSED requests were refused.
    """
    uri = bucket.uri("sweep")
    words = [*TINY, *UNTRACKED, "--noise", "20", "--set", "tasks=[digits]", "--storage", uri]
    root = Folder.of(uri)
    command = start(tmp_path_factory.mktemp("bucket"), "sweep", *words)
    with slow(bucket, 0.05):
        manifests = [f"{address}/manifest.json" for address in EARLY]
        command.wait_until(lambda: all(map(root.exists, manifests)), "the overlay", every=0.5)
    for mood in ("busy", "resetting"):
        with Outage(bucket, mood, requests=REFUSED):
            pass
    code, output = command.finish()
    assert code == 0, output
    return root, output


def test_a_sweep_through_a_slow_and_a_bad_network_ends_as_on_a_disk(
    swept: tuple[Folder, str], undisturbed: Path
) -> None:
    root, output = swept
    assert "Traceback" not in output
    assert "testing-secret" not in output
    found, expected = digests(root), digests(Folder.of(undisturbed / "nml-store"))
    assert {name.partition("/")[0] for name in found} > {"corpus", "pretrain", "features", "tune"}
    assert found == {name: expected[name] for name in found}
    left = [name for name, _ in root.files() if name.startswith((".scratch/", ".leases/"))]
    assert left == []


def test_steps_made_on_a_slow_disk_need_one_try_and_keep_their_leases(
    swept: tuple[Folder, str],
) -> None:
    root, output = swept
    assert "another sweep" not in output  # leases lost to itself
    made = [root.read_json(f"{address}/manifest.json") for address in EARLY]
    assert [each["provenance"]["attempts"] for each in made] == [1, 1]


def test_no_secret_is_kept_in_the_storage(swept: tuple[Folder, str]) -> None:
    """Not in a manifest, a report or a name."""
    filesystem, path = swept[0].open()
    found = filesystem.get_file_info(pafs.FileSelector(path, recursive=True))
    small = [i for i in found if i.type == pafs.FileType.File and i.size < 1_000_000]
    assert small
    for info in small:
        with filesystem.open_input_stream(info.path) as stream:
            assert b"testing-secret" not in stream.read(), info.path
