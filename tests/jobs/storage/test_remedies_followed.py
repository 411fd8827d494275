"""What a message about files and addresses tells its user to do works when it is done."""

import hashlib
import json
import re
from pathlib import Path

import pytest

from jobs.committed import MANIFEST, Committed
from jobs.contract import StageError
from jobs.storage import s3
from jobs.storage.folder import Folder


@pytest.mark.parametrize(
    ("uri", "remedy", "right"),
    [
        ("s3://b/a?regoin=x&region=y", r"remove (?P<meant>\w+)$", "s3://b/a?region=y"),
        (
            "s3://me:word@b/a",
            r"give them by (?P<meant>AWS_ACCESS_KEY_ID) and AWS_SECRET_ACCESS_KEY",
            "s3://b/a",
        ),
    ],
)
def test_a_remedy_of_a_bucket_works(
    uri: str, remedy: str, right: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "_checking_first", False)
    with pytest.raises(ValueError, match=remedy) as caught:
        s3.open_s3(uri)
    found = re.search(remedy, str(caught.value))
    assert found is not None
    assert found["meant"] not in right
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "me")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "word")
    assert s3.open_s3(right)[1] == "b/a"


def test_a_file_of_a_step_is_put_back(tmp_path: Path) -> None:
    record = {"bytes": 5, "sha256": hashlib.sha256(b"whole").hexdigest()}
    manifest = json.dumps({"files": {"a": record}}).encode()
    folder = Folder.of(tmp_path)
    folder.write_bytes(MANIFEST, manifest)
    step = Committed(folder.uri, "corpus/c", hashlib.sha256(manifest).hexdigest())
    for damage in (b"other", b"more than whole", None):
        folder.write_bytes("a", damage) if damage else folder.delete("a")
        with pytest.raises(StageError, match="put the file back, or do the step again"):
            step.read_bytes("a")
        folder.write_bytes("a", b"whole")
        assert step.read_bytes("a") == b"whole"
