"""Several nodes: what is lost with one of them, and what a sweep makes of it.

One sweep loses a node by kill -9 of its raylet in corpus build, in pre-training with a worker on
each of two nodes, in extraction and in tuning; each time but the last another node joins. When it
has pre-trained, the head dies, and a new cluster takes over, which in the end has one strange node.
What Ray does: it notices the loss by the raylet's closed socket, runs a lost task again where there
is room (Ray Data, plain tasks), and reports a lost actor to whoever waits for it (Train's
controller, Tune's), which is where the stages' own retries begin. A driver whose head is gone
cannot go on; the sweep's state is all in the store.
"""

from __future__ import annotations

import io
import re
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from commands import UNTRACKED, Command, Start, in_process_on_ray
from jobs.storage.folder import Folder
from orchestrator.run.watchdog import ENDED
from stores import digests, finished
from tests.cluster.machines import Machines, Node, may_mask

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.skipif(not may_mask(), reason="needs the right to mount, for nodes kept apart"),
]

CELLS = 10
FILES = 16  # of the source: units of work of the corpus stage
CORPUS = (
    "{name: mine, reader: {kind: parquet, path: source, label: label, image: image}, "
    "parts: {train: 0.6, validation: 0.15, test: 0.25}, rows_per_shard: 60}"
)
TASK = f"name: mine\ntitle: Mine\ndomain: id\ncorpus: {CORPUS}\n"


def write_source(folder: Path) -> None:
    """Handwritten digits in several Parquet files, and the task that reads them."""
    digits = load_digits()
    rows = []
    for pixels, label in zip(digits.images, digits.target, strict=True):
        held = io.BytesIO()
        image = Image.fromarray(np.uint8(pixels * 15.9))
        image.resize((16, 16)).save(held, "png")
        rows.append({"image": held.getvalue(), "label": int(label)})
    (folder / "source").mkdir(parents=True)
    for number in range(FILES):
        table = pa.Table.from_pylist(rows[number::FILES])
        pq.write_table(table, folder / f"source/{number}.parquet")
    (folder / "tasks").mkdir()
    (folder / "tasks/mine.yaml").write_text(TASK)


def words() -> list[str]:
    """A sweep of one pre-training run on two workers, long enough to be hit in every stage."""
    sets = [
        f"corpus={CORPUS}",
        "tasks=[mine]",
        "task_folders=[tasks]",
        "pretrain.resources.workers=2",
        "pretrain.checkpoint_minutes=0.005",
        "pretrain.recipe.schedule.epochs=6",
        "tuning.fractions=[10, 100]",
        "tuning.configurations=4",
        "tuning.epochs=20",
    ]
    chosen = [word for each in sets for word in ("--set", each)]
    return ["--noise", "20", "--seeds", "0", *UNTRACKED, *chosen]


class Diary:
    """Which files a sweep keeps in its scratch, and when each of them was written."""

    def __init__(self, store: Path) -> None:
        self._scratch = store / ".scratch"
        self.written: dict[str, set[int]] = defaultdict(set)
        self.points: list[str] = []  # checkpoints, in the order in which they appeared
        self._there: set[str] = set()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def kept(self, stage: str, ending: str) -> set[str]:
        """Files of a stage that lie there now."""
        found = (self._scratch / stage).rglob(f"*{ending}")
        return {str(path.relative_to(self._scratch)) for path in found}

    def close(self) -> None:
        self._ended.set()
        self._thread.join()

    def _follow(self) -> None:
        while not self._ended.wait(0.1):
            there = set()
            for path in self._scratch.rglob("*"):
                with suppress(OSError):
                    if path.suffix in (".json", ".parquet"):
                        name = str(path.relative_to(self._scratch))
                        self.written[name].add(path.stat().st_mtime_ns)
                        there.add(name)
            new = sorted(Path(name).name for name in there - self._there if "checkpoint-" in name)
            self.points += new
            self._there = there


@dataclass
class Story:
    """What happened."""

    folder: Path
    output: str = ""  # of the last driver
    code: int = -1
    orphan: str = ""  # output of the driver whose head died
    orphan_code: int = -1
    lost: dict[str, Node] = field(default_factory=dict)  # by stage
    joined: dict[str, Node] = field(default_factory=dict)  # in its stead
    kept: dict[str, set[str]] = field(default_factory=dict)  # units in scratch at the blow
    done: dict[str, dict[str, str]] = field(default_factory=dict)  # committed at the blow, and when
    written: dict[str, set[int]] = field(default_factory=dict)
    points: list[str] = field(default_factory=list)
    machines: Machines | None = None  # the cluster on which it ended


def strike(
    story: Story, machines: Machines, command: Command, diary: Diary, stage: str, task: str
) -> None:
    """Kill a node that is at work in a stage which has got somewhere."""
    ending = {"corpus": ".json", "pretrain": ".json", "features": ".parquet"}.get(stage)
    found: list[Node] = []

    def at_work() -> bool:
        if stage == "tune":
            further = any((story.folder / "nml-store/tune").rglob("manifest.json"))
        else:
            marks = {"corpus": "unit-", "pretrain": "checkpoint-", "features": ""}
            further = any(marks[stage] in name for name in diary.kept(stage, str(ending)))
        found[:] = [node for node in machines.nodes if re.search(task, " ".join(node.busy()))]
        return further and len(found) >= (2 if stage == "pretrain" else 1)

    command.wait_until(at_work, f"work in {stage}", every=0.05)
    story.kept[stage] = diary.kept(stage, str(ending)) if ending else set()
    story.done[stage] = finished(story.folder)
    story.lost[stage] = found[0]
    machines.kill(found[0])


@pytest.fixture(scope="module")
def calm(ray_of_two: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the same sweep that nothing happened to."""
    folder = tmp_path_factory.mktemp("calm")
    write_source(folder)
    code, output = in_process_on_ray(folder, "sweep", *words())
    assert code == 0, output
    return folder


@pytest.fixture(scope="module")
def story(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    folder = tmp_path_factory.mktemp("story")
    told = Story(folder / "sweep")
    write_source(told.folder)
    diary = Diary(told.folder / "nml-store")
    first = Machines(folder / "first", folder / "hidden")
    try:
        first.add()
        first.add()
        command = start(told.folder, "sweep", *words(), **first.environment)
        strike(told, first, command, diary, "corpus", r"MapBatches\(_run_piece")
        told.joined["corpus"] = first.add()
        strike(told, first, command, diary, "pretrain", "RayTrainWorker")
        told.joined["pretrain"] = first.add()
        encoders = told.folder / "nml-store/pretrain"
        command.wait_until(lambda: any(encoders.rglob("manifest.json")), "the encoder")
        told.done["head"] = finished(told.folder)
        first.lose_head()
        told.orphan_code, told.orphan = command.finish()
        first.close()
        second = told.machines = Machines(folder / "second", folder / "hidden")
        second.add()
        second.add()
        command = start(told.folder, "sweep", *words(), **second.environment)
        strike(told, second, command, diary, "features", "_encode")
        told.joined["features"] = second.add()
        strike(told, second, command, diary, "tune", "Trial|ResourceTrainable")
        told.code, told.output = command.finish()
        diary.close()
        told.written, told.points = diary.written, diary.points
        yield told
    finally:
        first.close()
        if told.machines is not None:
            told.machines.close()
        diary.close()


def test_a_sweep_that_loses_nodes_ends_with_an_undisturbed_ones_files(
    story: Story, calm: Path
) -> None:
    assert story.code == 0, story.output
    found, expected = (
        {name: digest for name, digest in digests(Folder.of(root)).items() if name[:4] != "tune"}
        for root in (story.folder / "nml-store", calm / "nml-store")
    )
    assert expected
    assert found == expected


def test_a_sweep_that_loses_nodes_ends_with_an_undisturbed_ones_metrics(
    story: Story, calm: Path
) -> None:
    """Which cells train as one stack depends on how many processes there are: rounding differs."""
    found, expected = (
        {
            str(path.parent.relative_to(root)): pq.read_table(path).to_pylist()[0]
            for path in (root / "tune").rglob("cell.parquet")
        }
        for root in (story.folder / "nml-store", calm / "nml-store")
    )
    assert len(expected) == CELLS
    assert found.keys() == expected.keys()
    for address, cell in expected.items():
        losses = {name: cell.pop(name) for name in ("test_loss", "validation_loss")}
        assert {name: found[address].pop(name) for name in losses} == pytest.approx(losses, 1e-4)
        assert found[address] == cell


@pytest.mark.parametrize("blow", ["corpus", "pretrain", "head", "features", "tune"])
def test_nothing_finished_is_done_again(story: Story, blow: str) -> None:
    assert story.done[blow].items() <= finished(story.folder).items()


@pytest.mark.parametrize(("stage", "mark"), [("corpus", "/unit-"), ("features", "")])
def test_units_that_a_lost_node_had_kept_are_not_done_again(
    story: Story, stage: str, mark: str
) -> None:
    kept = {name for name in story.kept[stage] if mark in name}
    assert kept
    again = {name: story.written[name] for name in kept if len(story.written[name]) > 1}
    assert again == {}


def test_pretraining_goes_on_from_its_last_checkpoint(story: Story) -> None:
    assert len(set(story.points)) > 2
    assert story.points == sorted(story.points), "it began anew"


def test_a_node_that_joins_half_way_is_used(story: Story) -> None:
    assert any("RayTrainWorker" in task for task in story.joined["corpus"].seen)
    assert any("RayTrainWorker" in task for task in story.joined["pretrain"].seen)


def test_a_driver_whose_head_is_gone_says_so_and_ends(story: Story) -> None:
    """Ray may end it at its next call, before it has seen that the head does not answer."""
    assert story.orphan_code not in (0, 130)
    assert story.orphan.count("does not answer") <= 1, story.orphan
    assert story.orphan.count(ENDED) == 1, story.orphan


def test_a_lost_node_and_a_new_one_cost_a_line_each(story: Story) -> None:
    for output, stages in ((story.orphan, ("corpus", "pretrain")), (story.output, ("features",))):
        for stage in stages:
            assert f"node {story.lost[stage].address} is gone" in output, output
            assert f"node {story.joined[stage].address} has joined" in output, output
        assert "(raylet)" not in output
        assert "Traceback" not in output


@dataclass
class Strange:
    """A cluster with one node, which lacks a folder of this machine and has another timm."""

    node: str
    hidden: Path
    environment: dict[str, str]


@pytest.fixture(scope="module")
def strange(story: Story, tmp_path_factory: pytest.TempPathFactory) -> Strange:
    machines = story.machines
    assert machines is not None
    for node in list(machines.nodes):
        machines.kill(node)
    folder = tmp_path_factory.mktemp("strange")
    meta = folder / "other/timm-0.0.1.dist-info/METADATA"
    meta.parent.mkdir(parents=True)
    meta.write_text("Metadata-Version: 2.1\nName: timm\nVersion: 0.0.1\n")
    node = machines.add(path=folder / "other")
    return Strange(node.address, machines.hidden, machines.environment)


def test_storage_that_a_node_does_not_see_is_refused_before_anything_starts(
    start: Start, strange: Strange, tmp_path: Path
) -> None:
    store = strange.hidden / "store"
    words = ["--noise", "0", "--storage", str(store)]
    code, output = start(tmp_path, "sweep", *words, **strange.environment).finish()
    assert code == 2, output
    assert f"storage {store} is not shared: node {strange.node}" in output
    assert "mounted on every node" in output
    assert "Traceback" not in output
    assert not (store / "corpus").exists()
    code, output = start(tmp_path, "doctor", *words, **strange.environment).finish()
    assert code == 2, output
    assert f"is not shared: node {strange.node}" in output


def test_a_node_with_other_versions_is_named_before_anything_starts(
    start: Start, strange: Strange, tmp_path: Path
) -> None:
    words = ["--noise", "0", "--storage", str(tmp_path / "store")]
    code, output = start(tmp_path, "sweep", *words, **strange.environment).finish()
    assert code == 2, output
    assert f"node {strange.node} runs timm 0.0.1 (here " in output
    assert "Traceback" not in output
    assert not (tmp_path / "store/corpus").exists()
