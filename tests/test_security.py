"""What docs/security.md promises: what listens, that no file runs code, that no secret leaks."""

from __future__ import annotations

import ast
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest
import torch

from commands import Run
from jobs.contract import StageError
from jobs.corpus import build
from jobs.corpus.spec import Corpus
from jobs.encoders import encoder, weights
from jobs.images.spec import ImageInput
from jobs.storage.folder import Folder
from jobs.tasks import registry
from orchestrator.errors import UserError
from orchestrator.experiment import load
from orchestrator.store.provenance import redact
from planted import MARK, SECRETS, WORDS

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("orchestrator", "jobs", "analysis", "experiments")
LOOPBACK = ("127.0.0.1", "::1")

# -- what reads files --------------------------------------------------------------------------

FORBIDDEN = {
    *(f"{module}.{name}" for module in ("pickle", "cloudpickle", "dill", "joblib", "marshal")
      for name in ("load", "loads", "Unpickler")),
    *("shelve.open", "pandas.read_pickle", "pd.read_pickle", "eval", "exec", "os.system"),
    *("yaml.unsafe_load", "yaml.full_load", "yaml.unsafe_load_all", "yaml.full_load_all"),
}  # fmt: skip
"""Calls that run what a file says."""


def dangers(source: str) -> Iterator[str]:
    """Calls in a module that may run code from a file, or write where an archive says."""
    tree = ast.parse(source)
    safe = {  # loaders made from PyYAML's safe one
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and "yaml.SafeLoader" in map(ast.unparse, node.bases)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in ("pickle", "marshal", "dill"):
            yield f"{node.lineno}: from {node.module} import"
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        given = {word.arg: ast.unparse(word.value) for word in node.keywords}
        if (
            name in FORBIDDEN
            or (name == "torch.load" and given.get("weights_only") != "True")
            or (name == "yaml.load" and given.get("Loader") not in {"yaml.SafeLoader", *safe})
            or given.get("allow_pickle", "False") != "False"
            or given.get("shell", "False") != "False"
            or name.rpartition(".")[2] in ("extractall", "unpack_archive")
        ):
            yield f"{node.lineno}: {name}"


@pytest.mark.parametrize(
    "bad",
    [
        "pickle.load(file)",
        "torch.load(file)",
        "torch.load(file, weights_only=False)",
        "yaml.load(text, Loader=yaml.Loader)",
        "yaml.unsafe_load(text)",
        "np.load(file, allow_pickle=True)",
        "tar.extractall(folder)",
        "subprocess.run(words, shell=True)",
        "from pickle import loads",
    ],
)
def test_the_search_finds_what_it_looks_for(bad: str) -> None:
    assert list(dangers(bad))


def test_no_module_runs_what_a_file_says_but_the_one_that_runs_extensions() -> None:
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    assert len(files) > 100
    found = {path.relative_to(ROOT).as_posix(): list(dangers(path.read_text())) for path in files}
    (allowed,) = found.pop("jobs/extensions/load.py")  # code that a person names: docs/security.md
    assert allowed.endswith(": exec")
    assert {path: lines for path, lines in found.items() if lines} == {}


class Trap:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return eval, ("open('sprung', 'w').close()",)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth", "w.bin"])
def test_a_pickle_named_as_weights_is_refused_unread(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(pickle.dumps(Trap()))
    with pytest.raises(StageError, match="neither safetensors nor"):
        weights.read(tmp_path / name)
    assert not (tmp_path / "sprung").exists()


def test_a_pickle_in_the_store_is_refused_even_under_its_own_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever can write weights into the store can write their digest beside them."""
    monkeypatch.chdir(tmp_path)
    evil = pickle.dumps(Trap())
    folder = Folder.of(tmp_path / "encoder")
    card = encoder.EncoderCard(
        family="timm",
        model="resnet18",
        model_options={},
        input=ImageInput(size=16, channels=1, mean=(0.5,), std=(0.5,)),
        classes=("a", "b"),
        feature_dim=512,
        initial_weights_sha256=None,
        order_sha256=None,
        weights_sha256=sha256(evil).hexdigest(),
    )
    folder.write_bytes(encoder.WEIGHTS, evil)
    folder.write_json(encoder.CARD, card.as_json())
    with pytest.raises(Exception) as raised:  # noqa: PT011 - whatever refuses it, it did not run
        encoder.load(folder, torch.device("cpu"))
    assert "safetensor" in f"{type(raised.value)} {raised.value}".lower()
    assert not (tmp_path / "sprung").exists()


TAG = "!!python/object/apply:os.mkdir [sprung]"


def test_yaml_makes_no_objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(f"name: {TAG}\n")
    with pytest.raises(UserError, match="not valid YAML"):
        load.load("mine.yaml")
    with pytest.raises(UserError):
        load.load(overrides=[f"title={TAG}"])
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks/evil.yaml").write_text(f"name: evil\ntitle: {TAG}\n")
    with pytest.raises(Exception, match=r"evil\.yaml"):
        registry.load("evil", [tmp_path / "tasks"])
    assert not (tmp_path / "sprung").exists()


def test_an_archive_writes_nothing_outside_the_corpus(tmp_path: Path) -> None:
    """Members that climb out are quarantined by name; nothing is ever unpacked to a disk."""
    source = tmp_path / "a/b/source"
    source.mkdir(parents=True)
    with tarfile.open(source / "0.tar", "w") as tar:
        for name in ("../../escaped", str(tmp_path / "absolute")):
            for ending, data in (("jpg", b"\xff\xd8"), ("txt", b"words")):
                info = tarfile.TarInfo(f"{name}.{ending}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    reader = {"kind": "webdataset", "path": str(source)}
    corpus = Corpus.model_validate({"name": "mine", "reader": reader})
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    scratch = Folder.of(tmp_path / "a/b/scratch")
    found = build.survey(corpus)
    scans = [build.scan(corpus, found, piece, scratch) for piece in found.pieces]
    new = {path for path in tmp_path.rglob("*") if path.is_file()} - before
    assert new
    assert all(path.is_relative_to(tmp_path / "a/b/scratch") for path in new)
    assert sum((scan.quarantined for scan in scans), Counter()) == {"unsafe_path": 2, "link": 1}
    assert sum(scan.read for scan in scans) == 3


# -- what listens (MLflow's pages: test_pages.py) --------------------------------------------------


@pytest.mark.slow
def test_a_sweep_and_its_private_ray_listen_on_loopback_alone(planted: Path) -> None:
    found = [line.split() for line in (planted / "listening.txt").read_text().splitlines()]
    assert {address for address, *_ in found} <= {*LOOPBACK}, found
    names = " ".join(name for *_, name in found)
    assert "RayTrainWorker" in names  # it was watched during pre-training
    assert "ray::" in names.replace("ray::RayTrainWorker", "")  # and during other stages


# -- secrets -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_no_secret_is_kept_or_shown(planted: Path, run: Run, tmp_path: Path) -> None:
    """Keys in the environment and in the experiment file's tracking URI, through all of a sweep."""
    output = (planted / "screen.txt").read_text()
    lines = (planted / "command-lines.txt").read_text().splitlines()
    assert "does not answer" in output
    folder = shutil.copytree(planted, tmp_path / "copied")
    local = ["--set", f"tracking.uri=sqlite:///{folder}/mlflow.db"]
    code, synced = run(folder, "sync", *WORDS, *local, **SECRETS)
    assert code == 0, synced
    assert (folder / "mlflow.db").exists()
    kept = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != "mine.yaml"}
    assert any(path.name == "manifest.json" for path in kept)
    assert any(path.name == "experiment.yaml" for path in kept)
    assert [str(path) for path, data in kept.items() if MARK.encode() in data] == []
    assert MARK not in output + synced
    assert len(lines) > 2
    assert [line for line in lines if MARK in line] == []


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("http://me:secret@host:5000/x", "http://***@host:5000/x"),
        ("https://h/x?sv=1&sig_token=abc&b=2", "https://h/x?sv=1&sig_token=***&b=2"),
        ("s3://b/x?X-Amz-Signature=abc", "s3://b/x?X-Amz-Signature=***"),
        ("s3://bucket/nml?region=us-east-1", "s3://bucket/nml?region=us-east-1"),
        ("a.b=c?d", "a.b=c?d"),
    ],
)
def test_what_is_recorded_of_a_uri_holds_no_secret(said: str, kept: str) -> None:
    assert redact(said) == kept


def test_a_manifests_command_holds_no_secret() -> None:
    code = (
        "import json; from orchestrator.store.provenance import environment;"
        "print(json.dumps(environment()))"
    )
    words = [
        sys.executable,
        "-c",
        code,
        "--set",
        "tracking.uri=http://a:planted-1@h/?token=planted-2",
    ]
    done = subprocess.run(
        words,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "tracking.uri=http://***@h/?token=***" in json.loads(done.stdout)["argv"]
