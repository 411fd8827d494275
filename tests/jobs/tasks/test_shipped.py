"""Every shipped task: its file is complete, and generated data in its layout becomes its corpus."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from jobs.corpus.shards import Index, read_part
from jobs.images import masks
from jobs.storage.folder import Folder
from jobs.tasks import registry
from jobs.tasks.check import absent, class_names, data_faults, faults, link_faults
from jobs.tasks.duplicates import duplicate_tests
from jobs.tasks.spec import Task
from jobs.tuning.class_mapping import ClassMapping
from jobs.tuning.rows import TaskClasses
from tests.jobs.corpus.conftest import Build, build  # noqa: F401
from tests.jobs.tasks import shape

NAMES = registry.names()
WIDE = ("imagenet", "imagenet-v2", "imagenet-sketch")  # a thousand folders each
WITH_FILES = [
    pytest.param(n, marks=pytest.mark.slow) if n in WIDE else n
    for n in NAMES
    if not n.startswith(("digits", "remarks"))
]
PUBLISHED_ID = (
    *("cifar10", "cifar100", "flowers102", "food101", "oxford-pets", "stanford-cars", "dtd"),
    *("fgvc-aircraft", "svhn", "caltech101", "eurosat", "patch-camelyon", "resisc45"),
    "rendered-sst2",
)


@pytest.fixture(scope="module")
def tasks() -> dict[str, Task]:
    return {name: registry.load(name) for name in NAMES}


def test_every_task_of_the_papers_has_its_file(tasks: dict[str, Task]) -> None:
    assert {tasks[name].domain for name in PUBLISHED_ID} == {"id"}
    by_class = {n for n in PUBLISHED_ID if tasks[n].metric == "mean_per_class_accuracy"}
    assert by_class == {"flowers102", "oxford-pets", "fgvc-aircraft", "caltech101"}
    trained_on: dict[str, list[str]] = {}
    for task in tasks.values():
        if task.trained_on:
            trained_on.setdefault(task.trained_on, []).append(task.name)
    assert len(trained_on["imagenet"]) == 6
    assert len(trained_on["domainnet-real"]) == len(trained_on["domainnet-sketch"]) == 3
    assert sum(n.startswith("glue-") for n in NAMES) == 8
    assert sum(n.startswith("gluex-") for n in NAMES) == 22
    assert len(trained_on["glue-sst2"]) == len(trained_on["glue-rte"]) == 4
    assert len(trained_on["glue-mrpc"]) == len(trained_on["glue-qqp"]) == 4


@pytest.mark.parametrize("name", NAMES)
def test_its_file_is_complete_and_fits_the_task_it_is_trained_on(
    name: str, tasks: dict[str, Task]
) -> None:
    assert tasks[name].facts is not None
    assert [*faults(tasks[name]), *link_faults(tasks[name], tasks)] == []


def test_no_two_tasks_are_the_same_test(tasks: dict[str, Task]) -> None:
    """Except for a task of the authors' code that scores the same predictions in another way."""
    twice = set(duplicate_tests(list(tasks.values())))
    assert twice == {("caltech101", "caltech101-top1")}


def test_the_tasks_of_the_authors_code_are_its_own(tasks: dict[str, Task]) -> None:
    ours, theirs = tasks["caltech101"], tasks["caltech101-top1"]
    assert (ours.corpus, theirs.metric) == (theirs.corpus, "accuracy"), "they share features"
    train_alone = tasks["dtd-train"].corpus
    assert train_alone is not None
    assert (train_alone.parts.train, [*train_alone.parts.sources]) == (1.0, ["validation", "test"])


def test_patch_camelyon_is_not_svhn(tasks: dict[str, Task]) -> None:
    published = tasks["patch-camelyon"], tasks["svhn"]
    readers = [task.corpus.reader.path for task in published if task.corpus]  # type: ignore[union-attr]
    here = Path.cwd()
    assert readers == [f"{here}/patch-camelyon", f"{here}/svhn/cropped_digits"]
    theirs = published[0].model_copy(update={"corpus": published[1].corpus})
    assert list(duplicate_tests([published[1], theirs])) == [("svhn", "patch-camelyon")]


def test_the_class_subsets_have_their_published_sizes(tasks: dict[str, Task]) -> None:
    sizes = {n: len(class_names(tasks[n])) for n in NAMES if tasks[n].trained_on == "imagenet"}
    assert sizes == {
        "imagenet-a": 200,
        "imagenet-r": 200,
        "imagenet-sketch": 1000,
        "imagenet-v2": 1000,
        "imagenet-vid-robust": 30,
        "objectnet": 113,
    }
    chair = (tasks["objectnet"].answers or {})["chair"]
    assert chair == ("n02791124", "n03376595", "n04099969")  # barber, folding and rocking chair


@pytest.mark.parametrize("name", WITH_FILES)
def test_generated_data_in_its_layout_becomes_its_corpus(
    name: str,
    tasks: dict[str, Task],
    build: Build,  # noqa: F811
    tmp_path: Path,
) -> None:
    task = registry.load(name, data=str(tmp_path / "data"))
    assert task.corpus is not None
    assert task.facts is not None
    assert absent(task)
    rows = shape.write(task)
    assert absent(task) == []
    found = [f for f in data_faults(task) if "but facts.sizes say" not in f]
    assert found == []
    folder, outcome = build(task.corpus, tmp_path)
    index = Index.read(folder)
    assert sorted(index.classes) == sorted(shape.names_of(task))
    assert outcome.counts["quarantined"] == 0
    assert rows <= outcome.counts["rows_read"]
    assert {part for part in task.parts if index.rows(part)} == set(task.parts)
    if not task.target_kind.has_classes:
        return
    classes = TaskClasses.of(task, index.classes)
    labels = _labels(folder, task)
    assert len(set(classes.index_of[labels]) - {-1}) <= len(classes.names)
    if task.domain == "ood":
        _check_class_mapping(task, tasks[str(task.trained_on)], classes)
        assert set(classes.index_of[labels]) - {-1} == set(range(len(classes.names)))


def _labels(folder: Folder, task: Task) -> npt.NDArray[np.int64]:
    """The labels of the test part, of masks those of all pixels."""
    if not task.target_kind.dense:
        found: npt.NDArray[np.int64] = read_part(folder, "test", ["label"])["label"].to_numpy()
        return found
    each = read_part(folder, "test", ["mask"])["mask"].to_pylist()
    pixels = np.concatenate([masks.read(mask, "mask").reshape(-1) for mask in each])
    assert (pixels == masks.IGNORED).any(), "what the file ignores"
    return pixels[pixels != masks.IGNORED].astype(np.int64)


def _check_class_mapping(task: Task, source: Task, classes: TaskClasses) -> None:
    """Every class has outputs, and no output belongs to two classes."""
    mapping = ClassMapping.of(task, classes.names, class_names(source))
    assert set(mapping.classes.tolist()) == set(range(len(classes.names)))
    assert len(set(mapping.outputs.tolist())) == len(mapping.outputs)
    many = {"imagenet-vid-robust", "objectnet"}
    assert (len(mapping.outputs) > len(classes.names)) == (task.name in many)


def test_a_missing_class_folder_is_found_before_a_sweep(tmp_path: Path) -> None:
    task = registry.load("imagenet-r", data=str(tmp_path))
    shape.write(task, each=1)
    (tmp_path / "imagenet-r" / "n01443537" / "reader-0.png").rename(
        tmp_path / "imagenet-r" / "n01484850" / "again.png"
    )
    (tmp_path / "imagenet-r" / "n01443537").rmdir()
    (tmp_path / "imagenet-r" / "n01484850" / "reader-0.png").write_bytes(b"no image")
    found = "\n".join(data_faults(task))
    assert "199 classes, but facts.classes say 200" in found
    assert "classes.n01443537 names 'n01443537', which the data lacks" in found
    assert "200 rows, but facts.sizes say 30,000" in found
    broken = list(data_faults(registry.load("eurosat", data=str(tmp_path))))
    assert len(broken) == 1
    assert "does not exist" in broken[0]


def test_a_label_that_two_classes_name_differently_is_found(tmp_path: Path) -> None:
    task = registry.load("eurosat", data=str(tmp_path))
    shape.write(task)
    twice = task.model_copy(update={"classes": {"a": ("AnnualCrop",), "b": (0, 1)}})
    found = "\n".join(data_faults(twice))
    assert "classes.b names 0, which classes.a names as 'AnnualCrop'; keep it in one" in found


def test_a_broken_image_is_found(tmp_path: Path) -> None:
    task = registry.load("eurosat", data=str(tmp_path))
    shape.write(task)
    (tmp_path / "eurosat/EuroSAT_RGB/AnnualCrop/reader-0.png").write_bytes(b"no image")
    found = [f for f in data_faults(task) if "facts.sizes" not in f]
    assert len(found) == 1
    assert "AnnualCrop/reader-0.png: cannot be decoded" in found[0]


def test_the_paths_of_a_task_are_relative_to_the_data_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def path(data: str | None = None) -> str:
        corpus = registry.load("svhn", data=data).corpus
        assert corpus is not None
        test = corpus.parts.sources["test"]
        assert corpus.reader.path == test.path  # type: ignore[union-attr]
        return str(test.path)  # type: ignore[union-attr]

    monkeypatch.delenv(registry.DATA, raising=False)
    monkeypatch.chdir(tmp_path)
    assert path() == f"{tmp_path}/svhn/cropped_digits"
    assert path("mine") == f"{tmp_path}/mine/svhn/cropped_digits"
    assert path("~/mine") == f"{Path.home()}/mine/svhn/cropped_digits"
    assert path("s3://bucket/sets/") == "s3://bucket/sets/svhn/cropped_digits"
    monkeypatch.setenv(registry.DATA, str(tmp_path))
    assert path() == f"{tmp_path}/svhn/cropped_digits"
    assert path("/elsewhere") == "/elsewhere/svhn/cropped_digits"


def test_the_path_of_the_data_and_its_facts_do_not_affect_identity(tmp_path: Path) -> None:
    task = registry.load("objectnet")
    moved = registry.load("objectnet", data=str(tmp_path)).model_copy(update={"facts": None})
    assert json.dumps(task.semantic()) == json.dumps(moved.semantic())
