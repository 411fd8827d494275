"""A stub of the OpenAI-compatible `/embeddings` protocol on loopback, with faults to order.

Its vectors depend on the text alone, so a test can say what is right. It counts what it sells.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

from jobs.embeddings.tokens import counter

DIM = 16


def vector(text: str, model: str = "first", dim: int = DIM) -> np.ndarray:
    """The stub's vector of a text: unit length, float32 [dim]."""
    seed = int.from_bytes(hashlib.sha256(f"{model} {text}".encode()).digest()[:8], "little")
    drawn = np.random.default_rng(seed).normal(size=dim)
    return (drawn / np.linalg.norm(drawn)).astype(np.float32)


@dataclass
class Reply:
    """A reply that is no list of embeddings."""

    status: int
    body: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)


def error(status: int, message: str, code: str = "", **headers: str) -> Reply:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(status, {"error": {"message": message, "type": code, "code": code}}, named)


class Stub:
    """What the server does and what it has seen. Change its fields between requests."""

    def __init__(self) -> None:
        self.url = ""
        self.model = "first"  # the model behind the name
        self.dim = DIM
        self.delay = 0.0
        self.faults: list[Reply] = []  # given one by one, before anything else
        self.fault: Any = None  # (texts, request number) -> Reply | None
        self.change: Any = None  # (items, texts) -> None: changes an answer's items in place
        self.usage_of: Any = None  # texts -> tokens
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.sold: Counter[str] = Counter()  # text -> how often
        self.tokens = 0
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()

    def answer(self, body: dict[str, Any], headers: dict[str, str]) -> Reply:
        texts: Sequence[str] = body["input"]
        with self.lock:
            self.requests.append(body)
            self.headers.append(headers)
            self.times.append(time.monotonic())
            number = len(self.requests)
            fault = self.faults.pop(0) if self.faults else None
        if fault is None and self.fault is not None:
            fault = self.fault(texts, number)
        if fault is not None:
            return fault
        time.sleep(self.delay)
        own = counter("cl100k_base")
        used = self.usage_of(texts) if self.usage_of else sum(map(own.count, texts))
        with self.lock:
            self.sold.update(texts)
            self.tokens += used
        items = []
        for index, text in enumerate(texts):
            found = vector(text, self.model, self.dim)
            sent: Any = found.tolist()
            if body["encoding_format"] == "base64":
                sent = base64.b64encode(found.tobytes()).decode()
            items.append({"object": "embedding", "index": index, "embedding": sent})
        if self.change:
            self.change(items, texts)
        usage = {"prompt_tokens": used, "total_tokens": used}
        return Reply(200, {"object": "list", "data": items, "model": "m", "usage": usage})


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    stub: Stub

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        stub = self.stub
        with stub.lock:
            stub.at_once += 1
            stub.most_at_once = max(stub.most_at_once, stub.at_once)
        try:
            reply = stub.answer(body, {name.lower(): value for name, value in self.headers.items()})
        finally:
            with stub.lock:
                stub.at_once -= 1
        data = json.dumps(reply.body).encode()
        try:
            self.send_response(reply.status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)
        except OSError:  # whoever asked is gone
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""


@contextmanager
def serving(stub: Stub | None = None, port: int = 0) -> Iterator[Stub]:
    """The stub behind a port of loopback."""
    stub = stub or Stub()
    server = ThreadingHTTPServer(("127.0.0.1", port), type("Handler", (_Handler,), {"stub": stub}))
    server.daemon_threads = True
    stub.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield stub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
