"""Shared parts of the tests: one Ray for the whole run, and sweeps as a person starts them."""

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from commands import TINY, Command, Start
from orchestrator import cluster

# How long an example takes is the machine's affair; a deadline makes a busy one fail.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")

cluster.settings()  # before a test module imports Ray, which reads some of them then


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    with cluster.session(cpus=2):
        yield


@pytest.fixture(scope="session")
def start() -> Iterator[Start]:
    """Start `nml-orch WORDS` in a folder, as a person would; nothing of it outlives the tests."""
    started: list[Command] = []

    def begin(folder: Path, *words: str, **environment: str) -> Command:
        folder.mkdir(parents=True, exist_ok=True)
        mark = uuid.uuid4().hex
        ours = ("RAY_", "NML_DEBUG", "MLFLOW_TRACKING_URI")  # of this process, not a person's
        clean = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
        process = subprocess.Popen(
            [sys.executable, "-m", "nml_orch", *words],
            cwd=folder,
            env={**clean, "NML_TEST_MARK": mark, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        started.append(Command(process, mark, folder))
        return started[-1]

    yield begin
    for command in started:
        if command.process.poll() is None:
            os.killpg(command.process.pid, 9)
            command.process.wait()


@pytest.fixture(scope="session")
def undisturbed(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a TINY sweep that nothing happened to; not to be changed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    code, output = start(folder, "sweep", *TINY).finish()
    assert code == 0, output
    return folder
