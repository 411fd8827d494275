"""Workers of a private Ray are forks of one process that has imported what they need."""

import importlib.util
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray

from orchestrator.cluster import fork_server
from orchestrator.cluster.fork_server import ForkServer
from orchestrator.cluster.start_worker import forked
from orchestrator.run.imports import imports
from orchestrator.step.step import KINDS

forks = pytest.mark.skipif(not fork_server.possible(), reason="not on Linux, or with a GPU")


class Worker:
    """An actor that tells of its process."""

    def seen(self) -> dict[str, object]:
        import numpy as np
        from ray._raylet import JobID, TaskID

        return {
            "torch": "torch" in sys.modules,
            "parent": psutil.Process(os.getppid()).cmdline(),
            "draw": float(np.random.random()),
            "id": TaskID.for_fake_task(JobID.from_int(1)).hex(),
            "threads": os.environ["OMP_NUM_THREADS"],
            "address": os.environ.get(fork_server.ADDRESS),
            "given": os.environ.get("NML_GIVEN"),
            "folder": os.getcwd(),
            "files": resource.getrlimit(resource.RLIMIT_NOFILE),
            "interrupted": signal.getsignal(signal.SIGINT) is signal.default_int_handler,
            "child": subprocess.run(["sh", "-c", "exit 3"]).returncode,
        }


@forks
def test_a_worker_is_a_fork_that_has_imported_torch(ray_session: None) -> None:
    from commands import waiting  # here: Ray's workers import this file, and do not find it

    kinds = [ray.remote(num_cpus=0)(Worker), given(Worker, "1"), given(Worker, "2")]
    for _ in waiting("workers that are forked after the import of torch"):
        workers = [kind.remote() for kind in kinds]
        plain, one, two = ray.get([worker.seen.remote() for worker in workers])
        for worker in workers:
            ray.kill(worker)
        if plain["torch"] and one["torch"] and two["torch"]:
            break
    for each in (plain, one, two):
        assert any("serve_forks.py" in word for word in each["parent"])
        assert each["folder"] == os.getcwd()
        assert each["files"] == resource.getrlimit(resource.RLIMIT_NOFILE)  # which Ray has raised
        assert each["interrupted"]
        assert each["child"] == 3  # it waits for the processes that it starts
        assert each["address"] is None
        assert each["threads"] == os.environ.get("OMP_NUM_THREADS", "1")
    assert [plain["given"], one["given"], two["given"]] == [None, "1", "2"]
    assert len({plain["draw"], one["draw"], two["draw"]}) == 3
    assert len({plain["id"], one["id"], two["id"]}) == 3


def given(kind: type, value: str):  # type: ignore[no-untyped-def]
    return ray.remote(num_cpus=0, runtime_env={"env_vars": {"NML_GIVEN": value}})(kind)


@pytest.fixture
def server() -> Iterator[ForkServer]:
    started = fork_server.start(["json.tool", "no_such_module"])
    assert started is not None
    yield started
    started.close()


SCRIPT = """
import json, os, sys
os.write(1, json.dumps([sys.argv[1:], "json.tool" in sys.modules, os.environ["HOME"]]).encode())
"""


STAYS = """
import os, time
os.write(1, str(os.getpid()).encode())
os.close(1)
time.sleep(3600)
"""


def ask(address: str, folder: Path, content: str = SCRIPT) -> tuple[bool, str]:
    """Whether a fork was made, as `start_worker.py` asks for it; and what the fork has printed."""
    script = folder / "script.py"
    script.write_text(content)
    asks = f"""
import sys
from orchestrator.cluster.start_worker import forked
sys.exit(0 if forked([{str(script)!r}, "a b", "é"]) else 9)
"""
    environment = {**os.environ, fork_server.ADDRESS: address}
    line = [sys.executable, "-c", asks]
    asked = subprocess.run(line, env=environment, stdout=subprocess.PIPE, text=True)
    return asked.returncode == 0, asked.stdout


def test_all_that_it_is_told_to_import_exists_and_rays_comes_last() -> None:
    told = imports(KINDS)
    assert [name for name in told if importlib.util.find_spec(name) is None] == []
    assert {"torch", "timm"} < set(told[: told.index("ray")])
    assert "torch" not in imports(["corpus", "noise"])


@forks
def test_a_fork_takes_the_command_line_and_prints_where_it_was_asked_to(
    server: ForkServer, tmp_path: Path
) -> None:
    from commands import waiting

    for _ in waiting("a fork after the import of json.tool"):
        made, printed = ask(server.address, tmp_path)
        assert made
        words, imported, home = json.loads(printed)
        assert (words, home) == (["a b", "é"], os.environ["HOME"])
        if imported:
            break


@forks
def test_who_asks_and_ends_takes_nothing_from_the_others(
    server: ForkServer, tmp_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX) as gone:
        gone.connect(server.address)
    assert ask(server.address, tmp_path)[0]


@forks
def test_a_fork_that_has_not_ended_ends_with_the_server(server: ForkServer, tmp_path: Path) -> None:
    made, pid = ask(server.address, tmp_path, STAYS)
    assert made
    process = psutil.Process(int(pid))
    server.close()
    process.wait(60)


@forks
def test_without_a_server_nothing_is_forked(server: ForkServer, tmp_path: Path) -> None:
    os.kill(server.pid, signal.SIGKILL)
    assert ask(server.address, tmp_path) == (False, "")
    assert not forked(["no address"])


DRAWS = """
from pathlib import Path
from ray._raylet import JobID, TaskID
TaskID.for_fake_task(JobID.from_int(1))
Path(__file__).with_name("drawn").touch()
"""
ASKED = """
import select, sys
select.select([int(sys.argv[1])], [], [])  # until somebody asks
"""


@forks
@pytest.mark.parametrize(
    ("modules", "forks_made"),
    [
        (["ray"], [True]),
        (["ray", "draws"], [False]),
        (["draws", "ray"], [False]),
        (["asked", "draws", "ray"], [True, False]),  # the first one asks before "draws" is imported
    ],
    ids=["ray", "ray-draws", "draws-ray", "asked-draws-ray"],
)
def test_no_fork_where_forks_would_draw_the_same_ids(
    modules: list[str], forks_made: list[bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from commands import waiting

    (tmp_path / "draws.py").write_text(DRAWS)
    (tmp_path / "asked.py").write_text(ASKED)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    server = ForkServer(modules)
    made = []
    for asked in range(len(forks_made)):
        if modules[asked] == "draws":
            for _ in waiting("the import of draws"):
                if (tmp_path / "drawn").exists():
                    break
        made.append(ask(server.address, tmp_path)[0])
    server.close()
    assert made == forks_made


@forks
def test_the_server_ends_with_a_driver_that_is_killed(tmp_path: Path) -> None:
    starts = """
import sys
from orchestrator.cluster import fork_server
server = fork_server.start(())
print(server.pid, server.address, flush=True)
sys.stdin.read()
"""
    line = [sys.executable, "-c", starts]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        pid, address = driver.stdout.readline().split()
        process = psutil.Process(int(pid))
        assert ask(address, tmp_path)[0]
        process.terminate()  # as whoever ends the whole group does
        driver.kill()
    process.wait(60)
    assert not Path(address).parent.exists()


def test_no_server_where_workers_cannot_be_forked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("NML_FORK", "0")
        assert fork_server.start(()) is None
    with monkeypatch.context() as patch:
        patch.setenv("RAY_ADDRESS", "ray://somewhere:10001")
        assert fork_server.start(()) is None
    (tmp_path / "gpu0").touch()
    monkeypatch.setattr(fork_server, "GPUS", (str(tmp_path / "gpu[0-9]"),))
    assert fork_server.start(()) is None


@forks
def test_no_server_where_there_is_no_room_for_its_socket(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    deep = tmp_path / ("long" * 30)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    assert fork_server.start(()) is None
    assert list(deep.iterdir()) == []


@forks
def test_a_server_that_is_restarted_forks_again(server: ForkServer, tmp_path: Path) -> None:
    before = server.pid
    server.restart()
    assert server.pid != before
    assert ask(server.address, tmp_path)[0]


RUN_WITHOUT_IT = """
import os, sys
from orchestrator import cluster
from orchestrator.cluster import fork_server
workers = fork_server.start(())
os.kill(workers.pid, 9)
with cluster.session(1, workers):
    import ray
    print(ray.get(ray.remote(lambda: 42).remote()))
workers.close()
"""


@forks
@pytest.mark.slow
def test_ray_starts_its_workers_itself_when_the_server_is_gone() -> None:
    line = [sys.executable, "-c", RUN_WITHOUT_IT]
    assert subprocess.run(line, capture_output=True, text=True).stdout.split() == ["42"]
