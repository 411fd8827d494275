"""A folder with a text model in the layout of the Hugging Face Hub: which files of it are used.

Takes a folder (local or in a bucket); gives the names of its configuration, weights (safetensors
alone) and tokenizer, and what sentence-transformers' files in it say. One digest identifies them
all. Reads small JSON files, and bytes for the digest. Imports nothing heavy, because every plan
that names such a folder imports it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from jobs.contract import StageError
from jobs.encoders.spec import PACKAGE
from jobs.storage.folder import Folder
from jobs.text.spec import Pooling

CONFIG = "config.json"
WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
VOCABULARIES = (
    "added_tokens.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "spiece.model",
    "spm.model",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
)
MODULES = "modules.json"
SETTINGS, PROMPTS = "sentence_bert_config.json", "config_sentence_transformers.json"
PATTERNS = (CONFIG, "*.safetensors", WEIGHTS_INDEX, *TOKENIZER, *VOCABULARIES, MODULES, SETTINGS)
"""The files of a repository that may be used, as patterns, with `*/config.json` and PROMPTS."""

_POOLING: Mapping[str, Pooling] = {"cls": "cls", "mean": "mean", "lasttoken": "last"}
_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "lasttoken",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
}


def locate(model: str) -> Folder:
    """The folder that `model` names: a path, or `package:` and a path in an installed package.

    Raises StageError for a package that is not installed.
    """
    if not model.startswith(PACKAGE):
        return Folder.of(model)
    package, _, below = model.removeprefix(PACKAGE).partition("/")
    try:
        spec = find_spec(package)
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise StageError(
            f"model = {model}: no package {package!r} is installed; install it "
            f"(`pip install {package.replace('_', '-')}`), or name a folder"
        )
    return Folder.of(next(iter(spec.submodule_search_locations))) / below


_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_POSITIONS = ("max_position_embeddings", "n_positions")
_PADDED = ("camembert", "data2vec-text", "ibert", "mpnet", "roberta", "xlm-roberta")
"""Kinds of models that count positions from the padding's own, so that they have fewer of them."""


@dataclass(frozen=True)
class Limits:
    """How many layers and positions a model has; None: not known, or no limit."""

    layers: int | None
    positions: int | None

    @staticmethod
    def of(config: Mapping[str, Any]) -> Limits:
        """Those that a configuration gives by itself, without the library's defaults."""

        def first(names: tuple[str, ...]) -> int | None:
            found = (config.get(name) for name in names)
            return next((n for n in found if type(n) is int and n > 0), None)

        limit, padding = first(_POSITIONS), config.get("pad_token_id", 1)
        if limit is not None and config.get("model_type") in _PADDED and type(padding) is int:
            limit -= padding + 1
        return Limits(first(_LAYERS), limit)

    def check(self, name: str, layer: int | None, max_length: int | None) -> None:
        """Raise StageError for a layer or a length (in tokens) that the model does not have."""
        limit, layers = self.positions, self.layers
        if limit is not None and (max_length or 0) > limit:
            raise StageError(
                f"max_length is {max_length}, but {name!r} has positions for {limit} tokens; set "
                f"the encoder's max_length to {limit} or less"
            )
        if layers is not None and layer is not None and not -layers - 1 <= layer <= layers:
            raise StageError(
                f"layer is {layer}, but {name!r} has the hidden states 0 (embeddings) to {layers}; "
                f"set the encoder's layer to one of them, or count from the end with -1"
            )


@dataclass(frozen=True)
class SentenceSettings:
    """What sentence-transformers' files in a model's folder say about its vectors."""

    pooling: Pooling | None = None
    normalise: bool = False
    max_length: int | None = None
    lower_case: bool = False
    prompt: str = ""


@dataclass(frozen=True)
class ModelFolder:
    """The used files of a model's folder."""

    folder: Folder
    config: Mapping[str, Any]
    weights: tuple[str, ...]  # one file, or the index and its shards
    tokenizer: tuple[str, ...]
    sentence: SentenceSettings
    others: tuple[str, ...]  # the files that `sentence` was read from

    @staticmethod
    def read(folder: Folder) -> ModelFolder:
        """The files of a model's folder. Raises StageError for a folder that cannot be used."""
        if not folder.exists(CONFIG):
            raise StageError(
                f"{folder.uri} has no {CONFIG}; name the folder that save_pretrained wrote, or a "
                f"model of the Hub with its revision"
            )
        config = _json(folder, CONFIG)
        if "auto_map" in config:
            raise StageError(
                f"{folder.uri}/{CONFIG} has auto_map: the model needs code of its own, which is "
                f"never run; use a model that transformers itself has"
            )
        weights = _weights(folder)
        names = tokenizer_of(folder)
        sentence, others = _sentence_settings(folder)
        return ModelFolder(folder, config, weights, names, sentence, others)

    @property
    def files(self) -> tuple[str, ...]:
        """All used files, by name."""
        return tuple(sorted({CONFIG, *self.weights, *self.tokenizer, *self.others}))

    def sha256(self) -> str:
        """One digest over the names and digests of all used files."""
        return digest_of({name: self.folder.sha256(name) for name in self.files})


def tokenizer_of(folder: Folder) -> tuple[str, ...]:
    """The names of a tokenizer's files in a folder. Raises StageError if it has none."""
    names = [n for n in (*TOKENIZER, *VOCABULARIES) if folder.exists(n)]
    if not {"tokenizer.json", *VOCABULARIES} & set(names):
        raise StageError(
            f"{folder.uri} has no tokenizer (tokenizer.json, vocab.txt, ...); save it there "
            f"with the tokenizer's save_pretrained"
        )
    return tuple(names)


def digest_of(files: Mapping[str, str]) -> str:
    """One sha256 over files: name -> sha256."""
    return hashlib.sha256(json.dumps(sorted(files.items())).encode()).hexdigest()


def _weights(folder: Folder) -> tuple[str, ...]:
    if folder.exists(WEIGHTS):
        return (WEIGHTS,)
    if folder.exists(WEIGHTS_INDEX):
        shards = _json(folder, WEIGHTS_INDEX).get("weight_map")
        named = sorted(set(shards.values())) if isinstance(shards, dict) else []
        lost = [n for n in named if "/" in str(n) or not folder.exists(str(n))]
        if lost or not named:
            raise StageError(
                f"{folder.uri}/{WEIGHTS_INDEX} names {lost[0] if lost else 'no file'}, which is "
                f"not in the folder; copy all shards there"
            )
        return (WEIGHTS_INDEX, *named)
    pickled = next((name for name in PICKLED if folder.exists(name)), None)
    if pickled is not None:
        raise StageError(
            f"{folder.uri} has its weights in {pickled}, a pickle, which is never loaded; convert "
            f"it once where you trust it: AutoModel.from_pretrained(folder).save_pretrained(folder)"
        )
    raise StageError(
        f"{folder.uri} has no weights ({WEIGHTS} or {WEIGHTS_INDEX}); save the model there with "
        f"save_pretrained"
    )


# -- sentence-transformers -------------------------------------------------------------------------


def _sentence_settings(folder: Folder) -> tuple[SentenceSettings, tuple[str, ...]]:
    """The settings of a sentence-transformers folder, and the files that they are in."""
    if not folder.exists(MODULES):
        return SentenceSettings(), ()
    used, found = [MODULES], SentenceSettings()
    values: dict[str, Any] = {}
    for module in _modules(folder):
        kind, path = str(module.get("type", "")).rpartition(".")[2], str(module.get("path", ""))
        if kind == "Transformer":
            if path:
                raise StageError(
                    f"{folder.uri}/{MODULES} has the model in {path}; name that folder, with the "
                    f"pooling and normalise of this one"
                )
        elif kind == "Pooling":
            if "/" in path or path in ("", "..", "."):
                raise StageError(
                    f"{folder.uri}/{MODULES} has its pooling in {path!r}, which is no folder's "
                    f"name; copy the model again"
                )
            used.append(f"{path}/{CONFIG}")
            values["pooling"], include = _pooling(folder, used[-1])
            values["include_prompt"] = include
        elif kind == "Normalize":
            values["normalise"] = True
        else:
            raise StageError(
                f"{folder.uri}/{MODULES} has a module {kind} ({path}), which is not supported: its "
                f"vectors would differ; use a model of Transformer, Pooling and Normalize alone"
            )
    if folder.exists(SETTINGS):
        used.append(SETTINGS)
        settings = _json(folder, SETTINGS)
        values["max_length"] = settings.get("max_seq_length")
        values["lower_case"] = bool(settings.get("do_lower_case"))
    if folder.exists(PROMPTS):
        used.append(PROMPTS)
        settings = _json(folder, PROMPTS)
        name = settings.get("default_prompt_name")
        values["prompt"] = (settings.get("prompts") or {}).get(name) or "" if name else ""
    if not values.pop("include_prompt", True) and values.get("prompt"):
        raise StageError(
            f"{folder.uri} pools without the tokens of its prompt, which is not supported; use "
            f"another model"
        )
    return SentenceSettings(**{**vars(found), **values}), tuple(used)


def _modules(folder: Folder) -> list[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = _json(folder, MODULES, list)
    if not all(isinstance(module, dict) for module in found):
        raise StageError(f"{folder.uri}/{MODULES} is no list of modules; copy the model again")
    return found


def _pooling(folder: Folder, name: str) -> tuple[Pooling, bool]:
    """(how tokens are pooled, whether the prompt's are)."""
    config = _json(folder, name)
    modes = config.get("pooling_mode") or [m for key, m in _MODES.items() if config.get(key)]
    modes = [modes] if isinstance(modes, str) else list(modes)
    if len(modes) != 1 or modes[0] not in _POOLING:
        raise StageError(
            f"{folder.uri}/{name} pools by {' and '.join(map(str, modes)) or 'nothing'}, which is "
            f"not supported; use a model that pools by cls, mean or last token"
        )
    return _POOLING[modes[0]], bool(config.get("include_prompt", True))


def _json(folder: Folder, name: str, kind: type[Any] = dict) -> Any:
    try:
        found = json.loads(folder.read_bytes(name))
    except (OSError, ValueError, RecursionError) as error:
        raise StageError(
            f"{folder.uri}/{name} cannot be read ({error}); copy the model again"
        ) from None
    if not isinstance(found, kind):
        raise StageError(f"{folder.uri}/{name} holds no {kind.__name__}; copy the model again")
    return found
