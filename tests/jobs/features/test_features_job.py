"""The features stage on a real Ray, with real digits and a real (untrained) timm encoder."""

import dataclasses
import hashlib
import importlib.metadata
import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from jobs.contract import Hooks, Outcome, StageError, Work
from jobs.corpus.job import run_corpus
from jobs.corpus.reader_spec import DigitsReader
from jobs.corpus.shards import Index, read_part
from jobs.corpus.spec import Corpus
from jobs.corpus.units import units_of
from jobs.encoders.encoder import Architecture, EncoderCard, load, save, weights_bytes
from jobs.encoders.image import LEAST, MOST, ImageEncoder
from jobs.features.extract import extract
from jobs.features.job import run
from jobs.features.parts import finish, save_unit
from jobs.features.spec import FeaturesStep, Precision
from jobs.features.unit_table import schema
from jobs.images.spec import Augment, ImageInput, Shift, Views
from jobs.storage.folder import Folder
from tests import pretend

CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
VIEWS = Views(count=2, augment=Augment(degrees=10, translate=0.1))
PLAIN = FeaturesStep(images="digits", parts=("train", "validation", "test"), views=VIEWS)
INVERTED = FeaturesStep(images="inverted", parts=("test",), shift=Shift(kind="invert"))


@dataclass
class Results:
    of: dict[str, Outcome | BaseException] = field(default_factory=dict)
    stop: Callable[[], bool] = lambda: False

    def hooks(self) -> Hooks:
        def done(address: str, result: Outcome | BaseException) -> None:
            assert address not in self.of
            self.of[address] = result

        return Hooks(done=done, say=lambda *_: None, stopping=lambda: self.stop())

    def outcome(self, address: str) -> Outcome:
        result = self.of[address]
        assert isinstance(result, Outcome), result
        return result


def put_encoder(folder: Folder, seed: int, spoilt: bool = False) -> Folder:
    image = ImageInput(size=16, channels=1, mean=(0.5,), std=(0.5,))
    options = {"channels": [8, 8, 16, 24]}
    architecture = Architecture("timm", "resnet18", options, image, len(CLASSES))
    torch.manual_seed(seed)
    model = architecture.build()
    if spoilt:
        with torch.no_grad():
            next(iter(model.parameters())).fill_(math.nan)
    weights = weights_bytes(model)
    digest = hashlib.sha256(weights).hexdigest()
    card = EncoderCard("timm", "resnet18", options, image, CLASSES, 24, digest, "order", digest)
    save(folder, card, weights)
    return folder


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> Folder:
    root = Folder.of(tmp_path_factory.mktemp("store"))
    spec = Corpus(name="digits", reader=DigitsReader(), rows_per_shard=300)
    results = Results()
    run_corpus([Work("c", "f", spec, {}, root / "corpus", root / "scratch")], results.hooks())
    assert isinstance(results.of["c"], Outcome)
    return root / "corpus"


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    return put_encoder(Folder.of(tmp_path_factory.mktemp("encoder")), 0)


def work(root: Path, address: str, step: FeaturesStep, encoder: Folder, corpus: Folder) -> Work:
    folder = Folder.of(root)
    inputs = {"encoder": encoder, "corpus": corpus}
    return Work(address, "f", step, inputs, folder / "out" / address, folder / "scratch" / address)


def bytes_of(folder: Folder) -> dict[str, bytes]:
    return {name: folder.read_bytes(name) for name, _ in folder.files()}


@pytest.fixture(scope="module")
def extracted(tmp_path_factory: pytest.TempPathFactory, digits: Folder, encoder: Folder) -> Work:
    step = work(tmp_path_factory.mktemp("features"), "plain", PLAIN, encoder, digits)
    results = Results()
    run([step], results.hooks())
    outcome = results.outcome("plain")
    index = Index.read(digits)
    assert outcome.counts == {
        "rows_train": 3 * index.rows("train"),
        "rows_validation": index.rows("validation"),
        "rows_test": index.rows("test"),
        "dim": 24,
    }
    assert 0 < outcome.metrics["features/sve"] <= math.log(24)
    assert outcome.metrics["features/lsvr"] >= 0
    assert outcome.seconds
    assert {"features/sve_raw", "features/lsvr_centred"} <= set(outcome.metrics)
    return step


def test_every_row_has_its_label_and_all_its_views_in_order(
    extracted: Work, digits: Folder
) -> None:
    for part, views in (("train", 3), ("validation", 1), ("test", 1)):
        table = extracted.output.read_table(f"features-{part}.parquet")
        assert table.schema.equals(schema("float32", 24))
        rows = list(zip(table["view"].to_pylist(), table["key"].to_pylist(), strict=True))
        source = read_part(digits, part, ["key", "label"])
        label = dict(zip(source["key"].to_pylist(), source["label"].to_pylist(), strict=True))
        assert rows == [(view, key) for view in range(views) for key in sorted(label)]
        assert table["label"].to_pylist() == [label[key] for _, key in rows]
    assert extracted.output.read_json("classes.json") == list(CLASSES)
    spectrum = extracted.output.read_table("spectrum.parquet")
    assert spectrum["part"].to_pylist() == ["test"] * 3
    assert set(spectrum["dtype"].to_pylist() + spectrum["stored"].to_pylist()) == {"float32"}


def test_plain_features_are_the_encoders_own(
    extracted: Work, digits: Folder, encoder: Folder
) -> None:
    opened = load(encoder)
    source = read_part(digits, "test", ["key", "image"]).sort_by("key")
    rows = [opened.prepare(data.as_py(), "k") for data in source["image"]]
    expected = opened.features(torch.stack(rows)).numpy()
    table = extracted.output.read_table("features-test.parquet")
    found = np.stack(table["vector"].to_numpy())
    assert np.allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_each_view_differs_from_the_plain_image_and_from_the_other(extracted: Work) -> None:
    table = extracted.output.read_table("features-train.parquet")
    plain, one, two = np.stack(table["vector"].to_numpy()).reshape(3, -1, 24)
    for a, b in ((plain, one), (plain, two), (one, two)):
        assert np.abs(a - b).max(axis=1).min() > 0


def test_ray_does_not_affect_the_bytes(
    extracted: Work, digits: Folder, encoder: Folder, tmp_path: Path
) -> None:
    torch.set_num_threads(1)
    index, scratch, output = (
        Index.read(digits),
        Folder.of(tmp_path / "s"),
        Folder.of(tmp_path / "o"),
    )
    units = units_of(index, PLAIN.parts)
    opened = load(encoder)
    for unit in reversed(units):
        save_unit(scratch, unit, extract(unit, digits, index.name, opened, PLAIN))
    finish(PLAIN, index, units, scratch, output)
    assert bytes_of(output) == bytes_of(extracted.output)


@pytest.mark.parametrize(
    "augment", [Augment(flip=True), Augment(translate=0.1, flip=True, erase=0.5)]
)
def test_no_tensor_is_left_on_the_other_device(
    augment: Augment, digits: Folder, encoder: Folder
) -> None:
    index = Index.read(digits)
    unit = units_of(index, PLAIN.parts)[0]
    step = PLAIN.model_copy(update={"views": Views(count=2, augment=augment)})
    on_cpu = extract(unit, digits, index.name, load(encoder), step)
    with pretend.gpu():
        opened = load(encoder, pretend.GPU)
        assert extract(unit, digits, index.name, opened, step).equals(on_cpu)


def test_batch_size_affects_features_by_rounding_alone(
    extracted: Work, digits: Folder, encoder: Folder, tmp_path: Path
) -> None:
    step = PLAIN.model_copy(update={"batch_size": 17})
    one = work(tmp_path, "one", step, encoder, digits)
    run([one], Results().hooks())
    for part in PLAIN.parts:
        a, b = (w.output.read_table(f"features-{part}.parquet") for w in (one, extracted))
        assert a.drop_columns("vector").equals(b.drop_columns("vector"))
        one_by_one, by_default = (np.stack(t["vector"].to_numpy()) for t in (a, b))
        assert np.allclose(one_by_one, by_default, rtol=1e-4, atol=1e-5)


def test_parts_that_are_added_later_are_those_made_at_once(
    extracted: Work, digits: Folder, encoder: Folder, tmp_path: Path
) -> None:
    tested = PLAIN.model_copy(update={"only": ("test",)})
    step = work(tmp_path, "later", tested, encoder, digits)
    results = Results()
    run([step], results.hooks())
    assert set(results.outcome("later").counts) == {"rows_test", "dim"}
    before = {name: step.output.stamp(name) for name, _ in step.output.files()}
    assert "features-train.parquet" not in before
    more = PLAIN.model_copy(update={"only": ("train", "validation")})
    results = Results()
    run([dataclasses.replace(step, spec=more)], results.hooks())
    assert set(results.outcome("later").counts) == {"rows_train", "rows_validation", "dim"}
    assert not results.outcome("later").metrics
    assert bytes_of(step.output) == bytes_of(extracted.output)
    assert before == {name: step.output.stamp(name) for name in before}


def test_no_part_is_added_to_those_of_another_library_version(
    extracted: Work, digits: Folder, encoder: Folder, tmp_path: Path
) -> None:
    step = work(tmp_path, "other", PLAIN, encoder, digits)
    made_with = extracted.output.read_json("extraction.json")
    step.output.write_json("extraction.json", {**made_with, "versions": {"timm": "0.1"}})
    results = Results()
    run([step], results.hooks())
    assert "made with other versions" in str(results.of["other"])
    assert [name for name, _ in step.output.files()] == ["extraction.json"]


def test_a_shift_reaches_the_test_part_alone_and_changes_it(
    extracted: Work, digits: Folder, encoder: Folder, tmp_path: Path
) -> None:
    step = work(tmp_path, "inverted", INVERTED, encoder, digits)
    results = Results()
    run([step], results.hooks())
    assert set(results.outcome("inverted").counts) == {"rows_test", "dim"}
    a, b = (w.output.read_table("features-test.parquet") for w in (step, extracted))
    assert a["key"].equals(b["key"])
    assert np.abs(np.stack(a["vector"].to_numpy()) - np.stack(b["vector"].to_numpy())).max() > 0.01


def test_many_works_share_one_call_and_a_broken_encoder_fails_alone(
    extracted: Work, digits: Folder, encoder: Folder, tmp_path: Path
) -> None:
    other = put_encoder(Folder.of(tmp_path / "other"), 1)
    spoilt = put_encoder(Folder.of(tmp_path / "spoilt"), 2, spoilt=True)
    altered = put_encoder(Folder.of(tmp_path / "altered"), 3)
    altered.write_bytes("model.safetensors", b"not the weights")
    works = [
        work(tmp_path, "plain", PLAIN, encoder, digits),
        work(tmp_path, "spoilt", INVERTED, spoilt, digits),
        work(tmp_path, "missing", INVERTED, Folder.of(tmp_path / "nowhere"), digits),
        work(tmp_path, "altered", INVERTED, altered, digits),
        work(tmp_path, "no-corpus", INVERTED, encoder, Folder.of(tmp_path / "nowhere")),
        work(tmp_path, "other", INVERTED, other, digits),
    ]
    results = Results()
    run(works, results.hooks())
    assert set(results.of) == {w.address for w in works}
    assert bytes_of(works[0].output) == bytes_of(extracted.output)
    assert results.outcome("other").counts["rows_test"] > 0
    for address, sentence in (
        ("spoilt", "float32); give it other weights"),
        ("altered", "other sha256"),
    ):
        assert isinstance(results.of[address], StageError)
        assert sentence in str(results.of[address])
    assert "FileNotFoundError" in str(results.of["missing"])
    assert not isinstance(results.of["missing"], StageError)
    assert isinstance(results.of["no-corpus"], FileNotFoundError)


def test_an_interrupted_step_goes_on_and_gives_the_same_bytes(
    extracted: Work, digits: Folder, encoder: Folder, tmp_path: Path
) -> None:
    step = work(tmp_path, "plain", PLAIN, encoder, digits)
    stopped = Results(stop=lambda: any(True for _ in step.scratch.files()))
    run([step], stopped.hooks())
    assert stopped.of == {}
    kept = [name for name, _ in step.scratch.files()]
    assert kept
    marked = step.scratch.local_path() / kept[0]
    before = marked.stat().st_mtime_ns
    results = Results()
    run([step], results.hooks())
    assert bytes_of(step.output) == bytes_of(extracted.output)
    assert marked.stat().st_mtime_ns == before


def test_features_record_what_they_were_made_with(extracted: Work, encoder: Folder) -> None:
    recorded = extracted.output.read_json("extraction.json")
    assert recorded["weights_sha256"] == load(encoder).card.weights_sha256
    assert recorded["views"] == VIEWS.semantic()
    assert (recorded["dtype"], recorded["precision"], recorded["device"]) == (
        "float32",
        "float32",
        "cpu",
    )
    assert recorded["versions"]["torch"] == importlib.metadata.version("torch")
    assert recorded["batch_sizes"] == [load(encoder).batch_size("auto", "float32")]


def test_a_resumed_step_reuses_nothing_made_by_another_encoder(
    digits: Folder, encoder: Folder, tmp_path: Path
) -> None:
    other = put_encoder(Folder.of(tmp_path / "other"), 5)
    alone = work(tmp_path, "alone", INVERTED, encoder, digits)
    run([alone], Results().hooks())
    unit = units_of(Index.read(digits), INVERTED.parts)[0]
    mixed = work(tmp_path, "mixed", INVERTED, encoder, digits)
    mismatched = extract(unit, digits, "digits", load(other), INVERTED)
    mixed.scratch.write_table(unit.name, mismatched)
    run([mixed], Results().hooks())
    assert bytes_of(mixed.output) == bytes_of(alone.output)


def test_a_resumed_step_reuses_nothing_of_a_rebuilt_shard(
    extracted: Work, digits: Folder, encoder: Folder, tmp_path: Path
) -> None:
    step = work(tmp_path, "rebuilt", PLAIN, encoder, digits)
    unit = units_of(Index.read(digits), PLAIN.parts)[0]
    old = dataclasses.replace(unit, sha256="0" * 64)
    table = extract(old, digits, "digits", load(encoder), PLAIN)
    at = table.column_names.index("label")
    wrong = pa.array(np.zeros(len(table)), pa.int32())
    save_unit(step.scratch, old, table.set_column(at, table.schema.field("label"), wrong))
    run([step], Results().hooks())
    assert bytes_of(step.output) == bytes_of(extracted.output)


def test_no_row_group_holds_two_views(extracted: Work) -> None:
    """A reader of one view need not read the vectors of another."""
    file = pq.ParquetFile(extracted.output.local_path() / "features-train.parquet")
    groups = [file.read_row_group(n, ["view"])["view"] for n in range(file.num_row_groups)]
    assert [len(set(group.to_pylist())) for group in groups] == [1] * len(groups)
    assert sum(map(len, groups)) == file.metadata.num_rows


def test_the_automatic_batch_is_the_models_own_and_bounded(encoder: Folder, tmp_path: Path) -> None:
    opened = load(encoder)
    assert opened.batch_size(17, "float32") == 17
    small = opened.batch_size("auto", "float32")
    assert small == load(encoder).batch_size("auto", "float32")
    image = ImageInput(size=64, channels=1, mean=(0.5,), std=(0.5,))
    card = dataclasses.replace(opened.card, input=image)
    bigger = ImageEncoder(card, opened.model, opened.device)
    large = bigger.batch_size("auto", "float32")
    assert small & (small - 1) == large & (large - 1) == 0
    assert LEAST <= large < small <= MOST


def test_decoding_threads_do_not_affect_the_bytes(
    digits: Folder, encoder: Folder, tmp_path: Path
) -> None:
    index, opened = Index.read(digits), load(encoder)
    unit = units_of(index, ["train"])[0]
    threads = PLAIN.model_copy(update={"cpus_per_worker": 3})
    one, three = (extract(unit, digits, index.name, opened, s) for s in (PLAIN, threads))
    assert one.equals(three, check_metadata=True)


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_a_decoding_thread_starts_no_threads_of_its_own(digits: Folder, encoder: Folder) -> None:
    """Images large enough for torch to split; more threads than cores slow everything down."""
    index, opened = Index.read(digits), load(encoder)
    unit = dataclasses.replace(units_of(index, ["train"])[0], stop=64)
    image = ImageInput(size=96, channels=1, mean=(0.5,), std=(0.5,))
    seen: list[int] = []

    class Counting(ImageEncoder):
        def features(self, images: torch.Tensor, precision: Precision = "float32") -> torch.Tensor:
            found = super().features(images, precision)
            seen.append(len(os.listdir("/proc/self/task")))
            return found

    counting = Counting(dataclasses.replace(opened.card, input=image), opened.model, opened.device)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        counting.features(torch.zeros(16, 1, 96, 96))  # starts this thread's own OpenMP threads
        step = PLAIN.model_copy(update={"cpus_per_worker": 2, "batch_size": 16})
        extract(unit, digits, index.name, counting, step)
    finally:
        torch.set_num_threads(before)
    assert max(seen) <= seen[0] + step.cpus_per_worker


def test_reduced_precision_is_the_encoders_arithmetic_alone(
    digits: Folder, encoder: Folder
) -> None:
    index, opened = Index.read(digits), load(encoder)
    unit = units_of(index, ["test"])[0]
    half = PLAIN.model_copy(update={"precision": "bfloat16"})
    full, less = (
        np.stack(extract(unit, digits, index.name, opened, s)["vector"].to_numpy())
        for s in (PLAIN, half)
    )
    assert full.dtype == less.dtype == np.float32
    assert 0 < np.abs(full - less).max() < 0.1 * np.abs(full).max()


def test_more_gpus_than_the_cluster_has_are_refused(
    digits: Folder, encoder: Folder, tmp_path: Path
) -> None:
    step = INVERTED.model_copy(update={"gpus_per_worker": 99.0})
    results = Results()
    run([work(tmp_path, "w", step, encoder, digits)], results.hooks())
    assert "gpus_per_worker=99, but the cluster has" in str(results.of["w"])


def test_features_beyond_float16_are_refused_rather_than_stored(
    digits: Folder, tmp_path: Path
) -> None:
    folder = put_encoder(Folder.of(tmp_path / "e"), 0)
    opened = load(folder)
    index = Index.read(digits)
    unit = units_of(index, ["test"])[0]
    half = INVERTED.model_copy(update={"dtype": "float16"})
    table = extract(unit, digits, "digits", opened, half)
    assert table.schema.equals(schema("float32", 24))  # until its spectrum is computed
    scratch, output = Folder.of(tmp_path / "scratch"), Folder.of(tmp_path / "out")
    save_unit(scratch, unit, table)
    finish(half, index, [unit], scratch, output)
    assert output.read_table("features-test.parquet").schema.equals(schema("float16", 24))

    class Loud(ImageEncoder):
        def features(self, images: torch.Tensor, precision: Precision = "float32") -> torch.Tensor:
            return super().features(images, precision) * 1e6

    loud = Loud(opened.card, opened.card.architecture().build(), torch.device("cpu"))
    with pytest.raises(StageError, match=r"not finite .*; ask for float32, or give it other w"):
        extract(unit, digits, "digits", loud, half)
