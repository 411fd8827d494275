"""The pre-training stage on a real Ray."""

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st

from jobs.contract import Hooks, Outcome, StageError, Work
from jobs.encoders.encoder import EncoderCard
from jobs.images.spec import ImageInput
from jobs.pretrain import job
from jobs.pretrain.data.in_memory import fits_in_memory
from jobs.pretrain.packs import Node, cohorts, most_on_a_node, packs
from jobs.pretrain.run import train_run
from jobs.pretrain.spec import Resources
from jobs.storage.folder import Folder
from planted import Listener, listening
from tests.jobs.pretrain.conftest import Toy, works_in
from tests.jobs.pretrain.interruption import outputs


@dataclass
class Results:
    of: dict[str, Outcome | BaseException] = field(default_factory=dict)
    reported: list[tuple[str, float, str]] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def hooks(self) -> Hooks:
        def done(address: str, result: Outcome | BaseException) -> None:
            assert address not in self.of
            self.of[address] = result

        return Hooks(
            done=done,
            say=lambda address, share, words: self.reported.append((address, share, words)),
            stopping=self.stop.is_set,
        )

    def outcome(self, address: str) -> Outcome:
        result = self.of[address]
        assert isinstance(result, Outcome), result
        return result


def weights(work: Work) -> bytes:
    return work.output.read_bytes("model.safetensors")


@given(st.integers(1, 30), st.integers(1, 9))
def test_packs_contain_every_run_once_and_differ_by_one_at_most(runs: int, slots: int) -> None:
    works = list(range(runs))
    packed = packs([works[:4], works[4:]], slots)
    assert sorted(work for pack in packed for work in pack) == works
    assert len(packed) == min(runs, slots)
    assert max(map(len, packed)) - min(map(len, packed)) <= 1


def test_runs_that_differ_in_noise_alone_are_a_cohort(
    supervised: Callable[..., Any], make_work: Callable[..., Work]
) -> None:
    levels = [make_work(supervised(), f"level-{level}", level=level) for level in (0, 10, 30)]
    others = [
        make_work(supervised(), "seed", seed=1),
        make_work(supervised(epochs=3), "recipe"),
        make_work(supervised(), "workers", workers=2),
    ]
    other_corpus = make_work(supervised(), "corpus")
    folder = replace(other_corpus.inputs["corpus"], uri="/other")
    others.append(replace(other_corpus, inputs={**other_corpus.inputs, "corpus": folder}))
    mixed = [levels[0], others[0], levels[1], *others[1:], levels[2]]
    assert cohorts(mixed) == [levels, *[[other] for other in others]]


def test_a_cluster_with_room_for_all_levels_trains_each_in_a_group_of_its_own() -> None:
    assert packs([["0", "5", "10", "20", "30"]], 5) == [["0"], ["5"], ["10"], ["20"], ["30"]]
    assert packs([["0", "5", "10"], ["0s1", "5s1", "10s1"]], 2) == [
        ["0", "5", "10"],
        ["0s1", "5s1", "10s1"],
    ]


@pytest.mark.parametrize(
    ("cpus", "gpus", "workers", "groups", "most"),
    [
        (4, 0, 1, 3, 3),  # three groups of one worker may all be on the larger node
        (4, 0, 2, 9, 4),  # which fits four workers at most
        (1, 1, 2, 1, 2),
        (2, 0.5, 1, 9, 4),
    ],
)
def test_memory_is_shared_by_as_many_workers_as_fit_on_a_node(
    cpus: int, gpus: float, workers: int, groups: int, most: int
) -> None:
    nodes = [Node(cpus=4 * cpus if cpus < 4 else 16, gpus=2), Node(cpus=4, gpus=0)]
    asked = Resources(workers=workers, cpus_per_worker=cpus, gpus_per_worker=gpus)
    assert most_on_a_node(asked, nodes, groups) == most


def test_what_fits_one_worker_is_too_much_for_two_on_a_node() -> None:
    image = ImageInput(size=32, channels=3, mean=(0.5,) * 3, std=(0.5,) * 3)
    half = psutil.virtual_memory().available // (2 * 3 * 32 * 32)
    assert fits_in_memory(half, image)
    assert not fits_in_memory(half, image, sharing=2)
    assert fits_in_memory(half, image, decoded_gb=1e6, sharing=2)  # of each worker


@pytest.mark.slow
@pytest.mark.usefixtures("ray_of_two")
def test_packed_runs_equal_runs_of_their_own_process_and_a_failing_one_fails_alone(
    supervised: Callable[..., Any], make_work: Callable[..., Work]
) -> None:
    # Two worker groups fit on Ray's two CPUs: the first run shares its group with the last.
    works = [
        make_work(supervised(batch_size=1000), "too-large"),
        make_work(supervised(epochs=3), "noisy", level=30),
        make_work(supervised(epochs=2), "clean", level=0),
    ]
    results = Results()
    job.run(works, results.hooks())
    failed = results.of["pretrain/too-large"]
    assert isinstance(failed, StageError)
    assert "do not fill a batch of 1000" in str(failed)
    for packed, epochs, level in ((works[1], 3, 30), (works[2], 2, 0)):
        assert results.outcome(packed.address).counts["flipped"] == level
        assert results.outcome(packed.address).seconds
        alone = make_work(supervised(epochs=epochs), f"alone-{level}", level=level)
        train_run(alone)
        assert weights(packed) == weights(alone)
    shares = [share for address, share, _ in results.reported if address == "pretrain/noisy"]
    assert shares == sorted(shares)
    started = {actor["ActorClassName"] for actor in ray._private.state.actors().values()}
    assert "TrainController" in started
    assert "DatasetManager" not in started  # workers read shards themselves


@pytest.mark.usefixtures("ray_of_two")
def test_runs_too_large_for_the_cluster_are_refused_at_once_in_one_sentence(
    supervised: Callable[..., Any], make_work: Callable[..., Work]
) -> None:
    results = Results()
    work = make_work(supervised(), workers=3)
    job.run([work], results.hooks())
    assert list(work.scratch.files()) == [], "a trainer was started"
    error = results.of["pretrain/run"]
    assert isinstance(error, StageError)
    assert "asks for 3 workers of 1 CPUs each" in str(error)
    assert "lower pretrain.resources or add nodes" in str(error)


@contextmanager
def watched_sockets() -> Iterator[set[Listener]]:
    """Where this process and what it started have listened inside the block."""
    found: set[Listener] = set()
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(1):
            found.update(listening(os.getpid()))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()


@dataclass(frozen=True)
class OnTwoWorkers:
    """Runs that one group of two workers has trained, by name, and where the group listened."""

    together: dict[int, Work]  # two levels that trained side by side
    alone: dict[int, Work]  # the same two levels, each as a cohort of its own
    damaged: dict[str, Work]  # by what they train on: labels or captions of damaged images
    results: Results
    listened: set[Listener]


@pytest.fixture(scope="module")
def on_two_workers(
    ray_of_two: None,
    supervised: Callable[..., Any],
    contrastive: Callable[..., Any],
    toy: Toy,
    damaged_toy: Toy,
    tmp_path_factory: pytest.TempPathFactory,
) -> OnTwoWorkers:
    """Both CPUs are for one group, so that all runs share it."""
    root = tmp_path_factory.mktemp("two-workers")
    both: dict[str, Any] = {"workers": 2, "cpus_per_worker": 1}
    recipe = supervised(augment={"crop": (0.5, 1), "flip": True})
    make = works_in(root, toy)
    together = {lv: make(recipe, f"together-{lv}", level=lv, **both) for lv in (0, 30)}
    alone = {}
    for level in (0, 30):  # runs of two corpora are no cohort, even if their files are equal
        work = make(recipe, f"alone-{level}", level=level, **both)
        corpus = Folder.of(shutil.copytree(toy.root / "corpus", root / f"corpus-{level}"))
        alone[level] = replace(work, inputs={**work.inputs, "corpus": corpus})
    recipes = {"labels": of_labels(supervised), "captions": contrastive(optimizer="sgd")}
    make = works_in(root, damaged_toy)
    damaged = {name: make(recipe, name, **both) for name, recipe in recipes.items()}
    results = Results()
    with watched_sockets() as listened:
        job.run([*together.values(), *alone.values(), *damaged.values()], results.hooks())
    return OnTwoWorkers(together, alone, damaged, results, listened)


def of_labels(supervised: Callable[..., Any]) -> Any:
    """A recipe without batch statistics, which are each worker's own."""
    vit = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
    return supervised(model="vit_tiny_patch16_224", model_options=vit, optimizer="sgd")


@pytest.mark.slow
def test_levels_side_by_side_end_with_the_files_of_levels_alone(
    on_two_workers: OnTwoWorkers,
) -> None:
    """On two workers; `test_pretrain_cohort.py` has one worker and other recipes, without Ray."""
    results = on_two_workers.results
    said = {
        words.rpartition(", ")[2]
        for address, share, words in results.reported
        if share > 0 and "together" in address
    }
    assert said <= {"2 runs side by side"}
    for level, one in on_two_workers.together.items():
        other = on_two_workers.alone[level]
        assert results.outcome(one.address).counts == results.outcome(other.address).counts
        assert outputs(one) == outputs(other)


@pytest.mark.slow
def test_a_group_of_workers_listens_on_loopback_alone(on_two_workers: OnTwoWorkers) -> None:
    found = on_two_workers.listened
    assert sum("RayTrainWorker" in name for _, _, name in found) >= 2
    assert {address for address, _, _ in found} <= {"127.0.0.1", "::1"}, found


@pytest.mark.slow
@pytest.mark.parametrize("name", ["labels", "captions"])
def test_two_workers_train_what_one_trains(
    on_two_workers: OnTwoWorkers,
    supervised: Callable[..., Any],
    contrastive: Callable[..., Any],
    damaged_toy: Toy,
    tmp_path: Path,
    name: str,
) -> None:
    """Each worker meets some of the damaged images."""
    recipe = of_labels(supervised) if name == "labels" else contrastive(optimizer="sgd")
    pair, alone = on_two_workers.damaged[name], works_in(tmp_path, damaged_toy)(recipe)
    outcome, expected = on_two_workers.results.outcome(pair.address), train_run(alone)
    assert outcome.counts == expected.counts
    assert outcome.counts["damaged_images"] == 4
    for metric, value in expected.metrics.items():
        if metric != "pretrain/images_per_s":
            assert outcome.metrics[metric] == pytest.approx(value, rel=1e-3), metric
    cards = [EncoderCard.read(work.output) for work in (pair, alone)]
    assert cards[0].initial_weights_sha256 == cards[1].initial_weights_sha256
    assert cards[0].order_sha256 == cards[1].order_sha256


def training_worker() -> psutil.Process | None:
    """The Ray Train worker among this process's children, if it is running."""
    for process in psutil.Process().children(recursive=True):
        try:
            if "RayTrainWorker" in " ".join(process.cmdline()):
                return process
        except psutil.NoSuchProcess:
            continue
    return None


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.usefixtures("ray_of_two")
def test_a_run_that_lost_its_worker_ends_with_the_weights_of_a_whole_one(
    supervised: Callable[..., Any], make_work: Callable[..., Work]
) -> None:
    """It streams; the whole one has its images in memory."""
    recipe = supervised(epochs=20, batch_size=4)
    work = make_work(recipe, "struck", decoded_gb=0)
    results = Results()
    killed: list[str] = []

    def kill(address: str, share: float, words: str) -> None:
        worker = training_worker()
        if not killed and checkpoints(work) and worker is not None:
            killed.append(words)
            worker.kill()

    job.run([work], Hooks(done=results.hooks().done, say=kill, stopping=lambda: False))
    assert killed, "the run was over before its worker could be killed"
    assert "epoch " in work.scratch.read_json("progress.json")["words"]
    outcome = results.outcome(work.address)
    alone = make_work(recipe, "alone")
    expected = train_run(alone)
    assert weights(work) == weights(alone)
    assert outcome.counts == expected.counts


def checkpoints(work: Work) -> set[str]:
    return {name for name, _ in work.scratch.files() if name.startswith("checkpoint-")}
