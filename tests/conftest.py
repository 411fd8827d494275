"""Shared parts of the tests: one Ray a process, each finished store made once, sweeps by command.

Three processes run the tests (`pytest-xdist`), because each waits often. A file's tests stay
together in one of them. All files that use Ray are in three groups, of which each starts one Ray.
The longest files come first, so that no process waits for another at the end.
"""

import fcntl
import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

import nml_orch
from commands import (
    TINY,
    Command,
    Run,
    Start,
    in_process,
    in_process_on_ray,
)
from orchestrator import cluster
from orchestrator.cluster import fork_server
from planted import sweep as sweep_among_secrets

if TYPE_CHECKING:
    from xdist.remote import Producer
    from xdist.scheduler import LoadScopeScheduling

# How long an example takes is the machine's affair; a deadline makes a busy one fail.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # As in the background of a shell; whatever a test starts would ignore Ctrl-C as well.
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The processes that tests start are hundreds: modules are compiled once, not by each of them.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# What sweeps of tests measure is for the plans of none, and the user's own rates are not theirs.
os.environ["NML_RATES"] = ""

# Figures are most of the cost of a report. Tests that are about them ask for them.
os.environ["NML_FIGURES"] = "0"
FIGURES = {"NML_FIGURES": "1"}

# As `nml-orch` does, for the commands that tests run in their own process.
gc.set_threshold(nml_orch.OBJECTS)

# The Ray of the tests keeps processes that wait for work, with what they imported. They are as nice
# as the tests: else those of other processes leave them a thirtieth of the processor.
os.environ.setdefault("RAY_num_workers_soft_limit", "4")
os.environ.setdefault("RAY_worker_niceness", "0")

cluster.settings()  # before a test module imports Ray, which reads some of them then

SHARED = "PYTEST_XDIST_WORKER" in os.environ  # the machine, with another process of these tests
if SHARED:
    # Threads of two processes that wait for each other on the same cores make both many times
    # slower. Set before torch is imported.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

SLOW = ("slow", "faults", "cluster")
RAYS = ("ray of two", "ray of sweeps", "ray of stages")  # each in a process
LONG = {"undisturbed", "planted", "ray_session", "ray_of_two", "run_on_ray"}
"""Fixtures that make a whole sweep, or start a Ray."""


@cache
def group(file: Path) -> str:
    """What the tests of a file stay together with: those of all that use Ray, or their own."""
    text = file.read_text()
    of_two, of_sweeps, of_stages = RAYS
    if "ray_of_two" in text:
        return of_two
    if "ray_session" in text or "run_on_ray" in text:
        return of_sweeps if file.parent.name == "tests" else of_stages
    return str(file)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(
    config: pytest.Config, log: "Producer | None"
) -> "LoadScopeScheduling":
    """Deal out tests by group. Marks cannot say it: xdist 3.8 does not see them with pytest 9."""
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group(config.rootpath / nodeid.partition("::")[0])

    return ByGroup(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as slow what needs a whole sweep or Ray. Put the groups that take longest first."""
    for item in items:
        if LONG & set(getattr(item, "fixturenames", ())):
            item.add_marker("slow")
    slow = {
        group(item.path) for item in items if any(item.get_closest_marker(mark) for mark in SLOW)
    }
    items.sort(key=lambda item: (group(item.path) not in RAYS, group(item.path) not in slow))


class OneRay:
    """The Ray of this process, which is started when it is asked for, with as many CPUs."""

    def __init__(self) -> None:
        self._cpus = 0
        self._open = ExitStack()

    def of(self, cpus: int) -> None:
        if cpus != self._cpus:
            self.close()
            from orchestrator.run.imports import imports
            from orchestrator.step.step import KINDS

            workers = fork_server.start(imports(KINDS))
            if workers is not None:
                self._open.callback(workers.close)
            self._open.enter_context(cluster.session(cpus, workers))
            self._cpus = cpus

    def close(self) -> None:
        self._open.close()
        self._cpus = 0


@pytest.fixture(scope="session")
def one_ray() -> Iterator[OneRay]:
    rays = OneRay()
    yield rays
    rays.close()


@pytest.fixture(scope="module")
def ray_session(one_ray: OneRay) -> None:
    """A Ray of one CPU, on which a stage starts the fewest processes."""
    one_ray.of(1)


@pytest.fixture(scope="module")
def ray_of_two(one_ray: OneRay) -> None:
    """A Ray of two CPUs, for what needs two processes at once."""
    one_ray.of(2)


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
            env={**clean, "NML_TEST_MARK": mark, **ONE_CPU, **environment},
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
def run() -> Run:
    """Run `nml-orch WORDS` in a folder, in this process; of the verbs that start no Ray."""
    return in_process


@pytest.fixture(scope="module")
def run_on_ray(ray_session: None) -> Run:
    """The same for the verbs that use Ray, on the Ray of the tests."""
    return in_process_on_ray


ONE_CPU = {
    "OMP_NUM_THREADS": "1",
    "RAY_OVERRIDE_RESOURCES": json.dumps({"CPU": 1}),
    "RAY_worker_niceness": "0",
}
"""For a command that is started: with one CPU Ray makes the fewest processes. Nice as the tests."""

Once = Callable[[str, Callable[[Path], None]], Path]


def _once(root: Path, name: str, make: Callable[[Path], None]) -> Path:
    folder, made = root / name, root / f"{name}.made"
    with (root / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            made.touch()
    return folder


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """A folder of a name, made by the process that asks first. Not to be changed; copy it."""
    own = tmp_path_factory.getbasetemp()
    return partial(_once, own.parent if SHARED else own)


@pytest.fixture(scope="session")
def undisturbed(start: Start, once: Once) -> Path:
    """The folder of a TINY sweep that nothing happened to, its text in screen.txt."""

    def sweep(folder: Path) -> None:
        # With one, the cells of two levels would train as one stack, which rounds differently.
        two = {"RAY_OVERRIDE_RESOURCES": '{"CPU": 2}'}
        code, output = start(folder, "sweep", *TINY, **two, **FIGURES).finish()
        assert code == 0, output
        (folder / "screen.txt").write_text(output)

    return once("undisturbed", sweep)


@pytest.fixture(scope="session")
def planted(start: Start, once: Once) -> Path:
    """The folder of a part of the same sweep made elsewhere, among secrets and without an MLflow.

    Its name has what URIs, shells and SQL read as something else.
    """
    return once("planted %20b %2F?c#d \u00e9 '\" :x", partial(sweep_among_secrets, start))
