"""The corpus and noise stages on a real Ray."""

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pytest

from jobs.contract import Hooks, Outcome, Spec, StageError, Work
from jobs.corpus import job
from jobs.corpus.overlay import Overlay
from jobs.corpus.readers import Digits, Unit
from jobs.corpus.shards import PARTS, SCHEMA, Index, read_part
from jobs.corpus.spec import Corpus, DigitsReader, NoiseStep
from jobs.place import Place

DIGITS = Corpus(name="digits", reader=DigitsReader())

pytestmark = pytest.mark.usefixtures("ray_session")


@dataclass
class Results:
    of: dict[str, Outcome | BaseException] = field(default_factory=dict)

    def hooks(self) -> Hooks:
        def done(address: str, result: Outcome | BaseException) -> None:
            assert address not in self.of
            self.of[address] = result

        return Hooks(done=done, say=lambda *_: None, stopping=lambda: False)

    def outcome(self, address: str) -> Outcome:
        result = self.of[address]
        assert isinstance(result, Outcome), result
        return result


def work(root: Path, address: str, spec: Spec, **inputs: Place) -> Work:
    place = Place.of(root / address)
    return Work(address, "f", spec, inputs, place, Place.of(root / "scratch" / address))


def build(root: Path, spec: Corpus = DIGITS) -> Place:
    step = work(root, f"corpus/{spec.name}", spec)
    results = Results()
    job.run_corpus([step], results.hooks())
    counts = results.outcome(step.address).counts
    assert counts["rows_read"] == 1797 == sum(counts[f"rows_{part}"] for part in PARTS)
    return step.output


def bytes_of(place: Place) -> dict[str, bytes]:
    return {name: place.read_bytes(name) for name, _ in place.files()}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> Place:
    return build(tmp_path_factory.mktemp("store"))


def test_the_index_tells_the_truth(digits: Place) -> None:
    index = Index.read(digits)
    listed = {file.file: file for files in index.parts.values() for file in files}
    assert {*listed, "_index.json"} == {name for name, _ in digits.files()}
    for name, file in listed.items():
        data = digits.read_bytes(name)
        assert (len(data), hashlib.sha256(data).hexdigest()) == (file.bytes, file.sha256)
        table = digits.read_table(name)
        assert table.schema.equals(SCHEMA)
        assert len(table) == file.rows <= DIGITS.rows_per_shard
    keys = [key for part in PARTS for key in read_part(digits, part, ["key"])["key"].to_pylist()]
    assert sorted(keys) == [f"digits/{i:04d}" for i in range(1797)]


def test_classes_are_mixed_within_a_shard(digits: Place) -> None:
    labels = digits.read_table("train-00000.parquet", ["label"])["label"].to_pylist()
    assert len(set(labels[:50])) == 10


def test_how_the_source_is_cut_does_not_affect_the_files(
    digits: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Finely(Digits):
        def units(self) -> Sequence[Unit]:
            cuts = [1797, 1300, 1299, 700, 350, 0]
            return [Unit(b, a) for a, b in itertools.pairwise(cuts)]

    monkeypatch.setattr(job, "reader_of", Finely)
    assert bytes_of(build(tmp_path)) == bytes_of(digits)


def test_a_bad_corpus_fails_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Repeating(Digits):
        def units(self) -> Sequence[Unit]:
            return [Unit(0, 1797), Unit(5, 6)]

    readers = iter([Repeating, Digits])
    monkeypatch.setattr(job, "reader_of", lambda spec: next(readers)(spec))
    results = Results()
    bad = work(tmp_path, "corpus/bad", DIGITS.model_copy(update={"name": "bad"}))
    job.run_corpus([bad, work(tmp_path, "corpus/digits", DIGITS)], results.hooks())
    assert isinstance(results.of["corpus/bad"], StageError)
    assert "digits/0005" in str(results.of["corpus/bad"])
    assert results.outcome("corpus/digits").counts["rows_read"] == 1797


def noise_works(root: Path, digits: Place, kind: str, levels: Sequence[float]) -> list[Work]:
    return [
        work(
            root,
            f"noise/digits/{kind}/level={level:g}",
            NoiseStep.model_validate({"corpus": "digits", "kind": kind, "level": level, "seed": 0}),
            corpus=digits,
        )
        for level in levels
    ]


@pytest.mark.parametrize("kind", ["symmetric", "caption_swap"])
def test_levels_are_exact_nested_and_the_same_bytes_wherever_they_run(
    digits: Place, tmp_path: Path, kind: str
) -> None:
    levels = [0, 5, 10, 20, 30]
    one, other = Results(), Results()
    works = noise_works(tmp_path / "a", digits, kind, levels)
    job.run_noise(works, one.hooks())
    again = noise_works(tmp_path / "b", digits, kind, [30, 10])
    job.run_noise(again[:1], other.hooks())
    job.run_noise(again[1:], other.hooks())
    assert bytes_of(again[0].output) == bytes_of(works[4].output)
    assert bytes_of(again[1].output) == bytes_of(works[2].output)

    eligible = Index.read(digits).rows("train")
    train = set(read_part(digits, "train", ["key"])["key"].to_pylist())
    lower: set[tuple[object, ...]] = set()
    for level, step in zip(levels, works, strict=True):
        outcome, overlay = one.outcome(step.address), Overlay.read(step.output)
        rows = {tuple(r.values()) for r in step.output.read_table("changed.parquet").to_pylist()}
        assert len(rows) == overlay.changed == outcome.counts["changed"]
        assert outcome.counts["eligible"] == overlay.eligible == eligible
        assert abs(len(rows) - level / 100 * eligible) <= (1 if kind == "caption_swap" else 0.5)
        assert outcome.metrics["noise/realised_percent"] == 100 * len(rows) / eligible
        assert lower <= rows
        assert {row[0] for row in rows} <= train
        lower = rows


def test_the_corpus_shard_size_does_not_affect_the_noise(digits: Place, tmp_path: Path) -> None:
    small = build(tmp_path, DIGITS.model_copy(update={"rows_per_shard": 64}))
    assert len(Index.read(small).parts["train"]) > len(Index.read(digits).parts["train"])
    for kind in ("symmetric", "caption_swap"):
        one = noise_works(tmp_path / "a", digits, kind, [10])
        other = noise_works(tmp_path / "b", small, kind, [10])
        for works in (one, other):
            job.run_noise(works, Results().hooks())
        assert bytes_of(one[0].output) == bytes_of(other[0].output)


def test_an_unreachable_level_fails_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class SameCaptions(Digits):
        def read(self, unit: Unit) -> pa.Table:
            rows = super().read(unit)
            texts = ["rare" if i % 20 == 0 else "the same" for i in range(len(rows))]
            return rows.set_column(3, SCHEMA.field("caption"), pa.array(texts))

    monkeypatch.setattr(job, "reader_of", SameCaptions)
    corpus = build(tmp_path)
    works = noise_works(tmp_path, corpus, "caption_swap", [5, 30])
    results = Results()
    job.run_noise(works, results.hooks())
    assert results.outcome(works[0].address).counts["changed"] > 0
    assert "give a level of at most" in str(results.of[works[1].address])
    assert isinstance(results.of[works[1].address], StageError)
