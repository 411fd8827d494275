"""`submit` refuses mistakes before it sends anything."""

from pathlib import Path

import pytest

from commands import free_port
from orchestrator.cli import _run


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--noise", "0,10"], "--storage"),
        (["--noise", "0,x", "--storage", "s3://b/n"], "'x' is not a number"),
        (["nosuch.yaml", "--storage", "s3://b/n"], "no such experiment file"),
        (["--tasks-path", "nowhere", "--storage", "s3://b/n"], "nowhere"),
        (["--attach", "a", "--stop", "b"], "--attach, --stop and --list"),
    ],
)
def test_a_mistake_costs_nothing(
    words: list[str], expected: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(["submit", *words]) == 2
    assert expected in capsys.readouterr().err


def test_a_file_outside_the_folder_that_is_sent_is_refused(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path_factory.mktemp("elsewhere") / "my.yaml"
    file.write_text("name: mine\n")
    assert _run(["submit", str(file), "--storage", "s3://b/n"]) == 2
    assert "inside this folder" in capsys.readouterr().err


def test_an_extension_outside_the_folder_that_is_sent_is_refused(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path_factory.mktemp("elsewhere") / "mine.py"
    file.write_text("")
    assert _run(["submit", "--extension", str(file), "--storage", "s3://b/n"]) == 2
    error = capsys.readouterr().err
    assert str(file) in error
    assert "inside this folder" in error


def test_a_cluster_that_does_not_answer_is_named_with_a_remedy(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    address = f"http://127.0.0.1:{free_port()}"
    words = ["--address", address, "--noise", "0", "--data", ".", "--storage", "s3://b/n"]
    assert _run(["submit", *words]) == 2
    error = capsys.readouterr().err
    assert address in error
    assert "ray dashboard" in error
