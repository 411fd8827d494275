"""How and where a step was made. Its manifest records this; it never changes a fingerprint."""

from __future__ import annotations

import functools
import os
import platform
import re
import socket
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from jobs import INSTRUCTION_SETS, redaction
from orchestrator import HOME

PACKAGES = (
    "nml-orch",
    "ray",
    "torch",
    "torchvision",
    "timm",
    "open_clip_torch",
    "mlflow",
    "pyarrow",
    "numpy",
    "scikit-learn",
    "safetensors",
)

_CREDENTIALS = re.compile(
    r"(?<=://)[^/@\s]+(?=@)"  # user and password
    r"|(?<=[?&])([\w.-]*(?:token|secret|passw|signature|credential|key)[\w.-]*=)[^&\s'\"]+",
    re.IGNORECASE,
)


def redact(text: str) -> str:
    """The text, without the user, password and query tokens of the URIs in it, and without keys."""
    return _CREDENTIALS.sub(lambda found: f"{found[1] or ''}***", redaction.redact(text))


def now() -> str:
    """The current time, UTC, ISO 8601 to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@functools.cache
def environment() -> dict[str, Any]:
    """Versions, source commit, command, host and CPU of this process.

    `instruction_set` is the newest CPU instruction set that oneDNN may use, as set for the sweep.
    """
    commit, dirty = _source()
    return {
        "versions": versions(),
        "python": platform.python_version(),
        "commit": commit,
        "dirty": dirty,
        "argv": [redact(word) for word in [Path(sys.argv[0]).name, *sys.argv[1:]]],
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "cpu": cpu(),
        "instruction_set": next(
            (os.environ[name] for name in INSTRUCTION_SETS if name in os.environ), None
        ),
    }


@functools.cache
def versions() -> dict[str, str]:
    """Installed versions of the packages that can change results, without absent ones."""
    found: dict[str, str] = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def cpu() -> str:
    """The processor's name, if the system gives one."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def _source() -> tuple[str | None, bool | None]:
    """Commit of the checkout that this code runs from, and whether it has changes; else None.

    `NML_COMMIT` has both for a submitted sweep, which runs from a copy.
    """
    submitted = os.environ.get("NML_COMMIT")
    if submitted:
        return submitted.removesuffix("+changes"), submitted.endswith("+changes")
    if not (HOME / ".git").exists():
        return None, None
    try:
        commit, status = (
            subprocess.run(
                ["git", "-C", str(HOME), *command],
                capture_output=True,
                text=True,
                check=True,
                timeout=10,
            ).stdout.strip()
            for command in (
                ["rev-parse", "HEAD"],
                ["status", "--porcelain", "--untracked-files=no"],
            )
        )
    except (OSError, subprocess.SubprocessError):
        return None, None
    return commit, bool(status)
