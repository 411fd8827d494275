"""The store, its index and its leases in a bucket: a real S3 API on loopback."""

from collections.abc import Iterator

import boto3
import pytest
from moto.server import ThreadedMotoServer

import synthetic
from commands import free_port
from jobs.place import Place
from orchestrator import experiment, index, planner
from orchestrator.lease import Leases, living
from orchestrator.plan import Plan, Standing, assess
from orchestrator.store import Store


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    port = free_port()
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}").create_bucket(Bucket="nml")
    yield Place(f"s3://nml/store?endpoint_override=http://127.0.0.1:{port}")
    server.stop()


@pytest.fixture
def small() -> Plan:
    overrides = ["tuning.fractions=[100]", "tasks=[digits]"]
    return planner.build(experiment.load(noise="0,10", overrides=overrides))


def test_standing_is_read_from_a_listing_and_the_index(
    small: Plan, bucket: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "KEEP_ROWS", 1)
    store = Store(bucket)
    synthetic.fill(small, store)
    gone = small.of_kind("tune")[0].address
    store.records(small.steps)
    store.output(gone).delete()
    found = assess(small, store)
    assert found.pop(gone).standing is Standing.RUN
    assert {assessment.standing for assessment in found.values()} == {Standing.DONE}

    def refuse(self: Store, address: str) -> None:
        raise AssertionError(f"the manifest of {address} was opened")

    monkeypatch.setattr(Store, "manifest", refuse)
    assert assess(small, store).keys() == small.steps.keys()
    cells = store.cells([step.address for step in small.of_kind("tune")])
    assert cells is not None
    assert cells.num_rows == len(small.of_kind("tune")) - 1


def test_a_listing_and_a_single_look_give_one_stamp(small: Plan, bucket: Place) -> None:
    store = Store(bucket)
    synthetic.fill(small, store)
    stamps = store.stamps(small.steps)
    assert stamps == {address: store.stamp(address) for address in small.steps}


def test_one_holder_at_a_time_in_a_bucket_too(bucket: Place) -> None:
    first, second = Leases(bucket), Leases(bucket)
    assert first.acquire("tune/a")
    assert not second.acquire("tune/a")
    assert second.acquire("tune/b")
    assert living(bucket) == {"tune/a", "tune/b"}
    first.release("tune/a")
    assert second.acquire("tune/a")
    first.close()
    second.close()
    assert list((bucket / ".leases").files()) == []
