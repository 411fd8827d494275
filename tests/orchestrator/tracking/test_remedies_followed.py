"""What a message about MLflow's address and database tells its user to do works when it is done."""

import re
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from commands import Run
from orchestrator.errors import TrackingError, UserError
from orchestrator.tracking import sqlite
from orchestrator.tracking.server import resolve_uri


@pytest.mark.parametrize("uri", ["localhost:5000", "http://", "htp://host:5000", "http://host:x"])
@pytest.mark.parametrize("field", ["tracking.uri", "--uri", "MLFLOW_TRACKING_URI"])
def test_an_address_like_the_one_that_is_given_works(
    uri: str, field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(UserError, match=f"^{re.escape(field)} = ") as caught:
        resolve_uri(None if field.isupper() else uri, field)
    found = re.search(r"give one like (?P<meant>\S+)$", str(caught.value))
    assert found is not None
    assert resolve_uri(found["meant"].replace("HOST", "host")) == "http://host:5000"


def test_the_option_of_a_page_is_named_as_it_was_given(tmp_path: Path, run: Run) -> None:
    code, message = run(tmp_path, "ui", "--uri", "localhost:5000")
    assert code == 2
    assert message.startswith("nml-orch: --uri = localhost:5000: is no address")


def test_a_file_that_is_no_database_is_moved_away_or_another_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    for content in (b"text", b"SQLite format 3\0" + bytes(200)):
        path.write_bytes(content)
        with pytest.raises(
            TrackingError, match=r"move it away, or name another with --set tracking\.uri=URI"
        ):
            sqlite.check(path)
        sqlite.check(tmp_path / "other.db")
        path.rename(tmp_path / "kept")
        sqlite.check(path)


def test_a_database_is_free_when_the_other_program_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "LOCKED_SECONDS", 0.01)
    path = tmp_path / "mlflow.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("CREATE TABLE a (b)")
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(TrackingError, match="is locked by another program; end that program"):
            sqlite.check(path)
    sqlite.check(path)


def test_a_folder_in_place_of_a_database_is_corrected(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    path.mkdir()
    with pytest.raises(TrackingError, match=r"cannot be opened .*; correct that, or name"):
        sqlite.check(path)
    path.rmdir()
    sqlite.check(path)
