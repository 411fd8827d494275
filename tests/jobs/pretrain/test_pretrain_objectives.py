"""The two losses are their libraries' own, and are measured for each sample."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import open_clip
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from jobs.contract import StageError
from jobs.images.pixels import to_input
from jobs.pretrain.data.in_memory import load_part
from jobs.pretrain.data.part import Targets
from jobs.pretrain.distributed import DistributedGroup
from jobs.pretrain.objectives.contrastive import MAX_LOGIT_SCALE, ContrastiveObjective
from jobs.pretrain.objectives.objective import passes
from jobs.pretrain.objectives.supervised import SupervisedObjective


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def targets(noisy: torch.Tensor, clean: torch.Tensor) -> Targets:
    rows = len(noisy)
    differ = (noisy.view(rows, -1) != clean.view(rows, -1)).any(dim=1)
    return Targets(noisy, clean, differ)


def test_the_supervised_loss_is_cross_entropy_with_label_smoothing(
    supervised: Callable[..., Any],
) -> None:
    objective = SupervisedObjective(supervised(label_smoothing=0.1), 3)
    model = objective.build(0).train()
    images = torch.randn(8, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    noisy, clean = torch.arange(8) % 3, torch.zeros(8, dtype=torch.int64)
    scored = objective.step(model, images, targets(noisy, clean), 8)
    stepped = gradients(model)
    model.zero_grad()
    logits = model(images)
    F.cross_entropy(logits, noisy, label_smoothing=0.1).backward()  # type: ignore[no-untyped-call]
    direct = gradients(model)
    assert stepped.keys() == direct.keys()
    assert all(torch.allclose(stepped[name], direct[name], atol=1e-6) for name in direct)
    assert torch.equal(scored.as_noisy, logits.argmax(dim=1) == noisy)
    assert torch.equal(scored.as_clean, logits.argmax(dim=1) == clean)
    assert scored.losses.shape == (8,)


@pytest.mark.parametrize("most", [8, 3])
def test_the_contrastive_loss_is_open_clips_in_one_pass_or_in_pieces(
    contrastive: Callable[..., Any], most: int
) -> None:
    objective = ContrastiveObjective(contrastive(), DistributedGroup())
    model = objective.build(0).train()
    images = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    texts = open_clip.SimpleTokenizer(context_length=8)([f"number {i}" for i in range(8)])
    scored = objective.step(model, images, targets(texts, texts), most)
    stepped = gradients(model)
    model.zero_grad()
    loss = open_clip.ClipLoss()(*model(images, texts))
    loss.backward()
    direct = gradients(model)
    assert float(scored.losses.mean()) == pytest.approx(loss.item(), rel=1e-5)
    assert stepped.keys() == direct.keys()
    for name, value in direct.items():
        assert torch.allclose(stepped[name], value, rtol=1e-3, atol=1e-6), name


def test_an_image_nearest_to_an_equal_caption_counts_as_right(
    contrastive: Callable[..., Any],
) -> None:
    objective = ContrastiveObjective(contrastive(), DistributedGroup())
    same = open_clip.SimpleTokenizer(context_length=8)(["a dot"] * 6)
    images = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    scored = objective.step(objective.build(0), images, targets(same, same), 6)
    assert scored.as_noisy.all()
    assert scored.as_clean.all()


def test_initial_weights_are_a_function_of_the_seed(
    supervised: Callable[..., Any], contrastive: Callable[..., Any]
) -> None:
    for objective in (
        SupervisedObjective(supervised(), 3),
        ContrastiveObjective(contrastive(), DistributedGroup()),
    ):
        first, again, other = (list(objective.build(s).parameters()) for s in (0, 0, 1))
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_the_logit_scale_is_kept_at_a_hundred_at_most(contrastive: Callable[..., Any]) -> None:
    objective = ContrastiveObjective(contrastive(), DistributedGroup())
    model = objective.build(0)
    scale = model.get_parameter("logit_scale")
    for value, kept in ((9.0, math.log(100)), (-1.0, 0.0), (2.0, 2.0)):
        torch.nn.init.constant_(scale, value)
        objective.after_update(model)
        assert scale.item() == pytest.approx(kept)
    assert pytest.approx(100) == math.exp(MAX_LOGIT_SCALE)


def test_zero_shot_accuracy_is_by_class_name_and_absent_without_labels(
    contrastive: Callable[..., Any], toy: Any
) -> None:
    recipe = contrastive()
    objective = ContrastiveObjective(recipe, DistributedGroup())
    part = load_part(toy.corpus, "validation", recipe.image)
    model = objective.build(0).eval()
    accuracy = objective.evaluate([model], part, DistributedGroup())[0]["val_accuracy"]
    tokenizer = open_clip.SimpleTokenizer(context_length=8)
    with torch.no_grad():
        texts = model.encode_text(  # type: ignore[operator]
            tokenizer([f"a drawing of a {name}" for name in part.classes]), normalize=True
        )
        mean = torch.tensor(recipe.image.mean).view(1, 3, 1, 1)
        std = torch.tensor(recipe.image.std).view(1, 3, 1, 1)
        image = model.encode_image((part.images / 255 - mean) / std, normalize=True)  # type: ignore[operator]
    right = (image @ texts.T).argmax(dim=1) == torch.tensor(part.labels.to_pylist())
    assert accuracy == pytest.approx(100 * float(right.float().mean()))
    unlabelled = replace(part, labels=pa.nulls(part.rows, pa.int32()))
    assert "val_accuracy" not in objective.evaluate([model], unlabelled, DistributedGroup())[0]


@pytest.mark.parametrize("pairs", [3, 5000])
def test_labels_and_captions_are_evaluated_on_images_encoded_once(
    pairs: int, contrastive: Callable[..., Any], toy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = contrastive()
    objective = ContrastiveObjective(recipe, DistributedGroup())
    part = load_part(toy.corpus, "validation", recipe.image)
    model: Any = objective.build(0).eval()
    whole = objective.evaluate([model], part, DistributedGroup())[0]
    monkeypatch.setattr("jobs.pretrain.objectives.contrastive.MOST_PAIRS", pairs)
    encode, seen = model.encode_image, list[int]()

    def counted(images: torch.Tensor, **words: Any) -> Any:
        seen.append(len(images))
        return encode(images, **words)

    monkeypatch.setattr(model, "encode_image", counted)
    found = objective.evaluate([model], part, DistributedGroup())[0]
    assert sum(seen) == part.rows > 3
    assert found["val_accuracy"] == whole["val_accuracy"]
    assert set(found) == {"val_accuracy", "val_image_to_text_r1", "val_text_to_image_r1"}


def test_retrieval_is_among_the_pairs_and_confusing_equal_captions_is_no_mistake(
    contrastive: Callable[..., Any], toy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = contrastive()
    objective = ContrastiveObjective(recipe, DistributedGroup())
    whole = load_part(toy.corpus, "validation", recipe.image)
    captions = ["red dot", "blue dot", None, "green dot", "red dot", "gold dot", "grey dot", "dot"]
    part = replace(whole, captions=pa.array(captions), classes=())
    monkeypatch.setattr("jobs.pretrain.objectives.contrastive.MOST_PAIRS", 7)
    model: Any = objective.build(0).eval()
    measured = objective.evaluate([model], part, DistributedGroup())[0]
    pairs = [0, 1, 3, 4, 5, 6]
    texts_of_pairs = [captions[row] for row in pairs]
    with torch.no_grad():
        text = model.encode_text(
            open_clip.SimpleTokenizer(context_length=8)(texts_of_pairs), normalize=True
        )
        image = model.encode_image(to_input(whole.images[pairs], recipe.image), normalize=True)
    scores = image @ text.T
    to_text = [
        texts_of_pairs[found] == own
        for own, found in zip(texts_of_pairs, scores.argmax(1), strict=True)
    ]
    to_image = [
        texts_of_pairs[found] == own
        for own, found in zip(texts_of_pairs, scores.argmax(0), strict=True)
    ]
    assert measured == {
        "val_image_to_text_r1": pytest.approx(100 * sum(to_text) / 6),
        "val_text_to_image_r1": pytest.approx(100 * sum(to_image) / 6),
    }
    same = replace(part, captions=pa.array(["a dot"] * len(captions)))
    assert set(objective.evaluate([model], same, DistributedGroup())[0].values()) == {100.0}


def test_retrieval_is_absent_without_captions(contrastive: Callable[..., Any], toy: Any) -> None:
    recipe = contrastive()
    part = load_part(toy.corpus, "validation", recipe.image)
    mute = replace(part, captions=pa.nulls(part.rows, pa.string()), classes=())
    objective = ContrastiveObjective(recipe, DistributedGroup())
    assert objective.evaluate([objective.build(0).eval()], mute, DistributedGroup()) == [{}]


def test_a_corpus_without_the_objectives_targets_is_refused(
    supervised: Callable[..., Any], contrastive: Callable[..., Any], toy: Any
) -> None:
    with pytest.raises(StageError, match="supervised and its corpus has 0 classes"):
        SupervisedObjective(supervised(), 0)
    recipe = contrastive()
    part = load_part(toy.corpus, "train", recipe.image)
    with pytest.raises(StageError, match="1 of 2 training rows have no caption"):
        ContrastiveObjective(recipe, DistributedGroup()).encode(part, pa.array(["a", None]))


@given(st.integers(1, 300), st.integers(1, 300))
def test_passes_are_the_fewest_and_of_equal_size(images: int, most: int) -> None:
    """64 images in passes of 63 are two of 32: BatchNorm fails on a pass of one image."""
    found = passes(images, most)
    sizes = [one.stop - one.start for one in found]
    assert len(found) == -(-images // most)
    assert max(sizes) <= most
    assert max(sizes) - min(sizes) <= 1
    assert [row for one in found for row in range(one.start, one.stop)] == list(range(images))
