"""What an encoder is: its architecture, and the card that lies beside its weights.

`Architecture` builds a model, for training and for loading: timm's, open_clip's, one of
transformers' text models, or an extension's. `EncoderCard` is `encoder.json`, with the
architecture, the input and the digests of the folder's other files. Nothing here reads weights.
torch is imported where a model is built: the driver reads cards too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from jobs import records
from jobs.contract import StageError
from jobs.encoders.api import ApiInput
from jobs.encoders.catalogue import IN_PLACE
from jobs.extensions.spec import Extension, Part
from jobs.images.spec import ImageInput
from jobs.storage.folder import Folder
from jobs.text.spec import OwnTextInput, TextInput

if TYPE_CHECKING:
    from torch import Tensor, nn

CARD = "encoder.json"
WEIGHTS = "model.safetensors"

Input: TypeAlias = ImageInput | OwnTextInput | TextInput | ApiInput
"""What an encoder reads."""

INPUTS: Mapping[str, type[Input]] = {
    kind.kind: kind for kind in (ImageInput, TextInput, ApiInput, OwnTextInput)
}
"""Every kind of input an encoder may have, by its name in `encoder.json`."""

Family = Literal["timm", "open_clip", "transformers", "api", "extension"]

_VISION = ("torch", "timm", "open_clip_torch", "pillow", "numpy")
_LIBRARIES: Mapping[Family, tuple[str, ...]] = {
    "timm": _VISION,
    "open_clip": _VISION,
    "transformers": ("torch", "transformers", "tokenizers", "numpy"),
    "api": (),  # the model runs elsewhere
    "extension": ("torch", "pillow", "numpy"),
}


@dataclass(frozen=True)
class Architecture:
    """A model's name, options, input and number of outputs: all that building it needs."""

    family: Family
    model: str
    model_options: Mapping[str, Any]
    input: Input
    classes: int  # outputs of a timm or an extension's model; 0 for the other families
    source: Extension | None = None  # the file with the function of an extension's model

    @property
    def made_with(self) -> dict[str, str]:
        """What a card's `source` says of an extension's model; empty for others."""
        if self.source is None:
            return {}
        return {"kind": "extension", "file": self.source.file, "sha256": self.source.sha256}

    def build(self) -> nn.Module:
        """The model, with weights drawn from torch's global generator.

        Raises StageError when the library refuses the options, or the model the images' shape.
        """
        if isinstance(self.input, OwnTextInput):
            from jobs.encoders import own

            return own.build_text(self._part, self.model_options, self.input)
        if isinstance(self.input, TextInput):
            from jobs.encoders import transformers

            return transformers.build(self.model, self.model_options)
        if isinstance(self.input, ApiInput):
            raise StageError(f"{self.model!r} runs behind an API: its weights cannot be loaded")
        build = {"timm": self._build_timm, "extension": self._build_own}
        try:
            model = build.get(self.family, self._build_open_clip)(self.input)
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
        if isinstance(self.input, TextInput):
            from jobs.encoders import transformers

            return self.input.vectors * transformers.width(model)
        if isinstance(self.input, ApiInput):
            raise TypeError(f"{self.model} runs behind an API")
        import torch

        with torch.no_grad():
            blank = torch.zeros(1, *self.input.shape)
            return int(image_features(self.family, model.eval(), blank).shape[1])

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

    def _build_timm(self, image: ImageInput) -> nn.Module:
        import timm

        model: nn.Module = timm.create_model(
            self.model,
            pretrained=False,
            num_classes=self.classes,
            in_chans=image.channels,
            **self.model_options,
        )
        return model

    @property
    def _part(self) -> Part:
        """The function of an extension's model. Raises StageError without its file."""
        if self.source is None:
            raise StageError(
                f"{self.model} is an extension's, and this step was planned without its file; name "
                f"the file under `extensions` and plan again"
            )
        return self.source.part(self.model)

    def _build_own(self, image: ImageInput) -> nn.Module:
        from jobs.encoders import own

        return own.build(self._part, self.model_options, image, self.classes)

    def _build_open_clip(self, image: ImageInput) -> nn.Module:
        import open_clip

        if image.channels != 3:
            raise StageError(
                f"{self.model!r} is an open_clip model and takes 3 channels, not "
                f"{image.channels}; set image.channels to 3 (grey images are repeated)"
            )
        options = dict(self.model_options or open_clip.get_model_config(self.model) or {})
        missing = [field for field in IN_PLACE if field not in options]
        if missing:
            raise StageError(
                f"the configuration of open_clip model {self.model!r} lacks {', '.join(missing)}; "
                f"add them to model_options"
            )
        options["vision_cfg"] = {**options["vision_cfg"], "image_size": image.size}
        custom = options.pop("custom_text", False) or "hf_model_name" in options["text_cfg"]
        built: nn.Module = (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**options)
        return built

    def _build_error(self, what: str, error: Exception) -> StageError:
        reason = " ".join(str(error).split())[:200]
        image = self.input
        if not isinstance(image, ImageInput):
            raise TypeError(f"{self.model} takes no images") from error
        return StageError(
            f"{self.family} model {self.model!r} {what} model_options "
            f"{json.dumps(dict(self.model_options))} and image {image.size} x "
            f"{image.size} x {image.channels}: {reason}; correct the recipe"
        )


def image_features(family: Family, model: Any, images: Tensor) -> Tensor:
    """Features [N, D] of normalised images [N, C, S, S] by a model of any family of images."""
    features: Tensor
    if family == "timm":
        features = model.forward_head(model.forward_features(images), pre_logits=True)
    elif family == "extension":
        features = model.features(images)
    else:
        features = model.encode_image(images)
    if features.ndim != 2:
        raise ValueError(f"its features have the shape {tuple(features.shape)}, not [N, D]")
    return features


@dataclass(frozen=True)
class EncoderCard:
    """`encoder.json`: what the encoder is, and hashes of how it was trained."""

    family: Family
    model: str
    model_options: Mapping[str, Any]
    input: Input
    classes: tuple[str, ...]  # of the corpus, in label order
    feature_dim: int  # of an API that is asked for no number of dimensions 0: not known
    # Both equal at every noise level of a seed; None for an encoder not trained here.
    initial_weights_sha256: str | None
    order_sha256: str | None
    weights_sha256: str  # of the file model.safetensors
    source: Mapping[str, Any] = field(default_factory=dict)  # of weights or an extension
    files: Mapping[str, str] = field(default_factory=dict)  # of a tokenizer: name -> sha256

    def architecture(self, source: Extension | None = None) -> Architecture:
        """The architecture to build before the weights are loaded.

        `source`: the file of an extension's encoder, as the step that opens it was planned. Raises
        StageError if the encoder was made with another text of it.
        """
        outputs = len(self.classes) if self.family in ("timm", "extension") else 0
        if self.family != "extension":
            source = None
        elif source is not None and self.source.get("sha256") != source.sha256:
            raise StageError(
                f"the encoder {self.model} was made with another text of {source.file} than this "
                f"step was planned with; plan again"
            )
        return Architecture(
            self.family, self.model, self.model_options, self.input, outputs, source
        )

    def as_json(self) -> dict[str, Any]:
        """The card as JSON values; without `files` where there are none, as it once was."""
        values = {**asdict(self), "input": self.input_json, "classes": list(self.classes)}
        return values if self.files else {n: v for n, v in values.items() if n != "files"}

    @property
    def libraries(self) -> tuple[str, ...]:
        """The distributions whose versions can change the encoder's features."""
        return _LIBRARIES[self.family]

    @property
    def preparation(self) -> str | None:
        """What decides a row's inputs: equal where two encoders' are the same; None: never shared.

        Inputs of images are pixels before they are normalised.
        """
        if not isinstance(self.input, ImageInput):
            return None
        return self.input.model_dump_json(exclude={"mean", "std"})

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
