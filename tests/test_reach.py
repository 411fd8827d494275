"""Nothing waits for ever: each verb against servers that are gone, silent or unknown."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from commands import Run, Start, free_port
from jobs import reach
from orchestrator.cluster import submission
from orchestrator.cluster.submission import Cluster
from orchestrator.errors import ClusterError
from orchestrator.tracking.mlflow import Mirror, error_kind, error_message

LIMIT = 60.0  # seconds that a verb may take on a busy machine; libraries try for minutes
KEYS = {
    "AWS_ACCESS_KEY_ID": "x",
    "AWS_SECRET_ACCESS_KEY": "y",
    "AWS_EC2_METADATA_DISABLED": "true",
}


class Server:
    """Accepts connections at every address of this machine, answers `reply` and then is silent.

    Or, with `ending`, ends the connection.
    """

    def __init__(self, reply: bytes = b"", *, ending: bool = False) -> None:
        self._reply, self._ending = reply, ending
        self._kept: list[socket.socket] = []
        self._listener = socket.create_server(("0.0.0.0", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._kept:
            connection.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._kept.append(connection)
            with suppress(OSError):  # whoever asked has gone
                connection.sendall(self._reply)
                if self._ending:
                    connection.shutdown(socket.SHUT_WR)


@pytest.fixture(scope="module")
def silent() -> Iterator[str]:
    with closing(Server()) as server:
        yield f"127.0.0.1:{server.port}"


@pytest.fixture(params=["gone", "silent", "unknown"])
def place(
    request: pytest.FixtureRequest, silent: str, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, str]:
    """An address where nothing answers, and how its fault is told."""
    monkeypatch.setattr(reach, "SECONDS", 1.0)
    return {
        "gone": (f"127.0.0.1:{free_port()}", "connection refused"),
        "silent": (silent, "no answer within 1 s"),
        "unknown": ("no-such-host.invalid:6379", "no machine of that name"),
    }[request.param]


def ended(folder: Path, run: Run, *words: str, **environment: str) -> tuple[int, str]:
    """A verb's exit code and text, which came in time and without a traceback or a false blame."""
    started = time.monotonic()
    code, output = run(folder, *words, **environment)
    assert time.monotonic() - started < LIMIT
    assert "Traceback" not in output
    assert "bug" not in output
    assert "defect" not in output
    return code, output


Place = tuple[str, str]


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_a_dead_ray_address(scheme: str, place: Place, run: Run, tmp_path: Path) -> None:
    address, fault = scheme + place[0], place[1]
    code, output = ended(tmp_path, run, "doctor", RAY_ADDRESS=address)
    assert code == 2
    told = next(line for line in output.splitlines() if line.startswith("FAIL  ray"))
    assert all(words in told for words in (address, "RAY_ADDRESS", fault, "correct RAY_ADDRESS"))


def test_a_dead_ray_address_ends_a_build(place: Place, run: Run, tmp_path: Path) -> None:
    code, output = ended(tmp_path, run, "corpus", "build", RAY_ADDRESS=place[0])
    assert (code, place[0] in output, place[1] in output) == (2, True, True), output


@pytest.mark.parametrize(
    ("address", "fault"),
    [
        ("http://127.0.0.1:8265", "not http://"),
        ("somewhere", "somewhere"),
        ("ray://somewhere", "no port"),
        ("somewhere:port", "port"),
    ],
)
def test_a_ray_address_that_is_none(address: str, fault: str, run: Run, tmp_path: Path) -> None:
    code, output = ended(tmp_path, run, "corpus", "build", RAY_ADDRESS=address)
    assert (code, "RAY_ADDRESS" in output, fault in output) == (2, True, True), output


def test_a_web_server_is_no_ray(run: Run, tmp_path: Path) -> None:
    """Someone gives the port of the pages."""
    with closing(Server(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as server:
        code, output = ended(tmp_path, run, "doctor", RAY_ADDRESS=f"127.0.0.1:{server.port}")
    assert code == 2
    assert "a web server answers there" in output


def test_doctor_as_a_process_of_its_own(start: Start, tmp_path: Path) -> None:
    """With the real limits, and Ray's own warnings if it were asked."""
    command = start(tmp_path, "doctor", RAY_ADDRESS=f"127.0.0.1:{free_port()}")
    code, output = command.finish(timeout=LIMIT)
    assert code == 2
    assert "connection refused" in output
    assert len(output.splitlines()) == 7, output


def test_a_jobs_api(place: Place, run: Run, tmp_path: Path) -> None:
    address = f"http://{place[0]}"
    for words, variables, source in (
        (["--address", address], {}, "--address"),
        ([], {"RAY_API_SERVER_ADDRESS": address}, "RAY_API_SERVER_ADDRESS"),
    ):
        code, output = ended(tmp_path, run, "submit", "--list", *words, **variables)
        assert code == 2
        assert f"{address} (from {source})" in output
        assert place[1] in output


@pytest.mark.parametrize("address", ["127.0.0.1:8265", "ray://127.0.0.1:10001", "auto"])
def test_a_jobs_api_without_a_url(address: str, run: Run, tmp_path: Path) -> None:
    code, output = ended(tmp_path, run, "submit", "--list", "--address", address)
    assert (code, "must begin with http://" in output) == (2, True), output


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_tracking_server(scheme: str, place: Place, run: Run, tmp_path: Path) -> None:
    uri = f"{scheme}://{place[0]}"
    code, output = ended(tmp_path, run, "doctor", "--no-ray", MLFLOW_TRACKING_URI=uri)
    told = next(line for line in output.splitlines() if line.startswith("FAIL  tracking"))
    assert code == 2
    assert f"{uri} (from MLFLOW_TRACKING_URI)" in told
    assert place[1] in told
    assert "--set tracking.uri" in told


def test_a_mirror_is_not_opened_for_long(place: Place) -> None:
    """As `sync` and a sweep open it."""
    uri = f"http://{place[0]}/nml"
    started = time.monotonic()
    with pytest.raises(ConnectionError) as raised:
        Mirror(uri, "demo", "id").open()
    assert time.monotonic() - started < LIMIT
    assert error_kind(raised.value) == "unreachable"
    assert place[1] in error_message(raised.value, uri)


@pytest.mark.parametrize("scheme", ["postgresql", "postgresql+psycopg2", "mysql+pymysql"])
def test_a_database(scheme: str, place: Place) -> None:
    """MLflow tries one for three minutes, and its driver waits for ever for a silent one."""
    assert place[1] in reach.database_fault(f"{scheme}://me:secret@{place[0]}/nml")
    with closing(Server(b"N")) as server:
        assert reach.database_fault(f"{scheme}://me@127.0.0.1:{server.port}/nml") == ""
    assert reach.database_fault("sqlite:////somewhere/mlflow.db") == ""


@pytest.mark.parametrize(
    "words",
    [
        ["status"],
        ["plan"],
        ["report"],
        ["sync"],
        ["diff", "a", "b"],
        ["diff", "s3://nml/a", "s3://nml/b"],
        ["sweep"],
    ],
)
@pytest.mark.parametrize("kind", ["s3", "gs"])
def test_a_bucket(words: list[str], kind: str, place: Place, run: Run, tmp_path: Path) -> None:
    options = f"scheme=http&endpoint_override={place[0]}"
    uri = f"s3://nml/x?{options}" if kind == "s3" else f"gs://anonymous@nml/x?{options}"
    words = [f"{word}?{options}" if "://" in word else word for word in words]
    code, output = ended(tmp_path, run, *words, "--storage", uri, **KEYS)
    assert code == 2
    assert place[0] in output
    assert place[1] in output


def test_a_source_in_a_bucket(place: Place, run: Run, tmp_path: Path) -> None:
    """Told before Ray starts: a worker would try for minutes."""
    path = f"s3://b/c?scheme=http&endpoint_override={place[0]}"
    reader = f"{{kind: imagefolder, path: '{path}'}}"
    words = ["--set", f"corpus={{name: mine, reader: {reader}}}"]
    code, output = ended(tmp_path, run, "corpus", "build", *words, **KEYS)
    assert code == 2, output
    assert "corpus/mine" in output
    assert place[1] in output


@given(st.binary(max_size=80) | st.binary(max_size=40).map(b"HTTP/1.1 ".__add__))
def test_whatever_answers_is_a_fault_or_none(reply: bytes) -> None:
    with closing(Server(reply, ending=True)) as server:
        assert isinstance(reach.web_fault(f"http://127.0.0.1:{server.port}/x"), str)
        fault = reach.grpc_fault("127.0.0.1", server.port)
    assert (fault == "") == (reply[3:4] == b"\4" and not reply.startswith(b"HTTP/")), fault


def test_every_answer_of_a_web_server_counts() -> None:
    for status in (
        b"200 OK",
        b"302 Found\r\nLocation: http://127.0.0.1:1/",
        b"401 No",
        b"503 Busy",
    ):
        with closing(Server(b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\n\r\n")) as server:
            fault = reach.web_fault(f"http://me:secret@127.0.0.1:{server.port}/?token=secret")
        assert fault == "", status


class Jobs:
    """A jobs API on loopback with one job that runs and prints nothing."""

    def __init__(self, answers: int) -> None:
        self._answers = answers  # to questions about the job; then it is silent
        started = threading.Event()
        work = self._serve(started)
        self._thread = threading.Thread(target=asyncio.run, args=(work,), daemon=True)
        self._thread.start()
        started.wait(LIMIT)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join(LIMIT)

    async def _serve(self, started: threading.Event) -> None:
        self._loop, self._ended = asyncio.get_running_loop(), asyncio.Event()
        app = web.Application()
        app.router.add_get("/api/version", self._version)
        app.router.add_get("/api/jobs/", self._jobs)
        app.router.add_get("/api/jobs/{name}", self._job)
        app.router.add_get("/api/jobs/{name}/logs/tail", self._tail)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.port = runner.addresses[0][1]
        started.set()
        await self._ended.wait()
        await runner.cleanup()

    async def _version(self, request: web.Request) -> web.Response:
        version = {"version": "4", "ray_version": "2", "ray_commit": "", "session_name": "s"}
        return web.json_response(version)

    async def _asked(self) -> None:
        self._answers -= 1
        if self._answers < 0:
            await self._ended.wait()

    async def _jobs(self, request: web.Request) -> web.Response:
        await self._asked()
        return web.json_response([DETAILS])

    async def _job(self, request: web.Request) -> web.Response:
        await self._asked()
        return web.json_response(DETAILS)

    async def _tail(self, request: web.Request) -> web.WebSocketResponse:
        answer = web.WebSocketResponse()
        await answer.prepare(request)
        await self._ended.wait()
        return answer


DETAILS = {
    "type": "SUBMISSION",
    "submission_id": "mine",
    "job_id": None,
    "status": "RUNNING",
    "entrypoint": "nml-orch sweep",
    "start_time": 1,
}


@pytest.mark.parametrize("answers", [0, 1, 4])
def test_a_jobs_api_that_falls_silent(answers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it lists the job; while its output is awaited, at once or later."""
    monkeypatch.setattr(submission, "SILENT_SECONDS", 0.5)
    with closing(Jobs(answers)) as api:
        cluster = Cluster(f"http://127.0.0.1:{api.port}")
        started = time.monotonic()
        with pytest.raises(ClusterError, match=r"the jobs API at .* does not answer"):
            cluster.follow("mine", print)
    assert time.monotonic() - started < LIMIT
    assert api._answers < 0
