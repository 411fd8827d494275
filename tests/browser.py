"""A real browser for tests: Debian's chromium without a window, spoken to over its own protocol."""

import asyncio
import base64
import json
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from commands import PATIENCE, waiting

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@dataclass
class Browser:
    """One chromium; every page is opened afresh."""

    port: int
    shots: Path

    def visit(self, url: str, *wanted: str, shot: str, timeout: float = PATIENCE) -> str:
        """All the text of a page once it shows every word wanted; a screenshot is kept of it."""
        return asyncio.run(self._visit(url, wanted, shot, timeout))

    def evaluate(
        self, url: str, scripts: Sequence[str], *, width: int, height: int = 900, dark: bool = False
    ) -> list[Any]:
        """What some scripts give, one after another, on a page in a window of this size."""
        return asyncio.run(self._evaluate(url, scripts, width, height, dark))

    async def _evaluate(
        self, url: str, scripts: Sequence[str], width: int, height: int, dark: bool
    ) -> list[Any]:
        base = f"http://127.0.0.1:{self.port}"
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        async with aiohttp.ClientSession() as web:
            async with web.put(f"{base}/json/new?about:blank") as answer:
                tab = await answer.json()
            async with web.ws_connect(tab["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                page = _Page(socket)
                await page.call("Emulation.setDeviceMetricsOverride", **size)
                await page.call("Emulation.setEmulatedMedia", features=[scheme])
                await page.call("Page.navigate", url=url)
                deadline = time.monotonic() + PATIENCE
                while await page.value("document.readyState + location.href") != f"complete{url}":
                    assert time.monotonic() < deadline, f"{url} never loaded"
                    await asyncio.sleep(0.1)
                found = [await page.value(script) for script in scripts]
            async with web.get(f"{base}/json/close/{tab['id']}"):
                return found

    async def _visit(self, url: str, wanted: tuple[str, ...], shot: str, timeout: float) -> str:
        base = f"http://127.0.0.1:{self.port}"
        async with aiohttp.ClientSession() as web:
            async with web.put(f"{base}/json/new?about:blank") as answer:
                tab = await answer.json()
            async with web.ws_connect(tab["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                page = _Page(socket)
                await page.call("Page.navigate", url=url)
                deadline = time.monotonic() + timeout
                text, before = await page.text(), ""
                # Charts are drawn after their titles: the page has come to rest when it is the
                # same twice.
                while (lacking := [w for w in wanted if w not in text]) or text != before:
                    if time.monotonic() > deadline:
                        await page.keep(self.shots / f"{shot}-failed.png")
                        raise AssertionError(f"{url} never showed {lacking}: {text[:2000]}")
                    await asyncio.sleep(0.3)
                    text, before = await page.text(), text
                await page.keep(self.shots / f"{shot}.png")
            async with web.get(f"{base}/json/close/{tab['id']}"):
                return text


class _Page:
    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket, self._sent = socket, 0

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._sent += 1
        await self._socket.send_json({"id": self._sent, "method": method, "params": params})
        while True:
            answer = json.loads((await self._socket.receive()).data)
            if answer.get("id") == self._sent:
                result: dict[str, Any] = answer.get("result", {})
                return result

    async def text(self) -> str:
        """All that stands on the page, and on the pages framed in it."""
        body = {"expression": "document.body.innerText", "returnByValue": True}
        found = await self.call("Runtime.evaluate", **body)
        snapshot = await self.call("DOMSnapshot.captureSnapshot", computedStyles=[])
        framed = "\n".join(snapshot.get("strings", []))
        return f"{found.get('result', {}).get('value', '')}\n{framed}"

    async def value(self, script: str) -> Any:
        """What a script gives; its error is the test's."""
        found = await self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    async def keep(self, path: Path) -> None:
        shot = await self.call("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(shot["data"]))


@contextmanager
def browser(profile: Path, shots: Path) -> Iterator[Browser]:
    """A running chromium, ended with the block; its profile goes to a folder of the test's."""
    assert CHROMIUM is not None
    words = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    words += ["--window-size=1600,1400", "--hide-scrollbars", "--remote-debugging-port=0"]
    words += ["--disable-features=IsolateSandboxedIframes"]  # so that a framed report can be read
    process = subprocess.Popen(
        [CHROMIUM, *words, f"--user-data-dir={profile}", "about:blank"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        told = profile / "DevToolsActivePort"
        for _ in waiting("chromium's start", every=0.1):
            if told.exists() and "\n" in told.read_text():
                break
            assert process.poll() is None, "chromium ended at once"
        shots.mkdir(parents=True, exist_ok=True)
        yield Browser(int(told.read_text().split()[0]), shots)
    finally:
        process.terminate()
        process.wait()
