"""Fair comparisons: no test counted twice, no row in two parts, no test before selection."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from jobs.corpus.reader_spec import DigitsReader
from jobs.corpus.shards import read_part
from jobs.corpus.spec import Corpus, Parts
from jobs.keyed_hash import hash64, unit
from jobs.storage.folder import Folder
from jobs.tasks.duplicates import counted_twice
from jobs.tuning import schema
from jobs.tuning.digest import digest
from jobs.tuning.frozen.cell import adapt, transfer
from jobs.tuning.frozen.features import FeatureCache
from jobs.tuning.rows import Labelled, TaskClasses, training_rows
from jobs.tuning.trained import Configuration
from tests.jobs.corpus.conftest import Build, build  # noqa: F401
from tests.jobs.tuning.blobs import id_task, ood_task, step
from tests.jobs.tuning.conftest import MakeWork, WriteFeatures

TRIED = [Configuration(lr=1e-3)]


def labelled(features: np.ndarray, labels: list[int]) -> Labelled:
    return Labelled(torch.from_numpy(features), torch.tensor(labels))


def test_a_digest_knows_the_samples_and_nothing_else() -> None:
    generator = np.random.default_rng(0)
    features = generator.normal(size=(6_000, 7)).astype(np.float32)
    labels = generator.integers(0, 4, 6_000)
    order = generator.permutation(6_000)
    first = digest(labelled(features, labels.tolist()))
    assert first == digest(labelled(features[order], labels[order].tolist()))
    relabelled = labels.copy()
    relabelled[17] += 1
    changed = features.copy()
    changed[5_999, 6] = np.nextafter(changed[5_999, 6], np.float32(9))
    others = [
        digest(labelled(features, relabelled.tolist())),
        digest(labelled(changed, labels.tolist())),
        digest(labelled(features[1:], labels[1:].tolist())),
        digest(labelled(features, labels[order].tolist())),
    ]
    assert len({first, *others}) == 5


def cell_of(output: Folder, **place: object) -> dict[str, object]:
    (cell,) = output.read_table(schema.CELL).to_pylist()
    return {**cell, "noise": 0.0, "pretrain_seed": 0} | place


def test_one_test_under_two_names_is_found_from_what_the_cells_recorded(
    write_features: WriteFeatures, make_work: MakeWork
) -> None:
    found = []
    for name, classes in (
        ("svhn", None),
        ("patches", None),
        ("parity", {"a": [0, 2], "b": [1, 3]}),
    ):
        spec = step(task=id_task(name=name, classes=classes))
        work = make_work(name, spec, features=write_features(f"features-{name}"))
        adapt(work, TRIED, FeatureCache())
        found.append(cell_of(work.output))
    assert counted_twice(found) == ("patches", "svhn")
    assert counted_twice([found[0], found[2]]) is None  # the same images with other labels
    assert counted_twice([found[0], found[1] | {"domain": "ood", "trained_on": "svhn"}]) is None


def test_two_tasks_that_differ_under_any_encoder_are_two(
    write_features: WriteFeatures, make_work: MakeWork
) -> None:
    work = make_work("a", step(task=id_task(name="a")), features=write_features())
    adapt(work, TRIED, FeatureCache())
    one = cell_of(work.output)
    collapsed = [one, one | {"task": "b"}]
    sound = [one | {"noise": 5.0}, one | {"task": "b", "noise": 5.0, "test_digest": "other"}]
    assert counted_twice(collapsed) == ("a", "b")
    assert counted_twice([*collapsed, *sound]) is None
    assert counted_twice([one, one | {"task": "b", "method": "ft"}]) is None  # not compared


def test_the_test_part_is_read_once_by_every_cell_and_that_is_recorded(
    write_features: WriteFeatures, make_work: MakeWork
) -> None:
    features = write_features()
    trained = make_work("id", step(), features=features)
    tested = make_work("ood", step(task=ood_task()), features=features, head=trained.output)
    outcomes = [adapt(trained, TRIED, FeatureCache()), transfer(tested)]
    assert [outcome.counts["test_reads"] for outcome in outcomes] == [1, 1]
    assert [cell_of(work.output)["test_reads"] for work in (trained, tested)] == [1, 1]


def test_an_ood_task_on_a_subset_is_scored_on_the_subset_alone(
    write_features: WriteFeatures, make_work: MakeWork
) -> None:
    features = write_features()
    trained = make_work("id", step(), features=features)
    adapt(trained, [Configuration(lr=1e-2)], FeatureCache())
    task = ood_task(classes={"three": ["three"], "one": ["one"]})
    work = make_work("ood", step(task=task), features=features, head=trained.output)
    outcome = transfer(work)
    predictions = work.output.read_table(schema.PREDICTIONS)
    assert set(predictions["predicted"].to_pylist()) == {0, 1}
    assert outcome.counts["test_other_classes"] == 70 - len(predictions)
    (cell,) = schema.from_table(schema.Cell, work.output.read_table(schema.CELL))
    assert cell.n_classes == 2
    whole = cell_of(trained.output)
    assert cell.test_accuracy >= float(str(whole["test_accuracy"])) - 1  # two wrong classes fewer


def test_the_validation_part_is_cut_from_the_training_rows_by_key_alone(
    build: Build,  # noqa: F811
    tmp_path: Path,
) -> None:
    parts = Parts(train=0.7, validation=0.3, test=0.0)
    corpus = Corpus(name="digits", reader=DigitsReader(), parts=parts, rows_per_shard=100)
    shuffled, _ = build(corpus, tmp_path / "a")
    ordered, _ = build(corpus.model_copy(update={"shuffle": "none"}), tmp_path / "b")
    for part in ("train", "validation"):
        found = [set(read_part(p, part, ["key"])["key"].to_pylist()) for p in (shuffled, ordered)]
        assert found[0] == found[1]
    keys = [read_part(shuffled, part, ["key"])["key"] for part in ("train", "validation")]
    train, validation = (unit(hash64(k, seed=0, scope="digits", stream="part")) for k in keys)
    assert train.max() < 0.7 <= validation.min()


@pytest.mark.parametrize("percent", [10.0, 50.0])
def test_a_fraction_takes_rows_of_the_training_part_only(
    percent: float, write_features: WriteFeatures
) -> None:
    fitting = FeatureCache().load(write_features())
    classes = TaskClasses.of(id_task(), fitting.classes)
    cut = training_rows(fitting.train, classes, id_task(), percent=percent, seed=0)
    assert set(cut.keys.to_pylist()) < set(fitting.train.keys.to_pylist())
    assert not set(cut.keys.to_pylist()) & set(fitting.validation.keys.to_pylist())
