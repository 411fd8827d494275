"""What the message about test samples that are trained on tells its user to do works when done."""

import re
from pathlib import Path

import pytest

from jobs.contract import StageError
from jobs.overlap.compare import dropped
from jobs.overlap.hashes import CLASSES, read_classes
from jobs.overlap.spec import Choice, limit_of
from jobs.storage.folder import Folder
from tests.jobs.overlap.test_overlap import compared, encoded, hashed, photo


def compared_to_itself(folder: Path, choice: Choice, hashes: Folder) -> int:
    """How many test samples of a corpus have a copy in its training part."""
    return compared(folder, limit_of(choice), test=hashes, training=hashes).counts["overlap"]


@pytest.mark.parametrize("choice", ["drop", "allow"])
def test_a_refused_task_is_compared_with_the_choice_that_the_message_gives(
    tmp_path: Path, choice: Choice
) -> None:
    pictures = [encoded(photo(seed)) for seed in range(4)]
    test = {f"t{n}": picture for n, picture in enumerate(pictures)}
    hashes = hashed(tmp_path, train={"x": pictures[0]}, test=test)
    with pytest.raises(StageError) as caught:
        compared_to_itself(tmp_path, "refuse", hashes)
    found = re.search(rf"overlap: (?P<value>{choice})", str(caught.value))
    assert found is not None
    assert compared_to_itself(tmp_path, choice, hashes) == 1
    assert dropped(Folder.of(tmp_path / "out")).to_pylist() == ["t0"]


def test_damaged_classes_are_written_again_by_the_step_that_the_message_names(
    tmp_path: Path,
) -> None:
    store = tmp_path / "hashes"
    pictures = {f"t{n}": encoded(photo(n)) for n in range(2)}
    hashes = hashed(store, train=pictures, test=pictures)
    hashes.write_bytes(CLASSES, b"[")
    with pytest.raises(StageError) as caught:
        read_classes(hashes)
    found = re.search(r"with the same options and --redo (?P<address>\S+)$", str(caught.value))
    assert found is not None
    assert found["address"] == f"hashes/{Path(hashes.uri).name}"
    again = hashed(store, train=pictures, test=pictures)
    assert read_classes(again) == read_classes(hashes) != ()


def test_a_refused_task_is_compared_once_its_reader_is_corrected(tmp_path: Path) -> None:
    pictures = [encoded(photo(seed)) for seed in range(4)]
    test = {f"t{n}": picture for n, picture in enumerate(pictures)}
    with pytest.raises(StageError, match="correct its reader"):
        compared_to_itself(
            tmp_path, "refuse", hashed(tmp_path, train={"x": pictures[0]}, test=test)
        )
    del test["t0"]
    hashes = hashed(tmp_path / "again", train={"x": pictures[0]}, test=test)
    assert compared_to_itself(tmp_path, "refuse", hashes) == 0
