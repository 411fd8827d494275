"""The noise stage on a real Ray, over small corpora and one that the corpus stage built."""

import collections
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.contract import Hooks, Outcome, StageError, Work
from jobs.corpus.shards import Index, read_part
from jobs.noise import job
from jobs.noise.overlay import Changes, Overlay, apply
from jobs.noise.source import digested
from jobs.noise.spec import NoiseStep
from jobs.storage.folder import Folder
from tests.jobs.noise.conftest import Write

pytestmark = pytest.mark.usefixtures("ray_session")

CLASSES = ("cat", "dog", "fox", "oak", "elm")
N = 600
KEYS = [f"k{i:03d}" for i in range(N)]
LABELS = [i * i % 5 for i in range(N)]  # 0, 1 and 4: the others are empty classes
CAPTIONS = [f"{CLASSES[label]} number {i % 40}" for i, label in enumerate(LABELS)]


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


def works(root: Path, corpus: Folder, levels: Sequence[float], **noise: object) -> list[Work]:
    noise = {"name": "n", "levels": levels, **noise}
    steps = [
        NoiseStep.model_validate({"corpus": "c", "noise": noise, "level": level})
        for level in levels
    ]
    return [
        Work(
            address=f"noise/c/{step.noise.kind}/level={step.level:g}",
            fingerprint="f",
            spec=step.model_copy(update={"noise": digested(step.noise)}),
            inputs={"corpus": corpus},
            output=Folder.of(root / f"{step.noise.kind}/level={step.level:g}"),
            scratch=Folder.of(root / "scratch"),
        )
        for step in steps
    ]


def run(these: Sequence[Work]) -> Results:
    results = Results()
    job.run(these, results.hooks())
    return results


def bytes_of(folder: Folder) -> dict[str, bytes]:
    return {name: folder.read_bytes(name) for name, _ in folder.files()}


def noisy_values(corpus: Folder, noise: Folder) -> list[object]:
    column = Overlay.read(noise).field
    rows = read_part(corpus, "train", ["key", column])
    values, _ = apply(Changes(noise).rows(0, len(rows)), rows["key"], rows[column])
    found: list[object] = values.to_pylist()
    return found


@pytest.fixture
def kinds(tmp_path: Path) -> dict[str, dict[str, object]]:
    """Every kind of noise, with the files that it names."""
    groups = {"cat": "animal", "dog": "animal", "fox": "animal", "oak": "tree", "elm": "tree"}
    (tmp_path / "groups.json").write_text(json.dumps(groups))
    matrix = (np.full((5, 5), 0.1) + 0.5 * np.eye(5)) * np.isin(np.arange(5), LABELS)
    np.save(tmp_path / "matrix.npy", matrix / matrix.sum(axis=1, keepdims=True))
    chances = np.random.default_rng(0).dirichlet(np.ones(5), N)
    pq.write_table(pa.table({"key": KEYS, "probabilities": list(chances)}), tmp_path / "p.parquet")
    pq.write_table(pa.table({"key": KEYS, "of": [i % 7 for i in range(N)]}), tmp_path / "c.parquet")
    return {
        "symmetric": {},
        "pair": {},
        "groups": {"file": str(tmp_path / "groups.json")},
        "transition": {"file": str(tmp_path / "matrix.npy")},
        "subset": {"classes": ["cat", "elm", "oak"]},
        "instance": {"file": str(tmp_path / "p.parquet")},
        "caption_swap": {},
        "caption_swap_near": {"file": str(tmp_path / "c.parquet"), "column": "of"},
    }


def test_levels_of_every_kind_are_exact_nested_and_the_same_in_any_run(
    corpus: Write, tmp_path: Path, kinds: dict[str, dict[str, object]]
) -> None:
    folder = corpus(KEYS, LABELS, CAPTIONS, classes=CLASSES)
    other = corpus(KEYS, LABELS, CAPTIONS, classes=CLASSES, shard=37, folder="other")
    levels = [0, 5, 10, 30]
    requested = [
        work
        for kind, noise in kinds.items()
        for work in works(tmp_path, folder, levels, kind=kind, **noise)
    ]
    results = run(requested)
    lower: dict[str, set[tuple[object, ...]]] = collections.defaultdict(set)
    for work in requested:
        assert isinstance(work.spec, NoiseStep)
        kind, level = work.spec.noise.kind, work.spec.level
        outcome, overlay = results.outcome(work.address), Overlay.read(work.output)
        table = work.output.read_table("changed.parquet")
        found = {tuple(row.values()) for row in table.to_pylist()}
        assert len(found) == N * level / 100 == overlay.changed == outcome.counts["changed"]
        assert (overlay.rows, overlay.kind, overlay.level) == (N, kind, level)
        assert outcome.counts["eligible"] == overlay.eligible
        assert outcome.metrics["noise/realised_percent"] == level == overlay.realised_percent
        assert lower[kind] <= found
        lower[kind] = found
        clean = LABELS if overlay.field == "label" else CAPTIONS
        noisy = noisy_values(folder, work.output)
        assert sum(a != b for a, b in zip(clean, noisy, strict=True)) == len(found)

    again = [
        work
        for kind, noise in kinds.items()
        for work in works(tmp_path / "again", other, [30], kind=kind, **noise)
    ]
    for work in again:  # one by one, over other shards
        run([work])
        same = next(one for one in requested if one.address == work.address)
        assert bytes_of(work.output) == bytes_of(same.output)


def test_given_labels_are_used_at_their_own_rate(corpus: Write, tmp_path: Path) -> None:
    labels = [i % 5 for i in range(N)]
    folder = corpus(KEYS, labels, classes=CLASSES)
    theirs = [CLASSES[(label + (i % 10 == 0)) % 5] for i, label in enumerate(labels)]
    pq.write_table(pa.table({"id": KEYS, "worse": theirs}), tmp_path / "t.parquet")
    noise = {"kind": "given", "file": str(tmp_path / "t.parquet"), "key": "id", "column": "worse"}
    requested = works(tmp_path, folder, [0, 10, 20], **noise)
    results = run(requested)
    assert results.outcome(requested[0].address).counts["changed"] == 0
    assert results.outcome(requested[1].address).metrics["noise/realised_percent"] == 10
    noisy = [CLASSES[int(str(value))] for value in noisy_values(folder, requested[1].output)]
    assert noisy == theirs
    refused = results.of[requested[2].address]
    assert isinstance(refused, StageError)
    assert "give noise.levels=[0, 10.0]" in str(refused)
    overlay = Overlay.read(requested[1].output)
    assert overlay.seed is None
    assert overlay.file_sha256 is not None


def test_a_level_states_its_share_of_the_corpus_and_of_the_subset(
    corpus: Write, tmp_path: Path
) -> None:
    folder = corpus(KEYS, LABELS, classes=CLASSES)
    named = {"kind": "subset", "classes": ["dog", 4]}
    (work,) = works(tmp_path, folder, [10], **named, of="subset")
    run([work])
    overlay = Overlay.read(work.output)
    assert overlay.eligible == sum(label in (1, 4) for label in LABELS) == 480
    assert (overlay.of, overlay.changed) == ("subset", 48)
    assert overlay.realised_percent == 8
    assert overlay.realised_percent_of_subset == 10


def test_captions_can_swap_within_a_class_and_in_some_classes_alone(
    corpus: Write, tmp_path: Path
) -> None:
    folder = corpus(KEYS, LABELS, CAPTIONS, classes=CLASSES)
    (near,) = works(tmp_path, folder, [30], kind="caption_swap_near", classes=["dog", "elm"])
    run([near])
    assert Overlay.read(near.output).eligible == 480
    for row in near.output.read_table("changed.parquet").to_pylist():
        assert row["clean"].split()[0] == row["noisy"].split()[0] in ("dog", "elm")


def test_an_unreachable_level_fails_alone(corpus: Write, tmp_path: Path) -> None:
    captions = ["rare" if i % 20 == 0 else "the same" for i in range(N)]
    folder = corpus(KEYS, captions=captions)
    requested = works(tmp_path, folder, [5, 30], kind="caption_swap")
    results = run(requested)
    assert results.outcome(requested[0].address).counts["changed"] == 30
    assert isinstance(results.of[requested[1].address], StageError)
    assert "give a level of at most 10.00" in str(results.of[requested[1].address])


@pytest.mark.parametrize(
    ("kind", "extra", "message"),
    [
        ("symmetric", {}, "1 of 2 training rows have no label to flip"),
        ("caption_swap", {}, "1 of 2 training rows have no caption to swap"),
        ("caption_swap_near", {}, "1 of 2 training rows have no caption to swap"),
        ("caption_swap", {"classes": ["cat"]}, "have no caption"),
        ("given", {"file": "/nowhere/t.csv", "column": "x"}, "/nowhere/t.csv cannot be read"),
        ("subset", {"classes": ["cat", "dgo"]}, "1 of 2 training rows have no label"),
    ],
)
def test_a_corpus_that_lacks_what_a_noise_changes_is_refused(
    corpus: Write, tmp_path: Path, kind: str, extra: dict[str, object], message: str
) -> None:
    folder = corpus(["a", "b"], [0, None], ["one", None], classes=CLASSES)
    (work,) = works(tmp_path, folder, [5], kind=kind, **extra)
    refused = run([work]).of[work.address]
    assert isinstance(refused, StageError)
    assert message in str(refused)


def test_choosing_by_class_needs_labels(corpus: Write, tmp_path: Path) -> None:
    folder = corpus(["a", "b"], [0, None], ["one", "two"], classes=CLASSES)
    for fields in ({"kind": "caption_swap_near"}, {"kind": "caption_swap", "classes": ["cat"]}):
        (work,) = works(tmp_path, folder, [5], **fields)
        assert "1 of 2 training rows have no label to choose by" in str(
            run([work]).of[work.address]
        )


def test_an_unknown_class_is_an_error_that_names_the_nearest(corpus: Write, tmp_path: Path) -> None:
    folder = corpus(KEYS, LABELS, classes=CLASSES)
    (work,) = works(tmp_path, folder, [5], kind="symmetric", classes=["dgo"])
    assert "did you mean 'dog'?" in str(run([work]).of[work.address])


def test_the_index_and_the_shards_do_not_change(corpus: Write, tmp_path: Path) -> None:
    folder = corpus(KEYS, LABELS, classes=CLASSES)
    before = bytes_of(folder)
    run(works(tmp_path, folder, [0, 30], kind="pair"))
    assert bytes_of(folder) == before
    assert Index.read(folder).rows("train") == N


def test_classes_may_be_named_by_their_ids(corpus: Write, tmp_path: Path) -> None:
    ids = [f"n0{number}" for number in range(5)]
    names = ("crane", "dog", "fox", "oak", "crane")
    folder = corpus(KEYS, LABELS, CAPTIONS, classes=names, class_ids=ids)
    groups = {"n00": "both", "dog": "alone", "n02": "two", "oak": "two", "n04": "both"}
    (tmp_path / "groups.json").write_text(json.dumps(groups))
    grouped = {"kind": "groups", "file": str(tmp_path / "groups.json")}
    for fields in (
        grouped,
        {"kind": "subset", "classes": ["n00", 4]},
        {"kind": "caption_swap", "classes": ["n00", "n04"]},
    ):
        (work,) = works(tmp_path / "ids", folder, [10], **fields)
        run([work]).outcome(work.address)
        assert Overlay.read(work.output).eligible == sum(label in (0, 4) for label in LABELS)
    (work,) = works(tmp_path / "names", folder, [10], kind="subset", classes=["crane", "dog"])
    assert "give its id" in str(run([work]).of[work.address])
