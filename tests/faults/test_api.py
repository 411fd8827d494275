"""A sweep that is killed while it buys from an API: nothing is lost, little is paid twice."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from commands import UNTRACKED, Run, Start
from embedding_server import serving
from planted import command_lines

pytestmark = [pytest.mark.slow, pytest.mark.faults]

KEY = "planted-api-key-2d7"
ROWS, SLOTS, TEXTS = 10, 4, 1600
FILE = """
name: remarks
encoders:
  - {{name: ada, kind: api, base_url: "{url}", model: text-embedding-ada-002, key_env: MY_API_KEY,
     batch_rows: {rows}, concurrency: {slots}}}
tasks: [remarks-films, remarks-kitchen]
tuning:
  configurations: 1
  epochs: 1
  seeds: [0]
  fractions: [50]
  methods:
    lp: {{head: linear, space: {{lr: 0.01}}}}
"""


def test_a_killed_sweep_pays_again_only_for_what_was_in_flight(
    start: Start, run_on_ray: Run, tmp_path: Path
) -> None:
    words = ["sweep", "my.yaml", *UNTRACKED]
    with serving() as stub:
        text = FILE.format(url=stub.url, rows=ROWS, slots=SLOTS)
        (tmp_path / "my.yaml").write_text(text)
        stub.delay = 0.2
        command = start(tmp_path, *words, MY_API_KEY=KEY)
        command.wait_until(lambda: len(stub.sold) >= 0.3 * TEXTS, "30 % of the texts", every=0.01)
        lines = command_lines(command)
        os.kill(command.process.pid, signal.SIGKILL)
        command.finish()
        stub.delay = 0.0
        code, output = run_on_ray(tmp_path, *words, MY_API_KEY=KEY)
        assert code == 0, output
        canary = 1
        assert len(stub.sold) == TEXTS + canary
        assert sum(stub.sold.values()) <= TEXTS + 2 * canary + SLOTS * ROWS
    assert lines
    assert not any(KEY in line for line in lines)
    print(f"bought {sum(stub.sold.values())} for {len(stub.sold)} texts")
