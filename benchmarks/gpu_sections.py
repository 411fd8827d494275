"""The sections of `gpu.py`: what each measures, in how many seconds, and with which packages.

A section is a generator of figures. Each is written as soon as it is yielded, so what was measured
before a failure is kept. The sizes are an H200's; a dry run has tiny ones.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import re
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

Figures = Iterator[dict[str, Any]]


@dataclass(frozen=True)
class Sizes:
    """What is measured."""

    device: str = "cuda"
    precision: str = "bf16"
    square: int = 8192  # side of a bare matrix product
    batch: int = 256  # images
    batches: int = 6  # that are different; others repeat them
    updates: int = 30
    warm_up: int = 10  # of these updates
    timm: tuple[str, dict[str, Any]] = ("resnet50", {})
    clips: tuple[tuple[str, dict[str, Any]], ...] = (("RN50", {}), ("ViT-B-16", {}))
    side: int = 224  # pixels
    cpus: int = 14
    heads: tuple[int, ...] = (8, 64)  # members of a stack
    dim: int = 512
    grams: tuple[tuple[int, int, int], ...] = ((1, 128, 512), (8, 128, 512), (64, 128, 512))
    grams += ((64, 128, 2048), (64, 256, 512))  # members, rows, dimensions
    repeats: int = 20
    rows: int = 512  # of an extraction
    compile: bool = True  # a CPU's compiler takes minutes


TINY_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 16, "width": 16, "heads": 2, "layers": 1},
}
DRY = Sizes(
    device="cpu",
    precision="fp32",
    square=64,
    batch=4,
    batches=2,
    updates=4,
    warm_up=1,
    timm=("resnet18", {"channels": [8, 8, 8, 8]}),
    clips=(("tiny", TINY_CLIP),),
    side=32,
    cpus=1,
    heads=(2,),
    dim=16,
    grams=((2, 12, 16),),
    repeats=2,
    rows=4,
    compile=False,
)


@dataclass(frozen=True)
class Section:
    """One part of the script."""

    measure: Callable[[Sizes], Figures]
    seconds: float
    packages: tuple[str, ...] = ()


def run_section(name: str, dry: bool, file: Path) -> None:
    """Append each of the section's figures to `file`, a line of JSON each."""
    import torch

    on_gpu = torch.cuda.is_available()
    sizes = DRY if dry else Sizes()
    if dry and on_gpu:
        sizes = replace(DRY, device="cuda", precision="bf16", compile=True)
    for figures in SECTIONS[name].measure(sizes):
        rounded = {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in figures.items()}
        print(json.dumps(rounded), flush=True)
        with file.open("a") as sink:
            sink.write(json.dumps(rounded) + "\n")
    if on_gpu:
        print(f"memory: {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB at most")


# -- timing ----------------------------------------------------------------------------------------


def wait(sizes: Sizes) -> None:
    import torch

    if sizes.device == "cuda":
        torch.cuda.synchronize()


def seconds_of(step: Callable[[], Any], sizes: Sizes, steps: int = 0, warm_up: int = 0) -> float:
    """Seconds of a step, when the GPU has all of them at once, as in training."""
    steps = steps or sizes.updates - sizes.warm_up
    for _ in range(warm_up or sizes.warm_up):
        step()
    wait(sizes)
    begun = time.perf_counter()
    for _ in range(steps):
        step()
    wait(sizes)
    return (time.perf_counter() - begun) / steps


@contextlib.contextmanager
def counted_waits(sizes: Sizes, owner: type, name: str) -> Iterator[list[str]]:
    """What calls of `owner.name` in the block make the host wait for, as torch sees it."""
    import torch

    found: list[str] = []
    inner = getattr(owner, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        if sizes.device != "cuda":
            return inner(*args, **kwargs)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                return inner(*args, **kwargs)
            finally:
                torch.cuda.set_sync_debug_mode("default")
                said = [str(each.message) for each in caught]
                found.extend(text for text in said if "synchronizing" in text)

    with mock.patch.object(owner, name, call):
        yield found


# -- the card --------------------------------------------------------------------------------------


def card(sizes: Sizes) -> Figures:
    """tflops_<type>: of a large square matrix product; copy_gb_per_s: read and written."""
    yield {f"tflops_{kind}": tflops(sizes, kind) for kind in ("bf16", "tf32", "fp32", "fp64")}
    import torch

    source = torch.empty(sizes.square**2 * 4, dtype=torch.uint8, device=sizes.device)
    target = torch.empty_like(source)
    seconds = seconds_of(lambda: target.copy_(source), sizes, sizes.repeats)
    yield {"copy_gb_per_s": 2 * source.numel() / seconds / 1e9}


def tflops(sizes: Sizes, kind: str) -> float:
    import torch

    types = {"bf16": torch.bfloat16, "fp64": torch.float64}
    side = sizes.square if kind in ("bf16", "tf32") else sizes.square // 2
    a = torch.randn(side, side, device=sizes.device).to(types.get(kind, torch.float32))
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = kind == "tf32"
    try:
        return 2 * side**3 / seconds_of(lambda: a @ a, sizes, 10, 3) / 1e12
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


# -- NMTune's SVD term, the stacked engine ---------------------------------------------------------


def svd(sizes: Sizes) -> Figures:
    """NMTune's SVD term, released form, forward and backward, by eigenvectors and by products.

    For K members of R x D: svd_<way>_ms_KxRxD; svd_products_speedup_KxRxD;
    svd_difference_KxRxD: the largest relative difference of a member's gradient;
    svd_unsettled_KxRxD: members whose products have not converged.
    """
    import torch

    from jobs.tuning import nmtune

    for members, rows, dims in sizes.grams:
        z = torch.randn(members, rows, dims, device=sizes.device) * torch.linspace(
            2, 0.1, dims, device=sizes.device
        )
        z.requires_grad_()
        unsettled: list[Any] = []

        def gradient(way: nmtune.Way, z: Any = z, found: Any = unsettled) -> Any:
            _, values = nmtune.spread(z, nmtune.RELEASED, cov=False, way=way, unsettled=found)
            return torch.autograd.grad(values.sum(), z)[0]

        tail = f"{members}x{rows}x{dims}"
        one, two = gradient("eigenvectors"), gradient("products")
        apart = (one - two).flatten(1).norm(dim=1) / one.flatten(1).norm(dim=1)
        yield {f"svd_difference_{tail}": apart.max().item()}
        yield {f"svd_unsettled_{tail}": int(unsettled[0].sum())}
        times = {
            way: 1e3 * seconds_of(partial(gradient, way), sizes, sizes.repeats, 3)
            for way in ("eigenvectors", "products")
        }
        yield {f"svd_{way}_ms_{tail}": value for way, value in times.items()}
        yield {f"svd_products_speedup_{tail}": times["eigenvectors"] / times["products"]}


def engine(sizes: Sizes) -> Figures:
    """The stacked engine with K members, nmtune on the paper's head, 128 rows.

    engine_ms_K: a step; nmtune_step_vs_mlp_K: over one without regularisers;
    nmtune_step_vs_mlp_K_eigenvectors: the same, with SVD by eigenvectors;
    stacked_vs_one_by_one_K: against the published form, one configuration after another, on the
    same card; matmul_ceiling_share_K: against a bare batched product of the same shapes;
    engine_waits: what steps make the host wait for (none is right).
    """
    import tuning

    from jobs.tuning import nmtune
    from jobs.tuning.frozen.stack import Stack

    steps = 20 if sizes.device == "cuda" else 2
    dim = sizes.dim
    for members in sizes.heads:

        def epoch(weight: float, members: int = members, **kept: Any) -> float:
            run = tuning.engine_epoch(dim, members, weight, steps, device=sizes.device, **kept)
            run()
            return median(run() for _ in range(3)) / steps

        nmtune_step, mlp = epoch(tuning.WEIGHT), epoch(0.0)
        yield {f"engine_ms_{members}": 1e3 * nmtune_step}
        yield {f"nmtune_step_vs_mlp_{members}": nmtune_step / mlp}
        with mock.patch.object(nmtune, "way_on", return_value="eigenvectors"):
            yield {f"nmtune_step_vs_mlp_{members}_eigenvectors": epoch(tuning.WEIGHT) / mlp}
        rate = tuning.product_rate(members, dim, sizes.device)
        flops = 5 * 2 * tuning.ROWS * dim * 4 * dim * members
        yield {f"matmul_ceiling_share_{members}": flops / nmtune_step / rate}
        yield {
            f"engine_bf16_speedup_{members}": nmtune_step / epoch(tuning.WEIGHT, precision="bf16")
        }
        one_by_one = tuning.published_epoch(dim, tuning.WEIGHT, steps, sizes.device)
        one_by_one()
        published = median(one_by_one() for _ in range(3)) / steps
        yield {f"stacked_vs_one_by_one_{members}": members * published / nmtune_step}
    with counted_waits(sizes, Stack, "_step") as found:
        tuning.engine_epoch(dim, sizes.heads[0], tuning.WEIGHT, steps, device=sizes.device)()
    yield {"engine_waits": len(found)}
    print(*sorted(set(found)), sep="\n")


# -- pre-training ----------------------------------------------------------------------------------


def plain_step(sizes: Sizes, model: Any, loss_of: Callable[[Any], Any]) -> tuple[float, float]:
    """Seconds of a minimal step of a model, and its floating-point operations."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    model.to(sizes.device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(sizes.device, torch.bfloat16, enabled=sizes.precision == "bf16"):
            loss = loss_of(model)
        loss.backward()
        optimizer.step()

    with FlopCounterMode(display=False) as counter:
        step()
    return seconds_of(step, sizes), float(counter.get_total_flops())


def pictures(sizes: Sizes) -> Any:
    """A batch on the device."""
    import torch

    images = torch.randn(sizes.batch, 3, sizes.side, sizes.side, device=sizes.device)
    return images.contiguous(memory_format=torch.channels_last)


def ours(
    sizes: Sizes,
    root: Path,
    name: str,
    model: str,
    fields: dict[str, Any],
    objective: str = "supervised",
    **resources: Any,
) -> float:
    """Seconds of an update of one of our runs; `fields`: of its recipe."""
    import torch

    from jobs.images.spec import ImageInput
    from jobs.pretrain.distributed import DistributedGroup
    from jobs.pretrain.loop import Pace, Watch
    from jobs.pretrain.run import train_run
    from jobs.pretrain.spec import Resources
    from synthetic_corpus import work

    schedule = {"epochs": sizes.updates // sizes.batches, "batch_size": sizes.batch, "lr": 1e-4}
    fields = {
        "image": ImageInput(size=sizes.side),
        "schedule": schedule | {"precision": sizes.precision},
    } | fields
    settings = {"cpus_per_worker": sizes.cpus, "channels_last": True} | resources
    one = work(root, name, model, fields, Resources.model_validate(settings), objective)
    times: list[float] = []
    updates = sizes.updates // sizes.batches * sizes.batches

    def on_progress(share: float, message: str) -> None:
        if share > 0:
            if len(times) + 1 in (sizes.warm_up, updates):
                wait(sizes)
            times.append(time.perf_counter())

    group = DistributedGroup(device=torch.device(sizes.device))
    train_run(one, group, Watch(on_progress=on_progress), Pace(minutes=60, time_share=0))
    return (times[updates - 1] - times[sizes.warm_up - 1]) / (updates - sizes.warm_up)


@contextlib.contextmanager
def corpus(sizes: Sizes, width: int, height: int) -> Iterator[Path]:
    """A corpus of JPEGs in a temporary folder."""
    from synthetic_corpus import jpegs, write_corpus

    with tempfile.TemporaryDirectory() as folder:
        images = list(jpegs(sizes.batches * sizes.batch, width, height, 92))
        write_corpus(Path(folder), images, 500)
        yield Path(folder)


def resnet(sizes: Sizes) -> Figures:
    """ResNet-50 in bf16, channels-last, on images in memory.

    images_per_s; vs_timm: over a minimal step of timm's model on tensors that are on the GPU;
    ceiling_share: floating-point operations a second, of forward and backward by torch's counter,
    over those of a large bf16 product; any_kernels_speedup: with `deterministic: false`;
    compile_speedup: that with torch.compile too, over without; loop_waits: what updates make the
    host wait for (none is right).
    """
    import timm
    import torch
    import torch.nn.functional as F

    from jobs.pretrain.loop import Loop
    from synthetic_corpus import CLASSES

    name, options = sizes.timm
    labels = torch.randint(0, CLASSES, (sizes.batch,), device=sizes.device)
    images = pictures(sizes)
    model = timm.create_model(name, num_classes=CLASSES, **options)

    def loss_of(model: Any, images: Any = images) -> Any:
        return F.cross_entropy(model(images), labels)

    bare, flops = plain_step(sizes, model, loss_of)
    yield {"timm_images_per_s": sizes.batch / bare}
    del model, images, loss_of
    peak = 1e12 * tflops(sizes, sizes.precision)
    with corpus(sizes, sizes.side, sizes.side) as root:
        run = partial(ours, sizes, root, model=name, fields={"model_options": options})
        exact = run(name="exact")
        yield {"images_per_s": sizes.batch / exact, "vs_timm": bare / exact}
        yield {"ceiling_share": flops / exact / peak}
        free = run(name="free", deterministic=False)
        yield {"any_kernels_speedup": exact / free, "vs_timm_any_kernels": bare / free}
        yield {"ceiling_share_any_kernels": flops / free / peak}
        with counted_waits(sizes, Loop, "update") as found:
            run(name="waits", deterministic=False)
        yield {"loop_waits": len(found)}
        print(*sorted(set(found)), sep="\n")
        if sizes.compile:
            compiled = run(name="compiled", deterministic=False, compile=True)
            yield {"compile_speedup": free / compiled}


def clip(sizes: Sizes) -> Figures:
    """CLIP RN50 and ViT-B/16: as `resnet`, over open_clip's own model and loss.

    images_per_s_<model>, vs_open_clip_<model>, ceiling_share_<model>, compile_speedup_<model>.
    """
    import open_clip

    peak = 1e12 * tflops(sizes, sizes.precision)
    loss = open_clip.ClipLoss()
    with corpus(sizes, sizes.side, sizes.side) as root:
        plain: dict[str, float] = {}
        runs: dict[str, Callable[..., float]] = {}
        for name, options in sizes.clips:
            model = open_clip.CLIP(**options) if options else open_clip.create_model(name)
            images = pictures(sizes)
            length = model.context_length
            tokens = open_clip.SimpleTokenizer(context_length=length)
            texts = tokens(["a photo of a thing"] * sizes.batch).to(sizes.device)

            def loss_of(model: Any, images: Any = images, texts: Any = texts) -> Any:
                return loss(*model(images, texts)[:3])

            bare, flops = plain_step(sizes, model, loss_of)
            del model, images, loss_of
            tail = name.lower().replace("-", "")
            fields = {"model_options": options}
            runs[tail] = partial(
                ours, sizes, root, model=name, fields=fields, objective="contrastive"
            )
            plain[tail] = runs[tail](name=tail, deterministic=False)
            yield {f"images_per_s_{tail}": sizes.batch / plain[tail]}
            yield {f"vs_open_clip_{tail}": bare / plain[tail]}
            yield {f"ceiling_share_{tail}": flops / plain[tail] / peak}
        for tail, run in runs.items() if sizes.compile else ():
            compiled = run(name=f"{tail}-compiled", deterministic=False, compile=True)
            yield {f"compile_speedup_{tail}": plain[tail] / compiled}


def shards(sizes: Sizes) -> Figures:
    """ResNet-50 from JPEGs of 400 x 300 in shards, with random crops, on all the machine's cores.

    images_per_s_shards. Where it is below `images_per_s`, decoding bounds.
    """
    name, options = sizes.timm
    augment = {"crop": [0.08, 1.0], "crop_interpolation": "bilinear", "flip": True}
    with corpus(sizes, 400, 300) as root:
        fields = {"model_options": options, "augment": augment}
        seconds = ours(sizes, root, "shards", name, fields, deterministic=False)
        yield {"images_per_s_shards": sizes.batch / seconds}


def cohort(sizes: Sizes) -> Figures:
    """Five levels side by side over five runs one after another, by wall time, start-up included.

    five_levels_vs_five_runs_model_wall: ResNet-50 on images in memory, which the model bounds;
    five_levels_vs_five_runs_input_wall: the same from JPEGs of 400 x 300 with crops, streamed.
    """
    import torch
    from pretrain_cohort import compare

    from jobs.images.spec import Augment, ImageInput
    from jobs.pretrain.distributed import DistributedGroup
    from jobs.pretrain.spec import Resources

    name, options = sizes.timm
    group = DistributedGroup(device=torch.device(sizes.device))
    resources = Resources(cpus_per_worker=sizes.cpus, channels_last=True, deterministic=False)
    fields: dict[str, Any] = {
        "model_options": options,
        "image": ImageInput(size=sizes.side),
        "schedule": {
            "epochs": 2,
            "batch_size": sizes.batch,
            "lr": 1e-4,
            "precision": sizes.precision,
        },
    }
    crops = Augment(crop=(0.08, 1.0), crop_interpolation="bilinear", flip=True)
    for kind, augment in (("input", crops), ("model", Augment())):
        with corpus(sizes, *((400, 300) if kind == "input" else (sizes.side, sizes.side))) as root:
            recipe = fields | {"augment": augment}
            found = compare(root, kind, name, recipe, resources, group, repeats=1)
        yield {key: value for key, value in found.items() if key.endswith("_wall")}


# -- extraction, tests -----------------------------------------------------------------------------


def extraction(sizes: Sizes) -> Figures:
    """As `tuning_extract.py`, with more rows."""
    import tuning_extract

    tuning_extract.ROWS, tuning_extract.REPEATS = sizes.rows, 5 if sizes.rows > 16 else 1
    found = tuning_extract.measure()
    yield {key if key.startswith("extract") else f"extract_{key}": v for key, v in found.items()}


def tests(sizes: Sizes) -> Figures:
    """tests_<outcome>: the tests marked `gpu`; without Ray, those that need no fixtures of ours.

    Names of failed ones are in the log. A CPU skips them.
    """
    root = Path(__file__).parent.parent
    words = [sys.executable, "-m", "pytest", "-m", "gpu", "-n", "0", "-p", "no:cacheprovider"]
    folders = ["tests/jobs/tuning", "tests/jobs/pretrain"]
    if sizes.device == "cpu" or importlib.util.find_spec("ray") is None:
        folders = ["tests/jobs/tuning/test_polar.py", "tests/jobs/tuning/frozen/test_train.py"]
        words.append("--noconftest")
    done = subprocess.run([*words, *folders], cwd=root, capture_output=True, text=True)
    print(done.stdout[-8_000:], done.stderr[-2_000:])
    for count, outcome in re.findall(r"(\d+) (passed|failed|skipped|errors?)", done.stdout):
        yield {f"tests_{outcome}": int(count)}
    if done.returncode:
        raise SystemExit(f"pytest ended with {done.returncode}")


SECTIONS: dict[str, Section] = {
    "card": Section(card, 30),
    "svd": Section(svd, 40),
    "engine": Section(engine, 60),
    "resnet": Section(resnet, 100, ("timm",)),
    "clip": Section(clip, 110, ("open_clip",)),
    "cohort": Section(cohort, 80, ("timm",)),
    "shards": Section(shards, 40, ("timm",)),
    "extraction": Section(extraction, 30, ("timm",)),
    "tests": Section(tests, 50, ("pytest", "xdist", "hypothesis")),
}
