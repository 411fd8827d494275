"""Text models of the transformers library: built, measured and run, never with code of their own.

Takes a model's configuration (the content of its `config.json`); gives the model, its limits and
its hidden states. transformers is imported when it is first needed. Nothing here reads weights or
tokenizes.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn

from jobs.contract import StageError
from jobs.encoders.model_folder import Limits
from jobs.text.pooling import pooled
from jobs.text.spec import TextInput

_MOST_TOKENS = 512  # where nothing else limits a text


def require() -> None:
    """Raise StageError unless the transformers library can be imported."""
    try:
        import transformers  # noqa: F401
    except ImportError as error:
        raise StageError(
            f"a text encoder needs the transformers library, which cannot be imported ({error}); "
            f"install nml-orch[text]"
        ) from error


def config_of(model: str, options: Mapping[str, Any]) -> Any:
    """The library's own configuration. Raises StageError for a model that cannot be used here."""
    require()
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if "auto_map" in options:
        raise StageError(
            f"the configuration of {model!r} has auto_map: it needs code of its own, which is "
            f"never run; use a model that transformers itself has"
        )
    if "quantization_config" in options:
        raise StageError(
            f"the configuration of {model!r} has quantization_config: quantised weights are not "
            f"read here; use the model's full weights"
        )
    kind = options.get("model_type")
    if kind not in list(CONFIG_MAPPING.keys()):
        near = get_close_matches(str(kind), list(CONFIG_MAPPING.keys()), n=3, cutoff=0.6)
        raise StageError(
            f"the configuration of {model!r} has model_type {kind!r}, which the installed "
            f"transformers does not know (near: {', '.join(near) or 'none'}); correct it, install "
            f"a newer version, or use another model"
        )
    try:
        config = CONFIG_MAPPING[kind].from_dict(dict(options))
    except Exception as error:  # the library raises nearly anything for values it cannot use
        raise _build_error(model, options, error) from error
    if config.is_encoder_decoder:
        raise StageError(
            f"{model!r} is an encoder-decoder model ({kind}), whose features are not defined here; "
            f"use an encoder or a decoder"
        )
    if getattr(config, "vocab_size", None) is None:
        raise StageError(f"{model!r} is no text model ({kind} has no vocabulary); use a text model")
    return config


def build(model: str, options: Mapping[str, Any]) -> nn.Module:
    """The model, float32, with weights drawn from torch's global generator. Raises StageError."""
    config = config_of(model, options)
    from transformers import AutoModel

    make: Any = AutoModel.from_config
    try:
        try:
            built = make(config, dtype=torch.float32, attn_implementation="sdpa")
        except ValueError:  # the few models that have no such attention
            built = make(config, dtype=torch.float32, attn_implementation="eager")
    except Exception as error:  # as above
        raise _build_error(model, options, error) from error
    found: nn.Module = built.eval()
    return found


def width(model: Any) -> int:
    """Dimensions of the model's last hidden states."""
    one = torch.ones(1, 1, dtype=torch.int64, device=next(model.parameters()).device)
    with torch.no_grad():
        return int(model.eval()(input_ids=one, attention_mask=one).last_hidden_state.shape[-1])


def decodes(config: Any) -> bool:
    """Whether a model reads from left to right alone, so that only its last token sees the text."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    kind = config.model_type
    causal = kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return causal and kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES


def positions(model: Any) -> int | None:
    """The longest text that the model has positions for, in tokens; None: no limit."""
    limit = getattr(model.config, "max_position_embeddings", None)
    if not isinstance(limit, int) or limit < 1:
        return None
    for name, module in model.named_modules():
        # RoBERTa's kind counts positions from the padding's own, so it has fewer of them.
        own = name.endswith("position_embeddings") and isinstance(module, nn.Embedding)
        if own and module.padding_idx is not None:
            return int(module.num_embeddings) - int(module.padding_idx) - 1
    return limit


def default_length(model: Any, tokenizer: Any, declared: int | None) -> int:
    """Tokens of a text where the experiment file does not say; `declared`: by the model's folder.

    The model's own limit, at most 512 where the folder declares none.
    """
    known = (positions(model), tokenizer.model_max_length, declared or _MOST_TOKENS)
    return int(min(one for one in known if one is not None))


def padding(config: Any, tokenizer: Any) -> int:
    """An id that fills a batch. It is always masked, so any one will do where none is declared."""
    # First the model's: RoBERTa's kind counts the positions of all tokens but this one.
    for one in (config.pad_token_id, tokenizer.pad_token_id):
        if isinstance(one, int) and 0 <= one < config.vocab_size:
            return one
    return 0


def reads_types(model: Any, tokenizer: Any) -> bool:
    """Whether the model gets to know which of two texts a token belongs to."""
    takes = "token_type_ids" in inspect.signature(model.forward).parameters
    named = "token_type_ids" in tokenizer.model_input_names
    return takes and named and getattr(model.config, "type_vocab_size", 2) > 1


def check_input(model: Any, text: TextInput, name: str) -> None:
    """Raise StageError when the model cannot give what the input asks for."""
    limits = Limits(int(model.config.num_hidden_layers), positions(model))
    limits.check(name, text.layer, text.max_length)
    if text.pooling == "pooler":
        if getattr(model, "pooler", None) is None:
            raise StageError(
                f"{name!r} has no pooler; set the encoder's pooling to cls, mean or last"
            )
        if text.layer is not None:
            raise StageError(
                "a pooler reads the last layer; leave out layer, or set pooling to cls, mean or "
                "last"
            )


def vectors(model: Any, ids: Tensor, mask: Tensor, types: Tensor | None, text: TextInput) -> Tensor:
    """One vector for each sequence, float32 [N, D]; ids, mask and types are [N, L]."""
    more: dict[str, Any] = {} if types is None else {"token_type_ids": types}
    if text.layer is not None:
        more["output_hidden_states"] = True
    if "use_cache" in inspect.signature(model.forward).parameters:
        more["use_cache"] = False  # it would keep keys and values that nothing reads
    out = model(input_ids=ids, attention_mask=mask, **more)
    if text.pooling == "pooler":
        found: Tensor = out.pooler_output
        return found.float()
    hidden = out.last_hidden_state if text.layer is None else out.hidden_states[text.layer]
    return pooled(hidden.float(), mask, text.pooling)


def _build_error(model: str, options: Mapping[str, Any], error: Exception) -> StageError:
    reason = " ".join(str(error).split())[:200]
    given = json.dumps(dict(options), default=str)[:400]
    return StageError(
        f"transformers model {model!r} cannot be built with the configuration {given} "
        f"({type(error).__name__}: {reason}); correct its config.json"
    )
