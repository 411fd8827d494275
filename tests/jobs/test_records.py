"""Every record of a stage, damaged in every way: it is read as it was, or told in one sentence."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import mutations
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobs import records
from jobs.contract import Failure, StageError
from jobs.corpus import build
from jobs.corpus.readers.source import Listing
from jobs.corpus.runs import PARTS
from jobs.corpus.shards import File, Index
from jobs.corpus.shrunk import Shrunk
from jobs.encoders.encoder import EncoderCard
from jobs.images.spec import ImageInput
from jobs.noise.overlay import Overlay
from jobs.pretrain import job
from jobs.pretrain.checkpoint import Checkpoints, Point, Position, Progress
from jobs.storage.folder import Folder
from jobs.tuning.finetune import cell as finetune
from jobs.tuning.finetune.train import BrokenStateError, State, history_of
from jobs.tuning.frozen.features import read_classes
from jobs.tuning.write import _HeadCard

SHA = "ab" * 32
CARD = EncoderCard(
    "timm", "resnet18", {"a": [1]}, ImageInput(size=8), ("a", "b"), 4, SHA, None, SHA
)
SCAN = {
    "runs": [{"name": "unit-000000.0", "rows": [3, 1, 1], "labels": [0, 1]}],
    "read": 6,
    "quarantined": {"no_label": 1},
    "notes": {},
    "examples": {"no_label": "a"},
    "shrunk": {"images": 1, "bytes_before": 90, "bytes_after": 40},
}
Read = Callable[[Folder], Any]

RECORDS: dict[str, tuple[str, Any, Read]] = {
    "the index of a corpus": (
        "_index.json",
        asdict(
            Index(
                "c",
                ("a", "b"),
                {part: (File(f"{part}-00000.parquet", 2, 90, SHA),) for part in PARTS},
                ("n01", "n02"),
                7,
                {"no_label": 1},
                {"odd": 2},
                {"reader": Listing(2, 90, SHA)},
                shrunk=Shrunk(1, 90, 40),
            )
        ),
        Index.read,
    ),
    "a unit's scan": ("u.json", SCAN, lambda f: records.read(f, "u.json", build.Scan, "redo it")),
    "an overlay": (
        "overlay.json",
        asdict(Overlay("symmetric", "label", 10.0, "corpus", 0, "c", 100, 100, 10, 10.0, 10.0)),
        Overlay.read,
    ),
    "an encoder's card": ("encoder.json", CARD.as_json(), EncoderCard.read),
    "class names": ("classes.json", ["a", "b"], read_classes),
    "a head's card": (
        "head.json",
        asdict(_HeadCard("linear", 4, ("a", "b"))),
        lambda f: records.read(f, "head.json", _HeadCard, "redo it"),
    ),
    "an adapter's card": (
        "adapter.json",
        asdict(finetune._AdapterCard(8, SHA, SHA)),
        lambda f: records.read(f, "adapter.json", finetune._AdapterCard, "redo it"),
    ),
    "the result of a run": (
        "result.json",
        {
            "counts": {"n": 1},
            "metrics": {"m": 0.5},
            "failure": asdict(Failure("bad", True, "", "")),
        },
        lambda f: records.read(f, "result.json", job._Result, "redo it"),
    ),
}


@pytest.mark.parametrize("name", RECORDS)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_record_is_told_in_one_sentence(
    name: str, tmp_path: Path, data: st.DataObject
) -> None:
    file, value, read = RECORDS[name]
    folder, path = Folder.of(tmp_path), tmp_path / file
    mutations.put(path, json.dumps(value).encode())
    whole = read(folder)
    mutations.put(path, data.draw(mutations.of(json.dumps(value).encode())))
    found: Any
    try:
        found = read(folder)
    except StageError as error:
        found = str(error)
    assert type(found) is type(whole) or mutations.is_a_sentence(found, path), found


@pytest.mark.parametrize("name", RECORDS)
def test_no_field_of_a_record_may_have_another_type(name: str, tmp_path: Path) -> None:
    file, value, read = RECORDS[name]
    for path in mutations.paths(value):
        if {"model_options", "source"} & set(path):  # any value may stand there
            continue
        for other in mutations.OTHER[:2]:
            (tmp_path / file).write_bytes(mutations.changed(value, path, other))
            with pytest.raises(StageError):
                read(Folder.of(tmp_path))
        if path and isinstance(path[-1], str):
            (tmp_path / file).write_bytes(mutations.doubled(value, path))
            with pytest.raises(StageError):
                read(Folder.of(tmp_path))


def test_an_absent_record_is_not_a_broken_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        records.read(Folder.of(tmp_path), "a.json", dict[str, int], "")
    assert records.find(Folder.of(tmp_path), "a.json", dict[str, int]) is None


def test_a_card_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    stored = CARD.as_json()
    stored["image"] = stored.pop("input")
    del stored["image"]["kind"]
    (tmp_path / "encoder.json").write_text(json.dumps(stored))
    assert EncoderCard.read(Folder.of(tmp_path)) == CARD


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    tmp_path: Path, data: st.DataObject
) -> None:
    path = tmp_path / "checkpoint-000000002.json"
    if not path.exists():
        _save_two(Folder.of(tmp_path))
    written = (tmp_path / "checkpoint-000000001.json").read_bytes()
    mutations.put(path, data.draw(mutations.of(written)))  # with the digest of the first
    found = Checkpoints(Folder.of(tmp_path)).latest()
    assert found is not None
    assert found.progress == PROGRESS


def test_the_newest_checkpoint_is_read(tmp_path: Path) -> None:
    _save_two(Folder.of(tmp_path))
    found = Checkpoints(Folder.of(tmp_path)).latest()
    assert found is not None
    assert found.progress == replace(PROGRESS, position=Position(0, 2, 2))


PROGRESS = Progress(Position(0, 1, 1), ((1.0, 2.0),), (Point("loss", 1, 0.5),), ((1.0, 0.1),))


def _save_two(folder: Folder) -> None:
    """Checkpoints after one and after two updates, with other weights."""
    checkpoints = Checkpoints(folder)
    for updates in (1, 2):
        model = torch.nn.Linear(2, 2)
        progress = replace(PROGRESS, position=Position(0, updates, updates))
        checkpoints.save(model, torch.optim.SGD(model.parameters()), progress)
        checkpoints.join()


@pytest.mark.parametrize("damage", [b"", b"x", b"\x02" + 7 * b"\0" + b"[]", 8 * b"\xff"])
def test_a_damaged_state_of_a_configuration_is_told_as_such(damage: bytes) -> None:
    for read in (State.read, history_of):
        with pytest.raises(BrokenStateError, match=r"delete the cell's folder in \.scratch"):
            read(damage)
