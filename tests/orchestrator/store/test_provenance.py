"""What a manifest records of the code that made a step."""

import re
import subprocess

import pytest

from nml_orch import HOME
from orchestrator.store.provenance import environment


@pytest.mark.skipif(not (HOME / ".git").exists(), reason="not a checkout")
def test_the_commit_of_the_checkout_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NML_COMMIT", raising=False)
    environment.cache_clear()
    head = subprocess.run(
        ["git", "-C", str(HOME), "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    )
    assert environment()["commit"] == head.stdout.strip()
    assert re.fullmatch("[0-9a-f]{40}", environment()["commit"])


def test_a_submitted_sweep_records_the_commit_it_was_sent_from(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NML_COMMIT", "abc+changes")
    environment.cache_clear()
    assert (environment()["commit"], environment()["dirty"]) == ("abc", True)
    environment.cache_clear()
