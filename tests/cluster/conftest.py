"""A bucket on loopback: moto's server, and a relay in front of it whose moods a test sets."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from commands import waiting
from outages import Bucket, Relay

KEYS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing-secret-5f0c",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_REGION": "us-east-1",
}


@pytest.fixture(scope="session")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    """An empty bucket, with the keys to it in this process's environment."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    log = (tmp_path_factory.mktemp("moto") / "server.log").open("w")
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=log, stderr=log)
    relay = Relay(port)
    patch = pytest.MonkeyPatch()
    for name, value in KEYS.items():
        patch.setenv(name, value)
    try:
        _wait(port, Path(log.name))
        import boto3

        boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}").create_bucket(Bucket="nml")
        yield Bucket(relay)
    finally:
        patch.undo()
        relay.close()
        server.kill()
        server.wait()
        log.close()


def _wait(port: int, log: Path) -> None:
    for _ in waiting(f"the start of moto's server, which says {log}", every=0.1):
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
