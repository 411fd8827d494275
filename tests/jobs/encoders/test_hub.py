"""Text encoders by their id on the Hub: downloaded once from a stub of it, then from the cache."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import huggingface_hub.file_download
import pytest

from jobs.contract import StageError
from tests.jobs.text.models import features_of, imported, put_model, table

MODEL, REVISION = "me/tiny-bert", "c" * 40
UNUSED = {"README.md": b"words", "pytorch_model.bin": b"a pickle", "onnx/model.onnx": b"a graph"}


class Hub:
    """What the stub has, and what it was asked for."""

    def __init__(self, folder: Path) -> None:
        self.files = {path.name: path.read_bytes() for path in folder.iterdir()} | UNUSED
        self.asked: list[str] = []
        self.url = ""

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body for a path, in the Hub's protocol."""
        self.asked.append(path.partition("?")[0])
        if path.startswith(f"/api/models/{MODEL}/tree/{REVISION}"):
            listed = [
                {"type": "file", "path": name, "size": len(data), "oid": _oid(data)}
                for name, data in self.files.items()
            ]
            return 200, {"Content-Type": "application/json"}, json.dumps(listed).encode()
        if path.startswith(f"/api/models/{MODEL}/revision/{REVISION}"):
            siblings = [{"rfilename": name} for name in self.files]
            found = {"_id": "1", "id": MODEL, "sha": REVISION, "siblings": siblings}
            return 200, {"Content-Type": "application/json"}, json.dumps(found).encode()
        name = path.removeprefix(f"/{MODEL}/resolve/{REVISION}/")
        if name in self.files:
            data = self.files[name]
            return 200, {"ETag": f'"{_oid(data)}"', "X-Repo-Commit": REVISION}, data
        fault = {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "no such revision"}
        return 404, fault, b"{}"


def _oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    return put_model(tmp_path / "bert", "bert")


@pytest.fixture
def hub(bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The Hub of `HF_ENDPOINT`, which the library has read already, with an empty cache."""
    found = Hub(bert)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, body = found.answer(self.path)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    found.url = f"http://127.0.0.1:{server.server_port}"
    constants = huggingface_hub.constants
    template = "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", found.url)
    for module in (constants, huggingface_hub.file_download):  # older versions keep two copies
        monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", found.url + template, False)
    yield found
    server.shutdown()
    server.server_close()


def test_a_model_of_the_hub_is_downloaded_once_and_without_what_is_not_used(
    hub: Hub, bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, opened = imported(MODEL, tmp_path / "a", revision=REVISION)
    rows = table(["good film", "a dull plot"])
    _, local = imported(bert, tmp_path / "b")
    assert opened.card.weights_sha256 == local.card.weights_sha256
    assert (features_of(opened, rows) == features_of(local, rows)).all()
    assert opened.card.source["revision"] == REVISION
    fetched = {path.partition(f"/resolve/{REVISION}/")[2] for path in hub.asked} - {""}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= fetched
    assert not fetched & UNUSED.keys()

    seen = len(hub.asked)
    for offline in (False, True):
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
        imported(MODEL, tmp_path / f"again-{offline}", revision=REVISION)
    assert len(hub.asked) == seen, "a cached revision was asked for"


def test_a_revision_that_the_hub_has_not_is_one_sentence(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(
        StageError, match=f"weights {MODEL}@dddd.* could not be downloaded"
    ) as error:
        imported(MODEL, tmp_path / "a", revision="d" * 40)
    assert "\n" not in str(error.value)
    assert any(path.startswith(f"/api/models/{MODEL}") for path in hub.asked)


def test_a_hub_that_does_not_answer_is_not_asked_again_and_again(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(StageError, match=r"http://127\.0\.0\.1:1 does not answer") as error:
        imported(MODEL, tmp_path / "a", revision=REVISION)
    assert "no server listens there" in str(error.value)
    assert "\n" not in str(error.value)
    assert hub.asked == []
