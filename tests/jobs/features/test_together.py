"""Encoders fed from one decoding: each has the bytes that it has alone, and fails alone."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from jobs.contract import StageError, Work
from jobs.corpus.form import IMAGES
from jobs.corpus.shards import Index, write_rows
from jobs.corpus.units import Unit, units_of
from jobs.encoders.encoder import EncoderCard
from jobs.encoders.image import ImageEncoder
from jobs.features import together
from jobs.features.groups import Job, Weight, groups, weights_of
from jobs.features.spec import FeaturesStep
from jobs.features.together import extract_unit
from jobs.images import shifts
from jobs.images.spec import Affine, Shift, Views
from jobs.storage.folder import Folder
from jobs.text.spec import TextInput
from tests.jobs.features.test_features_job import put_encoder

ROWS = 40
STEP = FeaturesStep(
    images="t", parts=("train", "test"), views=Views(count=1, augment=Affine(translate=0.1))
)


def png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 20), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def put_corpus(folder: Folder) -> Folder:
    parts = {}
    for part in ("train", "validation", "test"):
        rows = pa.table(
            {
                "key": [f"{part}/{n:03d}" for n in range(ROWS)],
                "image": [png(n) for n in range(ROWS)],
                "label": pa.array([n % 10 for n in range(ROWS)], pa.int32()),
                "caption": pa.nulls(ROWS, pa.string()),
                "width": pa.array([20] * ROWS, pa.int32()),
                "height": pa.array([16] * ROWS, pa.int32()),
            },
            schema=IMAGES,
        )
        parts[part] = (write_rows(folder, f"{part}-00000.parquet", rows),)
    Index("t", tuple(map(str, range(10))), parts).write(folder)
    return folder


@pytest.fixture
def corpus(tmp_path: Path) -> Folder:
    return put_corpus(Folder.of(tmp_path / "corpus"))


def job(root: Path, name: str, encoder: Folder, corpus: Folder, step: FeaturesStep = STEP) -> Job:
    folder = Folder.of(root)
    inputs = {"encoder": encoder, "corpus": corpus}
    work = Work(name, "f", step, inputs, folder / "out" / name, folder / "scratch" / name)
    index = Index.read(corpus)
    return Job(work, step, index, units_of(index, step.parts))


@pytest.fixture
def encoders(tmp_path: Path) -> list[Folder]:
    return [put_encoder(Folder.of(tmp_path / f"encoder-{n}"), n) for n in range(3)]


def scratch(one: Job) -> dict[str, bytes]:
    return {name: one.work.scratch.read_bytes(name) for name, _ in one.work.scratch.files()}


def extract(jobs: Sequence[Job]) -> list[Exception | None]:
    """Extract all units for all jobs together; each job's first error."""
    errors: list[Exception | None] = [None] * len(jobs)
    for unit in jobs[0].units:
        found = extract_unit(jobs, unit)
        errors = [first or now for first, now in zip(errors, found, strict=True)]
    return errors


def test_encoders_fed_together_write_the_bytes_of_each_alone_and_decode_once(
    tmp_path: Path, corpus: Folder, encoders: list[Folder]
) -> None:
    sizes = [STEP.model_copy(update={"batch_size": size}) for size in (32, 8, 32)]
    fed = [
        job(tmp_path / "together", f"{n}", encoder, corpus, step)
        for n, (encoder, step) in enumerate(zip(encoders, sizes, strict=True))
    ]
    with mock.patch.object(shifts, "decode", wraps=shifts.decode) as decode:
        assert extract(fed) == [None] * 3
    assert decode.call_count == 2 * ROWS
    for one in fed:
        alone = job(tmp_path / "alone", one.work.address, one.encoder, corpus, one.step)
        assert extract([alone]) == [None]
        assert scratch(one) == scratch(alone)
    assert len({scratch(one)["train-00000-000000000.parquet"] for one in fed}) == 3


def test_an_encoder_that_fails_leaves_the_others_their_features(
    tmp_path: Path, corpus: Folder, encoders: list[Folder]
) -> None:
    spoilt = put_encoder(Folder.of(tmp_path / "spoilt"), 7, spoilt=True)
    altered = put_encoder(Folder.of(tmp_path / "altered"), 8)
    altered.write_bytes("model.safetensors", b"not the weights")
    folders = [spoilt, altered, encoders[0]]
    jobs = [job(tmp_path, f"{n}", folder, corpus) for n, folder in enumerate(folders)]
    first, second, third = extract(jobs)
    assert "not finite" in str(first)
    assert "other sha256" in str(second)
    assert third is None
    assert [len(scratch(one)) for one in jobs] == [0, 0, 2]


def test_a_row_that_cannot_be_decoded_fails_every_step_that_reads_it(
    tmp_path: Path, corpus: Folder, encoders: list[Folder]
) -> None:
    jobs = [job(tmp_path, f"{n}", encoder, corpus) for n, encoder in enumerate(encoders)]
    rows = corpus.read_table("test-00000.parquet").to_pylist()
    rows[3]["image"] = b"no image"
    write_rows(corpus, "test-00000.parquet", pa.Table.from_pylist(rows, schema=IMAGES))
    errors = extract(jobs)
    assert all(isinstance(error, StageError) for error in errors)
    assert {"sample test/003" in str(error) for error in errors} == {True}


def test_a_resumed_step_redoes_only_what_it_lacks(
    tmp_path: Path, corpus: Folder, encoders: list[Folder]
) -> None:
    jobs = [job(tmp_path, f"{n}", encoder, corpus) for n, encoder in enumerate(encoders)]
    extract(jobs)
    before = [scratch(one) for one in jobs]
    jobs[1].work.scratch.delete(jobs[1].units[0].name)
    times = [marked(one, jobs[0].units[1]) for one in jobs]
    encoded: list[Any] = []
    inner = ImageEncoder.features

    def counting(self: ImageEncoder, *args: Any) -> torch.Tensor:
        encoded.append(self.card.weights_sha256)
        return inner(self, *args)

    with mock.patch.object(ImageEncoder, "features", counting):
        assert extract(jobs) == [None] * 3
    assert len(set(encoded)) == 1, "only the encoder whose unit is missing"
    assert [scratch(one) for one in jobs] == before
    assert [marked(one, jobs[0].units[1]) for one in jobs] == times
    with mock.patch.object(shifts, "decode", wraps=shifts.decode) as decode:
        extract(jobs)
    assert decode.call_count == 0


def marked(one: Job, unit: Unit) -> int:
    return (one.work.scratch.local_path() / unit.name).stat().st_mtime_ns


def test_too_little_memory_for_all_encoders_feeds_fewer_at_once(
    tmp_path: Path, corpus: Folder, encoders: list[Folder]
) -> None:
    jobs = [job(tmp_path / "a", f"{n}", encoder, corpus) for n, encoder in enumerate(encoders)]
    inner = ImageEncoder.features

    def crowded(self: ImageEncoder, *args: Any) -> torch.Tensor:
        if len(together._LOADED._encoders) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return inner(self, *args)

    with mock.patch.object(ImageEncoder, "features", crowded):
        assert extract(jobs) == [None] * 3
    plenty = [job(tmp_path / "b", f"{n}", encoder, corpus) for n, encoder in enumerate(encoders)]
    assert extract(plenty) == [None] * 3
    assert [scratch(one) for one in jobs] == [scratch(one) for one in plenty]


# -- groups ----------------------------------------------------------------------------------------


def numbers(jobs: Sequence[Job], processes: int = 1, memory: float = 1e12) -> list[list[int]]:
    return groups(jobs, weights_of(jobs), processes, memory)


def test_encoders_with_one_image_input_over_the_same_rows_are_fed_together(
    tmp_path: Path, corpus: Folder, encoders: list[Folder]
) -> None:
    inverted = STEP.model_copy(update={"parts": ("test",), "shift": Shift(kind="invert")})
    jobs = [job(tmp_path, f"a{n}", encoder, corpus) for n, encoder in enumerate(encoders)]
    jobs += [
        job(tmp_path, f"b{n}", encoder, corpus, inverted) for n, encoder in enumerate(encoders)
    ]
    jobs.append(job(tmp_path, "none", Folder.of(tmp_path / "nowhere"), corpus))
    assert numbers(jobs) == [[0, 1, 2], [3, 4, 5], [6]]
    assert [n for group in numbers(jobs, processes=40) for n in group] == list(range(7))


def test_few_units_are_spread_over_the_processes(
    tmp_path: Path, corpus: Folder, encoders: list[Folder]
) -> None:
    jobs = [job(tmp_path, f"{n}", encoder, corpus) for n, encoder in enumerate(encoders * 2)]
    assert [len(jobs[0].units), *map(len, numbers(jobs, processes=1))] == [2, 6]
    assert [len(group) for group in numbers(jobs, processes=2)] == [3, 3]
    assert [len(group) for group in numbers(jobs, processes=100)] == [1] * 6


def test_memory_limits_the_encoders_that_are_fed_together(
    tmp_path: Path, corpus: Folder, encoders: list[Folder]
) -> None:
    jobs = [job(tmp_path, f"{n}", encoder, corpus) for n, encoder in enumerate(encoders)]
    sizes = [Weight("one", size) for size in (3, 3, 9)]
    assert groups(jobs, sizes, 1, 6) == [[0, 1], [2]]
    assert groups(jobs, sizes, 1, 15) == [[0, 1, 2]]


def test_only_what_changes_pixels_keeps_encoders_apart(encoders: list[Folder]) -> None:
    card = EncoderCard.read(encoders[0])

    def preparation(**changes: Any) -> str | None:
        image = card.input.model_copy(update=changes)
        return dataclasses.replace(card, input=image).preparation

    assert preparation(mean=(0.1,), std=(0.2,)) == card.preparation
    for change in ({"size": 32}, {"crop_pct": 0.9}, {"interpolation": "bicubic"}):
        assert preparation(**change) != card.preparation
    text_input = TextInput(max_length=8, pooling="mean", tokenizer_sha256="0")
    text = dataclasses.replace(card, input=text_input)
    assert text.preparation is None
