"""A finished encoder: the files in its folder, written by pre-training and read by later stages.

The folder holds `model.safetensors` (all weights of the trained model) and `encoder.json` (an
`EncoderCard`). `load` gives an `Encoder`: frozen, in eval mode, with its own input preparation.
`Architecture` builds the model, for training and for loading. Never unpickles, never downloads.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from jobs import records
from jobs.contract import StageError
from jobs.encoders.catalogue import IN_PLACE
from jobs.images import shifts
from jobs.images.pixels import to_input
from jobs.images.spec import ImageInput, Shift
from jobs.storage.folder import AlteredError, Folder

WEIGHTS = "model.safetensors"
CARD = "encoder.json"

INPUTS = {ImageInput.kind: ImageInput}
"""Every kind of input an encoder may have, by its name in `encoder.json`."""

Family = Literal["timm", "open_clip"]
Precision = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class Architecture:
    """A model's name, options, input and number of outputs: all that building it needs."""

    family: Family
    model: str
    model_options: Mapping[str, Any]
    input: ImageInput
    classes: int  # outputs of a timm model; 0 for open_clip

    def build(self) -> nn.Module:
        """The model, with weights drawn from torch's global generator.

        Raises StageError when the library refuses the options, or the model the images' shape.
        """
        try:
            model = self._build_timm() if self.family == "timm" else self._build_open_clip()
        except StageError:
            raise
        except Exception as error:  # libraries raise nearly anything for options they cannot use
            raise self._build_error("cannot be built with", error) from error
        try:
            self.feature_dim(model)
        except Exception as error:
            raise self._build_error("cannot encode its images with", error) from error
        return model

    def feature_dim(self, model: nn.Module) -> int:
        """Dimensions of the model's features."""
        with torch.no_grad():
            return int(_features(self.family, model.eval(), self._blank_input()).shape[1])

    def tokenizer(self) -> Any:
        """open_clip's own tokenizer for this model: texts -> int64 [N, context length]."""
        import open_clip

        if not self.model_options:
            return open_clip.get_tokenizer(self.model)
        text: Any = self.model_options["text_cfg"]
        if text.get("hf_model_name") or text.get("hf_tokenizer_name"):
            raise StageError(
                f"model_options of {self.model!r} name a Hugging Face text model, which would "
                f"have to be downloaded; write the text tower's configuration into text_cfg"
            )
        return open_clip.SimpleTokenizer(context_length=text.get("context_length", 77))

    def _blank_input(self) -> Tensor:
        return torch.zeros(1, *self.input.shape)

    def _build_timm(self) -> nn.Module:
        import timm

        model: nn.Module = timm.create_model(
            self.model,
            pretrained=False,
            num_classes=self.classes,
            in_chans=self.input.channels,
            **self.model_options,
        )
        return model

    def _build_open_clip(self) -> nn.Module:
        import open_clip

        if self.input.channels != 3:
            raise StageError(
                f"{self.model!r} is an open_clip model and takes 3 channels, not "
                f"{self.input.channels}; set image.channels to 3 (grey images are repeated)"
            )
        options = dict(self.model_options or open_clip.get_model_config(self.model) or {})
        missing = [field for field in IN_PLACE if field not in options]
        if missing:
            raise StageError(
                f"the configuration of open_clip model {self.model!r} lacks {', '.join(missing)}; "
                f"add them to model_options"
            )
        options["vision_cfg"] = {**options["vision_cfg"], "image_size": self.input.size}
        custom = options.pop("custom_text", False) or "hf_model_name" in options["text_cfg"]
        built: nn.Module = (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**options)
        return built

    def _build_error(self, what: str, error: Exception) -> StageError:
        reason = " ".join(str(error).split())[:200]
        return StageError(
            f"{self.family} model {self.model!r} {what} model_options "
            f"{json.dumps(dict(self.model_options))} and image {self.input.size} x "
            f"{self.input.size} x {self.input.channels}: {reason}; correct the recipe"
        )


@dataclass(frozen=True)
class EncoderCard:
    """`encoder.json`: what the encoder is, and hashes of how it was trained."""

    family: Family
    model: str
    model_options: Mapping[str, Any]
    input: ImageInput
    classes: tuple[str, ...]  # of the corpus, in label order
    feature_dim: int
    # Both equal at every noise level of a seed; None for an encoder not trained here.
    initial_weights_sha256: str | None
    order_sha256: str | None
    weights_sha256: str  # of the file model.safetensors
    source: Mapping[str, Any] = field(default_factory=dict)  # of pretrained weights

    @property
    def architecture(self) -> Architecture:
        """The architecture to build before the weights are loaded."""
        outputs = len(self.classes) if self.family == "timm" else 0
        return Architecture(self.family, self.model, self.model_options, self.input, outputs)

    def as_json(self) -> dict[str, Any]:
        """The card as JSON values."""
        return {**asdict(self), "input": self.input_json, "classes": list(self.classes)}

    @property
    def input_json(self) -> dict[str, Any]:
        """The input and its kind, as JSON values."""
        return {"kind": self.input.kind, **self.input.model_dump(mode="json")}

    @staticmethod
    def read(folder: Folder) -> EncoderCard:
        """The card in a finished encoder's folder. Raises StageError when it is broken."""
        remedy = "delete its folder and make this encoder again"
        stored = records.read(folder, CARD, dict[str, Any], remedy)
        # Earlier versions wrote the input under the name `image`.
        given = stored.pop("image", None) or stored.get("input")
        kind = given.pop("kind", ImageInput.kind) if isinstance(given, dict) else ImageInput.kind
        if kind not in list(INPUTS):  # it may be unhashable
            raise StageError(
                f"{(folder / CARD).uri}: this version does not know input {kind!r}, only "
                f"{', '.join(INPUTS)}; install the version that made this encoder"
            )
        return records.check({**stored, "input": given}, EncoderCard, folder, CARD, remedy)


class Encoder:
    """An encoder on one device, frozen unless its `model` is trained."""

    def __init__(self, card: EncoderCard, model: nn.Module, device: torch.device) -> None:
        self.card = card
        self.device = device
        self.model = model.eval().requires_grad_(False).to(device)

    @property
    def dim(self) -> int:
        """Dimensions of its features."""
        return self.card.feature_dim

    def prepare(
        self, data: bytes, where: str, shift: Shift | None = None, draw: np.uint64 | None = None
    ) -> Tensor:
        """A row's data as the input of `features`, uint8 [*input.shape], with `shift` if given.

        Raises StageError, which begins with `where`, for data that cannot be read.
        """
        return shifts.prepared(data, where, self.card.input, shift, draw)

    def features(self, images: Tensor, precision: Precision = "float32") -> Tensor:
        """Features of images, float32 [N, D] on the CPU.

        `images` is [N, C, S, S]: uint8 pixels, or floats in [0, 1] (such as augmented views). A
        timm model gives the pooled features before its classifier, an open_clip model the image
        embedding, not normalised.
        """
        with torch.inference_mode():
            return self.forward(images, precision).cpu()

    def forward(self, images: Tensor, precision: Precision = "float32") -> Tensor:
        """As `features`, but on the encoder's device, with gradients where they are enabled.

        With bfloat16 or float16, autocast runs the layers that torch considers safe in it.
        """
        inputs = to_input(images.to(self.device), self.card.input)
        if precision == "float32":
            return _features(self.card.family, self.model, inputs).float()
        with torch.autocast(self.device.type, dtype=getattr(torch, precision)):
            return _features(self.card.family, self.model, inputs).float()


def _features(family: Family, model: Any, images: Tensor) -> Tensor:
    if family == "timm":
        features: Tensor = model.forward_head(model.forward_features(images), pre_logits=True)
    else:
        features = model.encode_image(images)
    if features.ndim != 2:
        raise ValueError(f"its features have the shape {tuple(features.shape)}, not [N, D]")
    return features


def weights_bytes(model: nn.Module) -> bytes:
    """A model's weights and buffers as a safetensors file; equal weights give equal bytes."""
    return safetensors.torch.save(
        # Copies, because safetensors refuses tensors that share memory (tied weights).
        {name: value.detach().cpu().contiguous().clone() for name, value in _sorted_state(model)}
    )


def save(folder: Folder, card: EncoderCard, weights: bytes) -> None:
    """Write a finished encoder into a folder, the card last."""
    folder.write_bytes(WEIGHTS, weights)
    folder.write_json(CARD, card.as_json())


def load(folder: Folder, device: torch.device | None = None) -> Encoder:
    """Open a finished encoder's folder.

    Raises StageError when the weights are not the file that the card names, or do not fit the
    architecture that the installed library builds.
    """
    card = EncoderCard.read(folder)
    try:
        data = folder.read_expected(WEIGHTS, card.weights_sha256)
    except AlteredError:
        raise StageError(
            f"{folder.uri}/{WEIGHTS} is not the file that {CARD} names (other sha256); make "
            f"this encoder again"
        ) from None
    with torch.random.fork_rng(devices=[]):  # building draws initial weights
        model = card.architecture.build()
    try:
        model.load_state_dict(safetensors.torch.load(data))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise StageError(
            f"the weights in {folder.uri} do not fit {card.family} model {card.model!r} as the "
            f"installed {card.family} builds it ({reason}); install the version that trained it"
        ) from error
    return Encoder(card, model, device or torch.device("cpu"))


def _sorted_state(model: nn.Module) -> list[tuple[str, Tensor]]:
    return sorted(model.state_dict().items())
