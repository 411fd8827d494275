"""Zero-shot classification: a linear head from CLIP's text tower; nothing is trained.

Takes a finished open_clip encoder's folder, the names of a task's classes and text templates; gives
the head. Row c of its weights is the normalised mean, over the templates, of the normalised text
embeddings of class c (open_clip's `build_zero_shot_classifier`; Radford et al. 2021, section
3.1.4). Features are not normalised here, unlike CLIP's. Their length changes the loss but not the
prediction, so the loss of such a cell cannot be compared with the loss of another method.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from jobs.contract import StageError
from jobs.encoders import encoder
from jobs.storage.folder import Folder

_WORDNET = re.compile(r"n\d{8}")


def classifier(folder: Folder, classes: Sequence[str], templates: Sequence[str]) -> Tensor:
    """The head's weights, float32 [C, D]; D: the dimensions of the encoder's features.

    Raises StageError when the encoder has no text tower, or when the names of the classes are not
    words.
    """
    import open_clip

    opened = encoder.load(folder)
    if opened.card.family != "open_clip":
        raise StageError(
            f"{folder.uri} holds a {opened.card.family} model, which reads no text; leave out the "
            f"zero_shot method, or use an open_clip encoder"
        )
    tokenizer = opened.card.architecture().tokenizer()
    with torch.no_grad():
        weights: Tensor = open_clip.build_zero_shot_classifier(
            opened.model, tokenizer, class_words(classes), tuple(templates)
        )
    return weights.float().mT.contiguous()


def class_words(classes: Sequence[str]) -> list[str]:
    """Class names as words of a text: `fire_truck` becomes `fire truck`.

    The thousand WordNet ids of ImageNet-1K become the names that CLIP's authors gave them.
    Raises StageError for other WordNet ids.
    """
    if not any(_WORDNET.fullmatch(name) for name in classes):
        return [re.sub(r"[_\s]+", " ", name).strip() for name in classes]
    from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES

    names = dict(zip(sorted(classes), IMAGENET_CLASSNAMES, strict=False))
    if len(classes) != len(IMAGENET_CLASSNAMES):
        raise StageError(
            f"{len(classes)} classes are named by WordNet ids ({classes[0]}, ...), and words are "
            f"known only for all thousand ids of ImageNet-1K; give the task class names in words"
        )
    return [names[name] for name in classes]
