"""`ui` on a busy port: it says whose it is, and takes another or ends with 2."""

import os
import socket
from collections.abc import Iterator

import pytest

from orchestrator.cli import ui
from orchestrator.errors import UserError
from orchestrator.tracking import port


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield int(server.getsockname()[1])


def test_a_taken_port_is_not_free_and_its_owner_is_named(taken: int) -> None:
    assert not port.is_free(taken)
    assert f"(process {os.getpid()})" in port.owner(taken)
    found = port.next_free(taken)
    assert found is not None
    assert found > taken


def test_a_port_that_was_asked_for_and_is_taken_is_a_mistake(taken: int) -> None:
    with pytest.raises(UserError, match=rf"port {taken} is taken by .*; --port \d+ is free"):
        ui._free(taken)


def test_without_a_wish_the_next_free_port_is_taken(
    taken: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("orchestrator.preflight.UI_PORT", taken)
    found = ui._free(None)
    assert found > taken
    assert f"port {taken} is taken by" in capsys.readouterr().out
