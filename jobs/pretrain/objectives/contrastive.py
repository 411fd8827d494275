"""Contrastive pre-training: an open_clip model on images and (noisy) captions.

Paper 1 section 2.1, the YFCC15M runs (CLIP, Radford et al. 2021). Model, tokenizer, loss and
zero-shot classifier are open_clip's. The loss compares each image with all captions of the
*global* batch: features are gathered over workers, and gradients flow through the gather.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jobs.contract import StageError
from jobs.encoders.encoder import Architecture
from jobs.images.pixels import to_input
from jobs.pretrain.data.part import Field, Part, Targets
from jobs.pretrain.distributed import DistributedGroup, no_gradient_sync
from jobs.pretrain.objectives.objective import FULL, Scored, passes
from jobs.pretrain.precision import Precision
from jobs.pretrain.spec import Contrastive

MAX_LOGIT_SCALE = math.log(100)

MOST_PAIRS = 5000
"""Number of validation pairs for retrieval, as in COCO's usual test."""

_CHUNK = 256  # images or texts evaluated at a time


class ContrastiveObjective:
    """CLIP's symmetric cross-entropy over the similarities of a global batch."""

    field: Field = "caption"

    def __init__(self, recipe: Contrastive, group: DistributedGroup) -> None:
        import open_clip

        logging.getLogger("open_clip").setLevel(logging.ERROR)
        self._recipe, self._group = recipe, group
        self._loss = open_clip.ClipLoss(
            local_loss=True, gather_with_grad=True, rank=group.rank, world_size=group.world
        )
        self.architecture = Architecture(
            "open_clip", recipe.model, recipe.model_options, recipe.image, 0
        )

    def build(self, seed: int) -> nn.Module:
        """The open_clip model at its initial weights for this seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.architecture.build()

    @cached_property
    def _tokenizer(self) -> Any:
        return self.architecture.tokenizer()

    def encode(self, part: Part, values: pa.Array) -> Tensor:
        """Captions as tokens, int64 [N, L]; StageError for a null. Tokenizes equal texts once."""
        if values.null_count:
            raise StageError(
                f"corpus {part.corpus}: {values.null_count} of {len(values)} training rows have "
                f"no caption; use a corpus with captions or a supervised recipe"
            )
        coded = pc.dictionary_encode(values)
        tokens: Tensor = self._tokenizer(coded.dictionary.to_pylist())
        return tokens[torch.from_numpy(coded.indices.to_numpy().astype("int64"))]

    def parameter_groups(self, model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
        """open_clip's groups: no weight decay of vectors, norms, biases and the logit scale."""
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]

        def excluded(name: str, parameter: nn.Parameter) -> bool:
            parts = ("bn", "ln", "bias", "logit_scale")
            return parameter.ndim < 2 or any(part in name for part in parts)

        return [
            {"params": [p for n, p in named if excluded(n, p)], "weight_decay": 0.0},
            {"params": [p for n, p in named if not excluded(n, p)], "weight_decay": weight_decay},
        ]

    def mix(
        self, images: Tensor, targets: Sequence[Targets], seed: int
    ) -> tuple[Tensor, tuple[Targets, ...]]:
        """The batch unchanged: captions cannot be mixed."""
        return images, tuple(targets)

    def step(
        self,
        model: nn.Module,
        images: Tensor,
        targets: Targets,
        most: int,
        precision: Precision = FULL,
    ) -> Scored:
        """One forward and backward pass or, for a batch in pieces, two forward passes.

        In pieces, the loss is still of the whole batch: the first pass gives all features and the
        loss's gradient with respect to them; the second passes each piece again and propagates its
        share of that gradient to the parameters (Gao et al. 2021). Batch statistics are then
        updated twice.
        """
        if len(images) <= most:
            with precision.autocast():
                image, text, scale = model(images, targets.noisy)
            scored, loss = self._score(image.float(), text.float(), scale, targets)
            precision.backward(loss)
            return scored
        pieces = passes(len(images), most)
        stream = _random_state(self._group.device)  # both passes must have the same dropout
        with torch.no_grad(), precision.autocast():
            parts = [model(images[piece], targets.noisy[piece]) for piece in pieces]
        image = torch.cat([part[0].float() for part in parts]).requires_grad_()
        text = torch.cat([part[1].float() for part in parts]).requires_grad_()
        scale = parts[0][2].detach().clone().requires_grad_()
        scored, loss = self._score(image, text, scale, targets)
        precision.backward(loss)
        _set_random_state(self._group.device, stream)
        for piece in pieces:
            with no_gradient_sync(model, piece is not pieces[-1]):
                with precision.autocast():
                    again = model(images[piece], targets.noisy[piece])
                loss_of_piece = (again[0].float() * _grad(image)[piece]).sum()
                loss_of_piece = loss_of_piece + (again[1].float() * _grad(text)[piece]).sum()
                # These gradients already have the loss scale.
                (loss_of_piece + again[2] * _grad(scale) / len(pieces)).sum().backward()
        return scored

    def _score(
        self, image: Tensor, text: Tensor, scale: Tensor, targets: Targets
    ) -> tuple[Scored, Tensor]:
        """Per-sample losses, whose mean is `open_clip.ClipLoss`, and in-batch retrieval.

        An image is correct when the nearest text of the global batch has the tokens of its own
        text, so confusing equal captions is no mistake.
        """
        per_image, per_text = self._loss.get_logits(image, text, scale)
        truth = self._loss.get_ground_truth(image.device, len(image))
        losses = F.cross_entropy(per_image, truth, reduction="none")
        losses = (losses + F.cross_entropy(per_text, truth, reduction="none")) / 2
        found = self._all_tokens(targets.noisy)[per_image.detach().argmax(dim=1)]
        as_noisy = (found == targets.noisy).all(dim=1)
        as_clean = (found == targets.clean).all(dim=1)
        return Scored(losses.detach(), as_noisy, as_clean), losses.mean()

    def _all_tokens(self, tokens: Tensor) -> Tensor:
        """The texts of the global batch, in the order of its gathered features."""
        if self._group.world == 1:
            return tokens
        everyone = [torch.empty_like(tokens) for _ in range(self._group.world)]
        torch.distributed.all_gather(everyone, tokens.contiguous())
        return torch.cat(everyone)

    def after_update(self, model: nn.Module) -> None:
        """Keep the logit scale in 1..100 (Radford et al. 2021, section 2.5)."""
        with torch.no_grad():
            model.get_parameter("logit_scale").clamp_(0, MAX_LOGIT_SCALE)

    def evaluate(
        self, models: Sequence[nn.Module], part: Part, group: DistributedGroup
    ) -> list[Mapping[str, float]]:
        """Measures of each model on the validation part, in percent.

        With labels: `val_accuracy`, zero-shot by class names in the recipe's templates. With
        captions: `val_image_to_text_r1` and `val_text_to_image_r1`, retrieval among its first
        MOST_PAIRS pairs.
        """
        labelled = bool(part.classes) and not part.labels.null_count
        captions = part.captions.slice(0, MOST_PAIRS)
        pairs = torch.from_numpy(pc.indices_nonzero(captions.is_valid()).to_numpy().astype("int64"))
        found: list[dict[str, float]] = [{} for _ in models]
        with torch.no_grad():
            if labelled or len(pairs) > 1:
                first = self._first_images(models, part, group)
            if labelled:
                for own, accuracy in zip(
                    found, self._zero_shot(models, part, first, group), strict=True
                ):
                    own["val_accuracy"] = accuracy
            if len(pairs) > 1:
                tokens = self.encode(part, captions.drop_null())
                for own, model, images in zip(found, models, first, strict=True):
                    own |= self._retrieval(model, images[pairs], tokens, group)
        return list(found)

    def _first_images(
        self, models: Sequence[nn.Module], part: Part, group: DistributedGroup
    ) -> list[Tensor]:
        """Each model's image features of the part's first rows, at most MOST_PAIRS, [n, D]."""
        rows = min(part.rows, MOST_PAIRS)
        mine = torch.split(torch.arange(rows)[group.mine(rows)], _CHUNK)
        chunks = [self._image_features(models, part, chunk, group) for chunk in mine]
        return [_gather_rows(own, mine, rows, group) for own in zip(*chunks, strict=True)]

    def _zero_shot(
        self,
        models: Sequence[nn.Module],
        part: Part,
        first: Sequence[Tensor],
        group: DistributedGroup,
    ) -> list[float]:
        """Each model's accuracy in percent; `first`: its features of the first rows."""
        import open_clip

        labels = torch.from_numpy(part.labels.to_numpy().astype("int64"))
        classifiers = [
            open_clip.build_zero_shot_classifier(
                model, self._tokenizer, part.classes, self._recipe.templates, device=group.device
            ).float()
            for model in models
        ]
        right = torch.zeros(len(models), dtype=torch.float64)
        for rows in torch.split(torch.arange(part.rows)[group.mine(part.rows)], _CHUNK):
            known, further = rows[rows < len(first[0])], rows[rows >= len(first[0])]
            all_features = [own[known].to(group.device) for own in first]
            if len(further):
                more = self._image_features(models, part, further, group)
                pairs = zip(all_features, more, strict=True)
                all_features = [torch.cat([own, new.float()]) for own, new in pairs]
            for at, features in enumerate(all_features):
                scores = features @ classifiers[at]
                right[at] += (scores.argmax(dim=1).cpu() == labels[rows]).sum()
        return [100 * each / part.rows for each in group.total(right).tolist()]

    def _retrieval(
        self, model: nn.Module, images: Tensor, tokens: Tensor, group: DistributedGroup
    ) -> Mapping[str, float]:
        """R@1: the percentage of pairs whose nearest match is right.

        An equal caption counts as right; open_clip's own evaluation counts it as wrong.
        """
        mine = torch.split(torch.arange(len(images))[group.mine(len(images))], _CHUNK)
        own = [_text_features(model, tokens[pairs].to(group.device)) for pairs in mine]
        texts = _gather_rows(own, mine, len(images), group)
        right = torch.zeros(2, dtype=torch.float64)
        for pairs in mine:
            for way, (queries, candidates) in enumerate(((images, texts), (texts, images))):
                nearest = (queries[pairs] @ candidates.T).argmax(dim=1)
                right[way] += (tokens[nearest] == tokens[pairs]).all(dim=1).sum()
        to_text, to_image = (100 * group.total(right) / len(images)).tolist()
        return {"val_image_to_text_r1": to_text, "val_text_to_image_r1": to_image}

    def memorised(
        self, model: nn.Module, part: Part, targets: Targets, group: DistributedGroup
    ) -> Mapping[str, float]:
        """Percent of flipped rows whose image is nearer to its noisy than to its clean caption
        (`memorised_percent`), and the reverse (`recovered_percent`). By chance, each is 50.
        """
        flipped = torch.nonzero(targets.flipped).flatten()
        if len(flipped) == 0:
            return {}
        sums = torch.zeros(2, dtype=torch.float64)
        with torch.no_grad():
            for chunk in torch.split(flipped[group.mine(len(flipped))], _CHUNK):
                image = self._image_features([model], part, chunk, group)[0]
                noisy, clean = (
                    (image * _text_features(model, tokens[chunk].to(group.device))).sum(dim=1)
                    for tokens in (targets.noisy, targets.clean)
                )
                sums += torch.stack([(noisy > clean).sum(), (clean > noisy).sum()]).cpu()
        memorised, recovered = (100 * group.total(sums) / len(flipped)).tolist()
        return {"memorised_percent": memorised, "recovered_percent": recovered}

    def _image_features(
        self, models: Sequence[Any], part: Part, rows: Tensor, group: DistributedGroup
    ) -> list[Tensor]:
        images = to_input(part.images[rows].to(group.device), self._recipe.image)
        return [model.encode_image(images, normalize=True) for model in models]


def _text_features(model: Any, tokens: Tensor) -> Tensor:
    features: Tensor = model.encode_text(tokens, normalize=True)
    return features


def _gather_rows(
    own: Sequence[Tensor], mine: Sequence[Tensor], rows: int, group: DistributedGroup
) -> Tensor:
    """The features of all workers' rows, float32 [rows, D] on the CPU, from this worker's."""
    features = torch.zeros(rows, own[0].shape[1])
    for at, found in zip(mine, own, strict=True):
        features[at] = found.float().cpu()
    return group.total(features)


def _grad(leaf: Tensor) -> Tensor:
    assert leaf.grad is not None
    return leaf.grad


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    on_device = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return torch.get_rng_state(), on_device


def _set_random_state(device: torch.device, state: tuple[Tensor, Tensor | None]) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)
