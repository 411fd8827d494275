"""Files of finished steps that have changed: no result comes from one, and the way out works."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from commands import TINY, UNTRACKED, Run
from jobs.storage.folder import Folder
from stores import copy, digests, finished, table

RUN, CELLS = "digits/symmetric/resnet-small/noise={0}/seed=0", "fraction=100/seed=0"
OVERLAY = "noise/digits/symmetric/draw=0/level=20"
ENCODER = f"pretrain/{RUN.format(0)}"
FEATURES = f"features/{RUN.format(20)}/digits"
HEAD = f"tune/{RUN.format(0)}/digits/nmtune-released/{CELLS}"


def keep_times(path: Path, change: Callable[[Path], None]) -> None:
    """Change a file in place and leave its size and times as they were, as a bad disk does."""
    before = path.stat()
    change(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def shift_labels(path: Path) -> None:
    """Move the noisy labels by a row; the file stays a valid overlay."""
    rows = pq.read_table(path)
    noisy = rows["noisy"].combine_chunks()
    moved = pa.concat_arrays([noisy[1:], noisy[:1]])
    at = rows.column_names.index("noisy")
    pq.write_table(rows.set_column(at, rows.schema.field("noisy"), moved), path)


def reverse_labels(path: Path) -> None:
    """Reverse the labels of a shard or of features; the file stays valid."""
    rows = pq.read_table(path)
    at = rows.column_names.index("label")
    back = rows["label"].combine_chunks()[::-1]
    pq.write_table(rows.set_column(at, rows.schema.field("label"), back), path)


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.slow
def test_every_reader_refuses_a_changed_input_and_redoing_its_step_heals_the_store(
    undisturbed: Path, run_on_ray: Run, tmp_path: Path
) -> None:
    without = [
        f"pretrain/{RUN.format(20)}",
        f"features/{RUN.format(0)}/digits",
        f"tune/{RUN.format(20)}/digits/lp/{CELLS}",
        f"tune/{RUN.format(0)}/digits-rotated/nmtune-released/{CELLS}",
    ]
    folder = copy(undisturbed, tmp_path, *without)
    store = folder / "nml-store"
    before = digests(Folder.of(undisturbed / "nml-store"))
    keep_times(store / OVERLAY / "changed.parquet", shift_labels)  # read by pre-training
    keep_times(store / ENCODER / "model.safetensors", flip_a_bit)  # by the features
    keep_times(store / FEATURES / "features-test.parquet", reverse_labels)  # by an ID cell
    keep_times(store / HEAD / "head.safetensors", flip_a_bit)  # by an OOD cell
    code, output = run_on_ray(folder, "sweep", *TINY, *UNTRACKED)
    assert code == 2, output  # the report reads the overlay too
    assert f"no report: changed.parquet of {OVERLAY} is not the file" in output
    assert "failed   pretrain/" in output
    for address, name in (
        (OVERLAY, "changed.parquet"),
        (ENCODER, "model.safetensors"),
        (FEATURES, "features-test.parquet"),
        (HEAD, "head.safetensors"),
    ):
        assert f"{name} of {address} is not the file that the step wrote" in output
        assert f"--redo {address}" in output
    assert "Traceback" not in output
    assert not any((store / address / "manifest.json").exists() for address in without[1:])

    # One file is put back, three steps are done again. Nothing is trained anew, which takes long.
    whole = undisturbed / "nml-store"
    shutil.copyfile(whole / ENCODER / "model.safetensors", store / ENCODER / "model.safetensors")
    shutil.copytree(whole / without[0], store / without[0], dirs_exist_ok=True)
    untouched = finished(folder)
    redo = [w for a in (OVERLAY, FEATURES, HEAD) for w in ("--redo", a)]
    code, output = run_on_ray(folder, "sweep", *TINY, *UNTRACKED, *redo)
    assert code == 0, output
    assert digests(Folder.of(store)) == before
    assert table(folder) == table(undisturbed)
    now = finished(folder)
    changed = {address for address in untouched if now[address] != untouched[address]}
    assert changed == {OVERLAY, FEATURES, HEAD}  # equal files again: readers are kept
