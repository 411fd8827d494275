"""What the importers of pretrained encoders give, and the faults that they share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from textwrap import shorten
from typing import Any

from torch import nn

from jobs.contract import StageError
from jobs.encoders.card import Architecture


@dataclass(frozen=True)
class Imported:
    """A model with pretrained weights, and their source."""

    architecture: Architecture
    model: nn.Module
    source: Mapping[str, Any]
    left_out: int = 0  # tensors of the source that the encoder has not, such as its classifier
    files: Mapping[str, bytes] = field(default_factory=dict)  # of a tokenizer, by name


def unavailable_error(library: str, name: str, error: Exception) -> StageError:
    """Weights that a library can neither find in its cache nor download."""
    reason = shorten(str(error), 160, placeholder=" ...")
    return StageError(
        f"{library}'s weights {name} are not in the local cache, or damaged there, and could not "
        f"be downloaded ({type(error).__name__}: {reason}); connect to the network once, copy them "
        f"into $HF_HOME/hub, or name a file with kind: file"
    )


def misfit_error(what: str, error: Exception, remedy: str) -> StageError:
    """Weights that a library cannot load into the model that they are of."""
    reason = shorten(str(error), 160, placeholder=" ...")
    return StageError(f"{what} cannot be loaded ({reason}); {remedy}")
