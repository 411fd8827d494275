"""Ray runs during a session and no longer."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]

LATE = """
from orchestrator import cluster
cluster.settings()
import ray
try:
    ray.put(1)
except Exception as error:
    print(type(error).__name__, ray.is_initialized())
"""


def test_a_call_outside_a_session_starts_no_ray() -> None:
    """A late thread makes such a call. Else Ray would start and delay the end of the process."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", LATE],
        env={**clean, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "RaySystemError False\n", done.stderr
