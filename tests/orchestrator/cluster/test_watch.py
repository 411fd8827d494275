"""What a sweep on a joined cluster says of a head that is gone."""

import socket
from types import SimpleNamespace

import pytest
import ray

from commands import waiting
from orchestrator.cluster import watch


def test_a_head_that_does_not_answer_is_reported_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[bool] = []
    accepts = watch._accepts

    def looked(address: str) -> bool:
        looks.append(accepts(address))
        return looks[-1]

    said: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as head:
        address = f"127.0.0.1:{head.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        monkeypatch.setattr(
            ray, "get_runtime_context", lambda: SimpleNamespace(gcs_address=address)
        )
        monkeypatch.setattr(watch, "_alive", dict)
        monkeypatch.setattr(watch, "_accepts", looked)
        monkeypatch.setattr(watch, "LOOK_SECONDS", 0.01)
        with watch.watching(said.append):
            for _ in waiting("three looks at a head that answers"):
                if len(looks) >= 3:
                    break
            assert said == []
            head.close()
            for _ in waiting("three looks at a head that is gone"):
                if looks[-3:] == [False] * 3:
                    break
    assert len(said) == 1
    assert f"the cluster's head {address} does not answer" in said[0]
    assert "the same command continues it" in said[0]
