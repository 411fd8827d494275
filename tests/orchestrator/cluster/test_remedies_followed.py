"""What a message about a cluster tells its user to do works when it is done."""

import os
import re
import shlex
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from commands import Run
from jobs.storage.folder import Folder
from orchestrator import cluster
from orchestrator.cluster import launch, nodes
from orchestrator.cluster.needs import lacking
from orchestrator.cluster.nodes import NodeReport, _versions, version_fault
from orchestrator.cluster.submission import Cluster, Job
from orchestrator.cluster.working_dir import WorkingDir, working_dir
from orchestrator.errors import ClusterError, StoreError, UserError
from orchestrator.experiment import load

ROOT = Path(__file__).resolve().parents[3]
Change = Callable[[str], str]


def faults(text: str, folder: Path) -> str:
    """All that is wrong with a cluster file, with its versions too."""
    file = folder / "cluster.yaml"
    file.write_text(text)
    try:
        return "\n".join(launch.pins(launch.validate(file)).differences())
    except UserError as error:
        return str(error)


WHOLE = (ROOT / "cluster.yaml").read_text().replace("2.60.0", launch.installed("ray"))
FILES: dict[str, tuple[Change, str, Change]] = {
    "a mistyped cloud": (
        lambda text: text.replace("type: aws", "type: was"),
        r"must be one of (?P<meant>\w+), .*; correct it",
        lambda text: text.replace("type: was", "type: <meant>"),
    ),
    "a list for a file": (
        lambda text: "- a\n",
        r"must be a mapping, such as `(?P<meant>.*)`",
        lambda text: WHOLE,
    ),
    "an open quotation": (
        lambda text: f"{text}x: 'y\n",
        r"a quotation mark is not closed; close it",
        lambda text: f"{WHOLE}",
    ),
    "a word for a number": (
        lambda text: text.replace("max_workers: ", "max_workers: x", 1),
        r"max_workers: .*; correct the file",
        lambda text: text.replace("max_workers: x", "max_workers: ", 1),
    ),
    "a head node of no type": (
        lambda text: text.replace("head_node_type: ", "head_node_type: x", 1),
        r"Ray refuses it \(.*\); correct the file",
        lambda text: text.replace("head_node_type: x", "head_node_type: ", 1),
    ),
    "another version of Ray": (
        lambda text: text.replace(launch.installed("ray"), "2.9.3"),
        r"it pins ray 2\.9\.3 but (?P<meant>\S+) is installed here; .*: change the pin",
        lambda text: text.replace("2.9.3", "<meant>"),
    ),
    "two versions of Ray": (
        lambda text: text.replace(f"ray:{launch.installed('ray')}", "ray:2.9.3", 1),
        r"it pins ray twice, to .*; keep one",
        lambda text: text.replace("ray:2.9.3", f"ray:{launch.installed('ray')}"),
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_a_remedy_of_a_cluster_file_works(name: str, tmp_path: Path) -> None:
    damage, remedy, mend = FILES[name]
    before = faults(WHOLE, tmp_path)
    message = faults(damage(WHOLE), tmp_path)
    found = re.search(remedy, message)
    assert found is not None, message
    mended = mend(damage(WHOLE)).replace("<meant>", found.groupdict().get("meant") or "")
    assert faults(mended, tmp_path) == before


def test_a_cluster_file_is_named_not_its_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot be read \(.*\); give a cluster file$"):
        launch.load(tmp_path)
    (tmp_path / "cluster.yaml").write_text(WHOLE)
    assert launch.load(tmp_path / "cluster.yaml")


# -- sending a sweep -------------------------------------------------------------------------------

SENT = "--noise 0 --storage s3://b/n"
WORDS: dict[str, tuple[str, str, str]] = {
    "two orders": ("--attach old --stop b", r"cannot be combined, .*; give one", "--attach old"),
    "an order and a sweep": (f"--list {SENT}", r"nor given with a sweep; give one", SENT),
    "a storage in the job's folder": (
        "--noise 0 --storage here",
        r"give --storage a bucket, or a path that every node has",
        SENT,
    ),
    "a storage in the job's folder, on every node": (
        "--noise 0 --storage here",
        r"or a path that every node has",
        "--noise 0 --storage /shared/n",
    ),
    "an experiment by its whole path": (
        f"{{here}}/my.yaml {SENT}",
        r"must be given by a relative path inside this folder",
        f"my.yaml {SENT}",
    ),
    "a mistyped step": (
        f"--redo corpus/digts {SENT}",
        r"no step 'corpus/digts'; did you mean (?P<meant>\S+)\?",
        f"--redo {{meant}} {SENT}",
    ),
    "a mistyped job": (
        "--attach odl",
        r"no job is named odl .*; known: (?P<meant>\w+)",
        "--attach {meant}",
    ),
    "a job that has ended": (
        "--stop ended",
        r"has ended already \(failed\); `nml-orch submit (?P<meant>--list)` shows",
        "{meant}",
    ),
    "an address without http": (
        f"--address 127.0.0.1:8265 {SENT}",
        r"must begin with http:// or https://, like (?P<meant>\S+)",
        f"--address {{meant}} {SENT}",
    ),
    "a name that exists": (
        f"--id old {SENT}",
        r"exists at .*; give another --id",
        f"--id new {SENT}",
    ),
}


class Answering(Cluster):
    """A cluster that has one job, `old`, and takes others."""

    def __init__(self, address: str, source: str) -> None:
        if not address.startswith("http"):
            super().__init__(address, source)
        self._address = address
        self._sent: list[Job] = []

    def jobs(self) -> list[Job]:
        known = [Job("old", "RUNNING", "", "", None), Job("ended", "FAILED", "", "", 1)]
        return known + self._sent

    def submit(self, name: str, arguments: object, files: WorkingDir) -> None:
        if name == "old":
            super().submit(name, [], files)
        self._sent.append(Job(name, "RUNNING", "", "", None))

    def follow(self, name: str, say: object) -> Job:
        self.job(name)
        return Job(name, "SUCCEEDED", "", "", 0)


@pytest.mark.parametrize("name", WORDS)
def test_a_remedy_of_a_sweep_that_is_sent_works(
    name: str, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.cluster.submission.Cluster", Answering)
    text = (ROOT / "experiments/demo.yaml").read_text()
    (tmp_path / "my.yaml").write_text(text)
    wrong, remedy, right = WORDS[name]
    code, message = run(tmp_path, "submit", *shlex.split(wrong.format(here=tmp_path)))
    assert code == 2
    found = re.search(remedy, message)
    assert found is not None, message
    code, output = run(tmp_path, "submit", *shlex.split(right.format(**found.groupdict())))
    assert code == 0, output


def test_a_sweep_that_was_stopped_is_sent_again(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.cluster.submission.Cluster", Answering)
    monkeypatch.setattr(Answering, "stop", lambda self, name: None)
    code, output = run(tmp_path, "submit", "--stop", "old")
    assert (code, "send the same sweep again to continue it" in output) == (0, True)
    found = re.search(r"with another (?P<option>--id), if you gave one", output)
    assert found is not None
    for words in ([], [found["option"], "other"]):
        code, output = run(tmp_path, "submit", *words, *shlex.split(SENT))
        assert code == 0, output


@pytest.mark.parametrize("way", ["move data to the cluster's storage", "or name it in .gitignore"])
def test_a_folder_that_is_too_large_to_send_can_be_made_smaller(way: str, tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    (tmp_path / "small").write_bytes(bytes(1_000))
    (tmp_path / "large").write_bytes(bytes(2_000_000))
    with pytest.raises(UserError, match=re.escape(way)) as caught:
        working_dir(tmp_path, 1)
    found = re.search(r"largest: (?P<meant>\S+) 2 MB", str(caught.value))
    assert found is not None
    if "gitignore" in way:
        (tmp_path / ".gitignore").write_text(f"{found['meant']}\n")
    else:
        (tmp_path / found["meant"]).unlink()
    assert Path("small") in working_dir(tmp_path, 1).files


# -- a cluster that is joined ----------------------------------------------------------------------


@pytest.mark.parametrize("address", ["http://127.0.0.1:6379", "somewhere", "127.0.0.1:1"])
def test_an_address_of_ray_that_does_not_answer_can_be_left_out(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ClusterError, match="or unset it to use this machine alone"):
        cluster._check_answers(address)
    cluster._check_answers("local")


@pytest.mark.parametrize(
    "asks", ["pretrain.resources.workers=5", "features.gpus_per_worker=2", "tuning.cpus=3"]
)
def test_resources_are_lowered_or_a_larger_cluster_is_joined(asks: str) -> None:
    kinds = ("pretrain", "features", "tune")
    small = cluster.Resources(nodes=2, cpus=4, gpus=1, most_cpus=2, most_gpus=1)
    large = cluster.Resources(nodes=2, cpus=16, gpus=4, most_cpus=8, most_gpus=2)
    (sentence,) = lacking(load.load(overrides=[asks]), small, kinds)
    assert "lower it, or join a larger cluster" in sentence
    assert not [*lacking(load.load(overrides=[f"{asks.partition('=')[0]}=1"]), small, kinds)]
    assert not [*lacking(load.load(overrides=[asks]), large, kinds)]


def test_a_temporary_folder_for_sockets_can_be_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "SHORT_FOLDERS", ())
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", f"/tmp/{99 * 'x'}")
    with pytest.raises(ClusterError, match=r"set it to a folder of at most \d+ plain") as caught:
        cluster._use_short_folders()
    found = re.search(r"^(?P<name>\w+)=.* at most (?P<most>\d+) plain", str(caught.value))
    assert found is not None
    monkeypatch.setenv(found["name"], "/tmp/".ljust(int(found["most"]), "x"))
    cluster._use_short_folders()


@pytest.mark.parametrize("mounted", ["read and write", "only written elsewhere"])
def test_a_storage_is_shared_once_every_node_has_it(
    mounted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The nodes' own part runs here; a node that has not mounted the storage has another folder."""
    storage, apart = Folder.of(tmp_path / "storage"), Folder.of(tmp_path / "apart")
    seen = {"10.0.0.1": storage, "10.0.0.2": apart}
    if mounted == "only written elsewhere":
        apart.write_bytes("token", b"token")

    def ask(folder: Folder) -> list[NodeReport]:
        folder.write_bytes("token", b"token")
        asked = ((node, nodes._answer(own, "token", node)) for node, own in seen.items())
        found = (nodes._collect(folder, "token", node, answer) for node, answer in asked)
        return [report for report in found if report is not None]

    monkeypatch.setattr(nodes, "ask", ask)
    monkeypatch.setattr(ray, "get", lambda report: report)
    with pytest.raises(
        StoreError, match=r"is not shared: node 10\.0\.0\.2 .*mounted on every node$"
    ):
        nodes.check(storage)
    seen["10.0.0.2"] = storage
    assert [report.node for report in nodes.check(storage)] == [*seen]


def test_a_node_that_cannot_run_the_tool_gets_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder.of(tmp_path)
    folder.write_bytes("token", b"token")

    def lacking(reference: object) -> None:
        raise ray.exceptions.RaySystemError("No module named 'orchestrator'")

    monkeypatch.setattr(ray, "get", lacking)
    remedy = r"node n cannot run nml-orch \(.*\); install the same version there$"
    with pytest.raises(ClusterError, match=remedy):
        nodes._collect(folder, "token", "n", None)
    monkeypatch.setattr(ray, "get", lambda report: report)
    found = nodes._collect(folder, "token", "n", nodes._answer(folder, "token", "n"))
    assert found is not None
    assert not found.storage_fault
    assert version_fault([found]) == ""


class Remote:
    """A function that runs on a node: its answer is the node's address."""

    def __init__(self, function: object) -> None: ...

    def options(self, scheduling_strategy: Any, num_cpus: int) -> Any:
        return SimpleNamespace(remote=lambda *given: given[-1])


@pytest.mark.parametrize("way", ["end the node", "or wait for it"])
def test_a_node_that_does_not_answer_is_ended_or_waited_for(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    living, late = [f"10.0.0.{n}" for n in (1, 2, 3)], ["10.0.0.3"]

    def alive() -> list[dict[str, Any]]:
        return [{"Alive": True, "NodeID": "0" * 56, "NodeManagerAddress": n} for n in living]

    def wait(asked: list[str], **given: object) -> tuple[list[str], list[str]]:
        return [n for n in asked if n not in late], [n for n in asked if n in late]

    monkeypatch.setattr(ray, "nodes", alive)
    monkeypatch.setattr(ray, "remote", Remote)
    monkeypatch.setattr(ray, "wait", wait)
    monkeypatch.setattr(nodes, "_collect", lambda folder, token, node, answer: answer)
    with pytest.raises(ClusterError, match=rf"node 10\.0\.0\.3 did not .*{way}.*start again$"):
        nodes.ask(Folder.of(tmp_path))
    (living if way == "end the node" else late).remove("10.0.0.3")
    assert nodes.ask(Folder.of(tmp_path)) == living


def test_a_folder_for_sockets_is_chosen_as_the_warning_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", f"/tmp/{99 * 'x'}")
    monkeypatch.setattr(tempfile, "tempdir", tempfile.tempdir)
    cluster._use_short_folders()
    (warning,) = caplog.messages
    found = re.search(r"\(set (?P<name>\w+) to a folder of at most (?P<most>\d+) plain", warning)
    assert found is not None
    chosen = "/tmp/".ljust(int(found["most"]), "x")
    monkeypatch.setenv(found["name"], chosen)
    cluster._use_short_folders()
    assert os.environ["TMPDIR"] == chosen
    assert len(caplog.messages) == 1


def test_a_node_with_the_same_versions_is_accepted() -> None:
    here = _versions()
    old = NodeReport("10.0.0.2", {**here, "torch": "1.0"})
    fault = version_fault([old])
    assert "; install the same versions on every node" in fault
    same = re.findall(r"(\S+) \S+ \(here (\S+)\)", fault)
    assert same == [("torch", here["torch"])]
    assert version_fault([NodeReport("10.0.0.2", {**here, **dict(same)})]) == ""
