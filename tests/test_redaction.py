"""No key is shown or stored, wherever it comes from."""

from __future__ import annotations

from pathlib import Path

import pytest

from commands import in_process
from jobs import redaction
from jobs.contract import Failure, StageError
from jobs.redaction import keep_secret, redact
from orchestrator.store import provenance


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redaction, "_VALUES", set())


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("Authorization: Bearer sk-abc123", "Authorization: Bearer ***"),
        ("{'authorization': 'Bearer sk-abc123'}", "{'authorization': 'Bearer ***'}"),
        ("Authorization: Basic-sk-abc123", "Authorization: ***"),
        ("x-api-key: sk-abc123, host: h", "x-api-key: ***, host: h"),
        ('"api-key": "sk-abc123"}', '"api-key": "***"}'),
        ("OPENAI_API_KEY=sk-abc123 nml-orch sweep", "OPENAI_API_KEY=*** nml-orch sweep"),
        ("VOYAGE_KEY='sk-abc123'", "VOYAGE_KEY='***'"),
        ("tuning.methods.lp.space.lr=0.1", "tuning.methods.lp.space.lr=0.1"),
        ("key_env: OPENAI_API_KEY", "key_env: OPENAI_API_KEY"),
        ("no key is in the key column (api key)", "no key is in the key column (api key)"),
    ],
)
def test_what_is_named_as_a_key_is_hidden(said: str, kept: str) -> None:
    assert redact(said) == kept
    assert provenance.redact(said) == kept
    assert redact(redact(said)) == kept


def test_a_registered_value_is_hidden_wherever_it_stands() -> None:
    keep_secret('pl4n"ted/value')
    for text in ('echo: pl4n"ted/value!', r'"pl4n\"ted/value"', "?q=pl4n%22ted%2Fvalue"):
        assert "pl4n" not in redact(text)


def test_a_short_value_is_no_secret() -> None:
    keep_secret("a")
    assert redact("a banana") == "a banana"


def test_a_failure_between_processes_has_no_key() -> None:
    keep_secret("planted-7f3")
    try:
        try:
            raise RuntimeError("planted-7f3 in the cause")
        except RuntimeError as cause:
            raise StageError("the server said planted-7f3") from cause
    except StageError as error:
        failure = Failure.of(error)
    assert "planted-7f3" not in failure.as_json()
    assert failure.sentence == "the server said ***"


def test_a_key_written_into_the_file_by_mistake_is_not_shown(tmp_path: Path) -> None:
    for line, words in (
        ("key_env: sk-planted-9a", "key_env: must be the name of an environment variable"),
        ("extra: {api_key: sk-planted-9a}", "looks like a key"),
        ("base_url: https://me:sk-planted-9a@h/v1", "has a user, a password"),
    ):
        given = {"name": "ada", "kind": "api", "base_url": "https://h/v1", "model": "m"}
        name, _, value = line.partition(": ")
        fields = ", ".join(f"{n}: {v!r}" for n, v in given.items() if n != name)
        (tmp_path / "my.yaml").write_text(
            f"name: mine\nencoders: [{{{fields}, {name}: {value}}}]\ntasks: [remarks-films]\n"
            f"tuning: {{methods: {{lp: {{head: linear, space: {{lr: 0.01}}}}}}}}\n"
        )
        code, printed = in_process(tmp_path, "plan", "my.yaml")
        assert code == 2
        assert words in printed
        assert "sk-planted-9a" not in printed, printed
