"""Where MLflow is: what can be its address, and what cannot."""

from importlib.metadata import EntryPoint

import pytest

from orchestrator.errors import UserError
from orchestrator.tracking import server
from orchestrator.tracking.server import resolve_uri


@pytest.mark.parametrize(
    "uri",
    [
        "http://[::1",
        "http://host:port",
        "http://host:99999",
        "http://host:0",
        "http:/host:5000",
        "https://",
        "htp://host:5000",
        "s3://bucket/runs",
        "localhost:5000",
        "127.0.0.1:5000",
    ],
)
def test_a_tracking_server_that_is_no_address_is_one_sentence(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"^tracking\.uri = .*: is no address .*; give one like"):
        resolve_uri(uri)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(UserError, match=r"^MLFLOW_TRACKING_URI = "):
        resolve_uri(None)


@pytest.mark.parametrize(
    "uri",
    [
        "http://host",
        "https://user:word@host:5000/path",
        "http://[::1]:5000",
        "postgresql+psycopg2://host/runs",
        "postgresql:///runs",
        "mysql://host/runs",
        "file:///runs",
        "runs",
        "databricks",
        "databricks://profile",
    ],
)
def test_what_mlflow_can_open_is_an_address(uri: str) -> None:
    assert resolve_uri(uri) == uri


def test_a_kind_of_store_that_a_package_adds_is_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    added = EntryPoint("ours", "nowhere:Store", "mlflow.tracking_store")
    monkeypatch.setattr(server, "entry_points", lambda group: [added])
    assert resolve_uri("ours://host/runs") == "ours://host/runs"
