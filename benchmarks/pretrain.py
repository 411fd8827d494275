"""Pre-training: the loop, its input and its start, each against a common alternative.

Run it with the project installed: `python benchmarks/pretrain.py` (some minutes on two
cores). The two sides alternate in one process; figures are medians. Ends with one line of JSON:

- loop_vs_bare: processor time of a step of a minimal PyTorch loop over images in memory, over that
  of a run's update; steps alternate, with the same model (timm's ResNet-18), batch, optimizer and
  precision. Both start from bytes; `_floats`: the bare loop's images are normalised beforehand.
  `_small`: a ResNet-18 with few channels, where the loop's own cost has the largest share.
- input_vs_dataloader: processor time of an image by a torch DataLoader over the same JPEGs as an
  ImageFolder, with torchvision's RandomResizedCrop, flip, ToTensor and Normalize, over that from
  shards (after a first epoch, which also checks them), augmented and normalised; both with the same
  number of processes, children included. `_uint8`: the DataLoader applies ToTensor and Normalize to
  whole batches, as the loop does, and not to each image.
- `_wall`: the same two by wall time, which on a shared machine also measures other processes.
- data_wait_share: the share of an epoch's time after its first batch in which training waits for
  streamed batches, when a step takes three times as long as decoding its images.
- first_step_s: from the start of a run in the stage until its first update, with Ray already up;
  five_levels_vs_one: wall time of five such runs, side by side, over that of one.
- five_levels_vs_five_runs_...: see `pretrain_cohort.py`.

On a GPU: `gpu.py`.
"""

from __future__ import annotations

import json
import os
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from pretrain_cohort import five_levels_vs_five_runs
from spent import Spent
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from jobs.contract import Hooks, Outcome, Work
from jobs.corpus.shards import Index
from jobs.images.augment import augment, draws
from jobs.images.pixels import normalise, to_input, unit_range
from jobs.images.spec import Augment, ImageInput
from jobs.pretrain.data.noisy import NoisyRows
from jobs.pretrain.data.streamed import StreamedSource
from jobs.pretrain.distributed import DistributedGroup
from jobs.pretrain.loop import Pace, Watch
from jobs.pretrain.run import train_run
from jobs.pretrain.spec import Resources
from jobs.storage.folder import Folder
from synthetic_corpus import CLASSES, jpegs, work, write_corpus

REPEATS = 5
PROCESSES = 2

SMALL = ImageInput(size=32)
CROPPED = ImageInput(size=224)
CROP = Augment(crop=(0.08, 1.0), crop_interpolation="bilinear", flip=True)
SMALL_MODEL = {"channels": [16, 32, 64, 96]}


def middle(times: Sequence[Spent]) -> Spent:
    return Spent(median(each.wall for each in times), median(each.cpu for each in times))


# -- corpora ---------------------------------------------------------------------------------------


# -- the loop --------------------------------------------------------------------------------------


class Bare:
    """A minimal training loop over images in memory, as bytes or as normalised floats."""

    def __init__(self, model_options: dict[str, Any], batch: int, steps: int, floats: bool) -> None:
        self._images = torch.randint(0, 256, (steps * batch, 3, SMALL.size, SMALL.size)).byte()
        if floats:
            self._images = normalise(unit_range(self._images), SMALL)
        self._labels = torch.randint(0, CLASSES, (len(self._images),))
        self._rows = iter(torch.randperm(len(self._images)).split(batch))
        self._model = timm.create_model("resnet18", num_classes=CLASSES, **model_options).train()
        self._optimizer = torch.optim.AdamW(self._model.parameters(), lr=1e-3, fused=True)
        mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in (SMALL.mean, SMALL.std))
        self._shift, self._scale = 255 * mean, 1 / (255 * std)

    def step(self) -> Spent:
        """The time of one step."""
        begun = Spent.now()
        rows = next(self._rows)
        images = self._images[rows]
        if images.dtype == torch.uint8:
            images = (images.float() - self._shift) * self._scale
        self._optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(self._model(images), self._labels[rows]).backward()
        self._optimizer.step()
        return Spent.now().since(begun)


def against_bare(one: Work, bares: Sequence[Bare]) -> list[Spent]:
    """For each bare loop, its median step over that of a run; steps alternate.

    They alternate because the speed of a shared machine changes from minute to minute.
    """
    ours: list[Spent] = []
    theirs: list[list[Spent]] = [[] for _ in bares]
    left = Spent.now()

    def on_progress(share: float, message: str) -> None:
        nonlocal left
        if share > 0:
            ours.append(Spent.now().since(left))
            for bare, steps in zip(bares, theirs, strict=True):
                steps.append(bare.step())
        left = Spent.now()

    train_run(one, watch=Watch(on_progress=on_progress), pace=Pace(minutes=60, time_share=0))
    run, *loops = (middle(steps[4:]) for steps in (ours, *theirs))  # without the warm-up steps
    for loop in loops:
        print(f"  an update: {run}, a bare step: {loop}", flush=True)
    return [Spent(loop.wall / run.wall, loop.cpu / run.cpu) for loop in loops]


def loop_vs_bare(root: Path) -> dict[str, float]:
    """One thread, because the threads of the two sides would disturb each other."""
    batch, steps = 64, 34
    write_corpus(root, list(jpegs(steps * batch, 32, 32, 90)), 2_000)
    found: dict[str, float] = {}
    torch.set_num_threads(1)
    for tail, options in (("", {}), ("_small", SMALL_MODEL)):
        fields = {
            "model_options": options,
            "image": SMALL,
            "schedule": {"epochs": 1, "batch_size": batch, "lr": 1e-3},
        }
        one = work(root, f"loop{tail}", "resnet18", fields, Resources(cpus_per_worker=1))
        bares = [Bare(options, batch, steps, floats) for floats in (False, True)]
        for kind, ratio in zip(("", "_floats"), against_bare(one, bares), strict=True):
            found[f"loop_vs_bare{tail}{kind}"] = ratio.cpu
            found[f"loop_vs_bare{tail}{kind}_wall"] = ratio.wall
    torch.set_num_threads(PROCESSES)
    return found


# -- the input -------------------------------------------------------------------------------------


def source(root: Path, batch: int, processes: int = PROCESSES) -> StreamedSource:
    corpus = Folder.of(root / "corpus")
    index = Index.read(corpus)

    def encode(part: Any, values: Any) -> torch.Tensor:
        return torch.from_numpy(values.to_numpy().astype("int64"))

    return StreamedSource(
        corpus,
        index,
        NoisyRows(Folder.of(root / "noise-label"), index.rows("train"), "label", encode),
        field="label",
        encode=encode,
        model_input=CROPPED,
        augment=CROP,
        seed=0,
        batch_size=batch,
        processes=processes,
    )


def ready(batch: Any, room: torch.Tensor | None) -> torch.Tensor:
    """A streamed batch as the loop passes it to the model; `room`: the previous one's memory."""
    return to_input(augment(batch.images, CROP, draws(batch.hashes)), CROPPED, room)


def streamed(shards: StreamedSource, epoch: int) -> Spent:
    """The time of an epoch's input from shards."""
    begun, room = Spent.now(), None
    for each in shards.batches(epoch, 0, DistributedGroup()):
        room = ready(each, room)
    return Spent.now().since(begun)


def dataloader(root: Path, batch: int, by_batch: bool) -> Spent:
    """The time of an epoch's input by torch's DataLoader and torchvision."""
    steps: list[Any] = [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip()]
    if by_batch:
        steps += [transforms.PILToTensor()]
    else:
        steps += [transforms.ToTensor(), transforms.Normalize(CROPPED.mean, CROPPED.std)]
    folder = ImageFolder(str(root / "tree"), transforms.Compose(steps))
    begun = Spent.now()
    loader = DataLoader(folder, batch, shuffle=True, num_workers=PROCESSES, drop_last=True)
    for images, _ in loader:
        if by_batch:
            normalise(unit_range(images), CROPPED)
    return Spent.now().since(begun)


def input_vs_dataloader(root: Path) -> dict[str, float]:
    """One thread in this process, because the decoding processes use the cores."""
    batch, count = 64, 1_024
    torch.set_num_threads(1)
    images = list(jpegs(count, 400, 300, 92))
    print(f"  {count} JPEGs of {np.mean([len(i) for i in images]) / 1e3:.0f} kB", flush=True)
    write_corpus(root, images, 500, folders=True)
    ratios: dict[str, list[float]] = {}
    shards = source(root, batch)
    streamed(shards, 0)  # the first epoch checks the shards' sha256 as well
    for turn in range(REPEATS):
        ours = streamed(shards, 1 + turn)
        for tail, by_batch in (("", False), ("_uint8", True)):
            theirs = dataloader(root, batch, by_batch)
            ratios.setdefault(tail, []).append(theirs.cpu / ours.cpu)
            ratios.setdefault(f"{tail}_wall", []).append(theirs.wall / ours.wall)
            print(
                f"  an image from shards {per_image(ours, count)}, "
                f"DataLoader{tail} {per_image(theirs, count)}",
                flush=True,
            )
    torch.set_num_threads(PROCESSES)
    return {f"input_vs_dataloader{tail}": median(found) for tail, found in ratios.items()}


def per_image(spent: Spent, count: int) -> Spent:
    return Spent(spent.wall / count, spent.cpu / count)


def data_wait_share(root: Path) -> dict[str, float]:
    """The wait for streamed batches of 32, when a step takes three times as long as decoding."""
    batch = 32
    shards = source(root, batch)
    step_seconds = 3 * streamed(shards, 0).wall / shards.steps_per_epoch
    batches = source(root, batch, processes=1).batches(0, 0, DistributedGroup())
    next(batches)
    waited, begun = 0.0, time.perf_counter()
    for _ in range(16):
        time.sleep(step_seconds)  # stands for a GPU step: it leaves the cores to the input
        asked = time.perf_counter()
        next(batches)
        waited += time.perf_counter() - asked
    return {"data_wait_share": waited / (time.perf_counter() - begun)}


# -- the start -------------------------------------------------------------------------------------


def stage_seconds(root: Path, levels: int, turn: int) -> tuple[float, float]:
    """Seconds that the stage takes for some runs: to the first update, and to the end."""
    from jobs.pretrain import job

    fields = {
        "model_options": SMALL_MODEL,
        "image": SMALL,
        "schedule": {"epochs": 2, "batch_size": 128, "lr": 1e-3},
    }
    works = [
        work(root, f"stage-{turn}-{levels}-{i}", "resnet18", fields, Resources())
        for i in range(levels)
    ]
    first: list[float] = []
    errors: list[BaseException] = []
    lock = threading.Lock()

    def say(address: str, share: float, words: str) -> None:
        with lock:
            if share > 0:
                first.append(time.perf_counter())

    def done(address: str, result: Outcome | BaseException) -> None:
        if isinstance(result, BaseException):
            errors.append(result)

    begun = time.perf_counter()
    job.run(works, Hooks(done, say, lambda: False))
    if errors:
        raise errors[0]
    return first[0] - begun, time.perf_counter() - begun


def start(root: Path) -> dict[str, float]:
    from orchestrator import cluster

    with cluster.session(cpus=os.cpu_count()):
        firsts, ratios = [], []
        for turn in range(REPEATS):
            first, one = stage_seconds(root, 1, turn)
            _, five = stage_seconds(root, 5, turn)
            firsts.append(first)
            ratios.append(five / one)
            print(f"  first step {first:.1f} s, one {one:.1f} s, five {five:.1f} s", flush=True)
    return {"first_step_s": median(firsts), "five_levels_vs_one": median(ratios)}


def main() -> None:
    torch.set_num_threads(PROCESSES)
    result: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        small, large = Path(name) / "small", Path(name) / "large"
        result |= loop_vs_bare(small)
        result |= input_vs_dataloader(large)
        result |= data_wait_share(large)
        result |= start(small)
        result |= five_levels_vs_five_runs(Path(name) / "cohort")
    print(json.dumps({name: round(value, 4) for name, value in result.items()}))


if __name__ == "__main__":
    main()
