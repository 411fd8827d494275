"""The store, its index and its leases in a bucket: a real S3 API on loopback."""

import io
import threading
from collections import Counter
from collections.abc import Iterator

import boto3
import numpy as np
import pyarrow as pa
import pytest
import safetensors.torch
import timm
import torch
from moto.server import ThreadedMotoServer

import synthetic
from commands import free_port
from jobs import records
from jobs.contract import StageError, Work
from jobs.corpus.reader_spec import TableReader
from jobs.corpus.readers import reader_of
from jobs.embeddings.ledger import Ledger, Paid
from jobs.embeddings.texts import key_of
from jobs.encoders import pretrained as encoders
from jobs.encoders.api import ApiEncoder
from jobs.encoders.digests import digest
from jobs.encoders.encoder import load
from jobs.encoders.spec import EncoderStep, FileEncoder, GivenEncoder
from jobs.features.given import import_features
from jobs.features.spec import GivenStep
from jobs.noise.source import Source
from jobs.storage.folder import Folder
from jobs.tasks import registry
from orchestrator.errors import StoreError
from orchestrator.experiment import load as experiment
from orchestrator.plan import build
from orchestrator.plan.assess import assess
from orchestrator.plan.plan import Plan
from orchestrator.plan.states import StepState
from orchestrator.store import index, register
from orchestrator.store.lease import Leases, living
from orchestrator.store.store import Store


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Folder]:
    port = free_port()
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}").create_bucket(Bucket="nml")
    yield Folder(f"s3://nml/store?endpoint_override=http://127.0.0.1:{port}")
    server.stop()


@pytest.fixture
def small() -> Plan:
    probe = "tuning.methods={lp: {head: linear, space: {lr: 0.01}}}"
    overrides = ["tuning.fractions=[100]", "tasks=[digits]", probe]
    return build.build(experiment.load(noise="0,10", overrides=overrides))


def test_a_ledger_in_a_bucket_is_as_one_on_a_disk(bucket: Folder) -> None:
    own = ApiEncoder(name="ada", base_url="http://h/v1", model="text-embedding-ada-002")
    keys = [key_of(str(n)) for n in range(20)]
    vectors = np.random.default_rng(0).normal(size=(20, 8)).astype(np.float32)
    ledger = Ledger.of(bucket, own)
    ledger.begin(own)
    for n in range(0, 20, 5):
        ledger.add(keys[n : n + 5], vectors[n : n + 5], Paid(requests=1, counted=5))
    assert np.array_equal(Ledger.of(bucket, own).vectors(keys[::-1]), vectors[::-1])
    ledger.compact()
    again = Ledger.of(bucket, own)
    assert (again.files, again.paid.requests, len(again)) == (1, 4, 20)
    assert np.array_equal(again.vectors(keys), vectors)
    assert list(again.faults()) == []


@pytest.mark.slow
def test_states_are_read_from_a_listing_and_the_index(
    small: Plan, bucket: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "KEEP_ROWS", 1)
    store = Store(bucket)
    synthetic.fill(small, store)
    gone = small.of_kind("tune")[0].address
    store.records(small.steps)
    store.output(gone).delete()
    found = assess(small, store)
    assert found.pop(gone).state is StepState.MISSING
    assert {assessment.state for assessment in found.values()} == {StepState.DONE}

    def refuse(self: Store, address: str) -> None:
        raise AssertionError(f"the manifest of {address} was opened")

    monkeypatch.setattr(Store, "manifest", refuse)
    assert assess(small, store).keys() == small.steps.keys()
    cells = store.cells([step.address for step in small.of_kind("tune")])
    assert cells is not None
    assert cells.num_rows == len(small.of_kind("tune")) - 1


@pytest.mark.slow
def test_a_listing_and_a_single_look_give_one_stamp(small: Plan, bucket: Folder) -> None:
    store = Store(bucket)
    synthetic.fill(small, store)
    stamps = store.stamps(small.steps)
    assert stamps == {address: store.stamp(address) for address in small.steps}


def test_one_holder_at_a_time_in_a_bucket_too(bucket: Folder) -> None:
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


@pytest.mark.slow
def test_a_changed_object_of_a_finished_step_is_not_read(small: Plan, bucket: Folder) -> None:
    store = Store(bucket)
    synthetic.fill(small, store)
    address = small.of_kind("features")[0].address
    step, name = store.committed(address), "spectrum.parquet"
    rows = step.read_table(name)
    assert step.read_bytes(name) == store.output(address).read_bytes(name)
    store.output(address).write_table(name, rows, compression="none")
    for read in (step.read_table, step.read_bytes, step.check):
        with pytest.raises(StageError, match=f"^{name} of {address} is not the file that the"):
            read(name)
    store.output(address).delete(name)
    with pytest.raises(StageError, match=r"\(it is missing\)"):
        step.read_table(name)


def test_sweeps_with_other_settings_wait_in_a_bucket_too(small: Plan, bucket: Folder) -> None:
    changed = ["tuning.fractions=[100]", "tasks=[digits]", "noise.seed=3"]
    other = build.build(experiment.load(noise="0,10", overrides=changed))
    first, second, third = Leases(bucket), Leases(bucket), Leases(bucket)
    register.enter(bucket, first, small.steps)
    register.enter(bucket, second, small.steps)
    with pytest.raises(StoreError, match=r"\(another noise\)"):
        register.enter(bucket, third, other.steps)
    first.close()
    second.close()
    register.enter(bucket, third, other.steps)
    third.close()
    assert list((bucket / ".leases").files()) == []


def test_a_file_written_apart_is_put_whole(bucket: Folder) -> None:
    data = bytes(range(256)) * 100_000  # more than is sent at once
    with bucket.new_file("deep/large") as path:
        path.write_bytes(data)
    assert bucket.read_bytes("deep/large") == data


def test_a_data_folder_is_named_with_its_endpoint(bucket: Folder) -> None:
    sets = bucket / "sets"
    for name in ("eurosat/EuroSAT_RGB/b/1.jpg", "eurosat/EuroSAT_RGB/a/2.jpg", "t/a/3.jpg"):
        sets.write_bytes(name, b"image")
    sets.write_bytes("t/table.csv", b"path,label\na/3.jpg,cat\n")
    corpus = registry.load("eurosat", data=sets.uri).corpus
    assert corpus is not None
    reader = reader_of(corpus.reader)
    assert list(reader.files()) == [("a/2.jpg", 5), ("b/1.jpg", 5)]
    assert [len(table) for unit in reader.units() for table in reader.read(unit, Counter())] == [
        1,
        1,
    ]
    table = reader_of(TableReader(path=(sets / "t/table.csv").uri, label="label"))
    rows = [rows for unit in table.units() for rows in table.read(unit, Counter())]
    assert [each["image"].to_pylist() for each in rows] == [[b"image"]]


def test_a_file_is_named_with_its_endpoint(bucket: Folder) -> None:
    rows = {"key": [f"k{i}" for i in range(40)], "vector": [[float(i)] for i in range(40)]}
    bucket.write_table("f.parquet", pa.table({**rows, "label": [i % 2 for i in range(40)]}))
    encoder = digest(GivenEncoder(name="ada", files={"t": (bucket / "f.parquet").uri}))
    assert isinstance(encoder, GivenEncoder)
    parts = ("train", "validation", "test")
    step = GivenStep(images="t", parts=parts, file=encoder.files["t"], sha256=encoder.sha256["t"])
    out = import_features(Work("features/encoder/ada/t", "f", step, {}, bucket / "o", bucket / "s"))
    assert sum(out.counts[f"rows_{part}"] for part in parts) == 40
    source = Source((bucket / "f.parquet").uri, encoder.sha256["t"])
    assert source.table(["key"])["key"].to_pylist() == rows["key"]


@pytest.mark.slow
def test_progress_that_is_written_while_it_is_read_is_whole_or_not_there(bucket: Folder) -> None:
    lengths = [1 + 7 * i % 50 for i in range(200)]
    writing = threading.Thread(
        target=lambda: [bucket.write_json("p.json", {"words": "x" * n}) for n in lengths]
    )
    writing.start()
    found = []
    while writing.is_alive():
        try:
            found.append(records.find(bucket, "p.json", dict[str, str]))
        except OSError as error:  # moto sent more than the length that it had told
            assert "response stream" in str(error)  # noqa: PT017
    whole = [one for one in found if one is not None]
    assert whole
    assert {len(one["words"]) for one in whole} <= set(lengths)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
def test_an_encoders_weights_may_be_in_a_bucket(bucket: Folder, name: str) -> None:
    model = timm.create_model("test_resnet")
    sink = io.BytesIO()
    torch.save(model.state_dict(), sink)
    whole = name.endswith(".safetensors")
    bucket.write_bytes(
        f"weights/{name}",
        safetensors.torch.save(model.state_dict()) if whole else sink.getvalue(),
    )
    file = (bucket / f"weights/{name}").uri
    encoder = digest(FileEncoder(name="e", model="test_resnet", file=file))
    step = EncoderStep(encoder=encoder)
    out = bucket / "out"
    encoders.import_encoder(Work("encoder/e", "f", step, {}, out, bucket / "scratch"))
    opened = load(out)
    assert opened.card.source["file"] == name
    images = torch.rand(2, 3, opened.card.input.size, opened.card.input.size)
    assert torch.isfinite(opened.features(images)).all()


@pytest.mark.parametrize(
    ("file", "folder", "name"),
    [
        (
            "s3://b/x/f.npy?endpoint_override=http://h:9/",
            "s3://b/x?endpoint_override=http://h:9/",
            "f.npy",
        ),
        ("gs://b/f.npy", "gs://b", "f.npy"),
        ("/f?a=/b.npy", "/f?a=", "b.npy"),
        ("/f.npy", "/", "f.npy"),
    ],
)
def test_a_file_is_in_its_folder(file: str, folder: str, name: str) -> None:
    assert Folder.holding(file) == (Folder(folder), name)
    assert (Folder(folder) / name).uri == file
