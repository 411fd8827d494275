"""The extensions that an experiment names, checked against what it asks of them.

Takes an experiment; gives each extension's file with its digest. Compares the search space of every
method with the hyper-parameters that its class declares. Reads the files and runs nothing of them.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from jobs.contract import StageError
from jobs.encoders.spec import OwnEncoder, OwnTextEncoder, PretrainedEncoder
from jobs.extensions import declared
from jobs.extensions.declared import Declared
from jobs.extensions.files import find
from jobs.extensions.spec import Extension, Part
from jobs.noise.spec import Noise, OwnCaptions, OwnLabels
from jobs.pretrain.spec import Recipe, Supervised
from jobs.tuning.methods import Method
from jobs.tuning.search_space import (
    STANDARD,
    Choice,
    Domain,
    Grid,
    QUniform,
    RandInt,
    Space,
    bounds,
)
from orchestrator.errors import UserError
from orchestrator.experiment.model import Experiment

_TRAINING = ("lr", "weight_decay")  # the hyper-parameters of every head that is trained by steps


def planned(experiment: Experiment) -> dict[str, Extension]:
    """The extensions by name. Raises UserError for a file, a name or a space that does not fit."""
    try:
        found = find(experiment.extensions)
        for extension in found.values():
            declared.parts(extension)  # also of a file of which nothing is used
    except StageError as error:
        raise UserError(f"extensions: {error}") from error
    for name, method in experiment.tuning.methods.items():
        if method.extension is None:
            continue
        where = f"tuning.methods.{name}"
        try:
            one = declared.part(part_of(method.head, found), "method")
        except StageError as error:
            raise UserError(f"{where}.head: {error}") from error
        _check(where, method, one)
    recipe = experiment.pretrain.recipe if experiment.pretrain else None
    if isinstance(recipe, Supervised) and recipe.extension:
        _check_encoder("pretrain.recipe", recipe.model, recipe.model_options, found)
    for encoder in experiment.encoders:
        if isinstance(encoder, (OwnEncoder, OwnTextEncoder)):
            where, options = f"encoders: {encoder.name}", encoder.model_options
            _check_encoder(where, encoder.model, options, found, encoder.modality)
    return found


def of_recipe(recipe: Recipe, known: Mapping[str, Extension]) -> Extension | None:
    """The extension that has the function of a recipe's model; None for a library's model."""
    name = recipe.extension if isinstance(recipe, Supervised) else None
    return None if name is None else known[name]


def with_encoder(encoder: PretrainedEncoder, known: Mapping[str, Extension]) -> PretrainedEncoder:
    """The encoder with the extension that has its function, if one has."""
    if not isinstance(encoder, (OwnEncoder, OwnTextEncoder)):
        return encoder
    return encoder.model_copy(update={"source": part_of(encoder.model, known).extension})


def with_source(noise: Noise, known: Mapping[str, Extension]) -> Noise:
    """The noise with the extension that has its function. Raises UserError if there is none."""
    if not isinstance(noise, (OwnLabels, OwnCaptions)):
        return noise
    try:
        part = part_of(noise.function, known)
        declared.part(part, "noise")
    except StageError as error:
        raise UserError(f"noise.function: {error}") from error
    return noise.model_copy(update={"source": part.extension})


def part_of(reference: str, known: Mapping[str, Extension]) -> Part:
    """The part that a reference names. Raises StageError for a file that is not listed."""
    file, _, name = reference.partition(":")
    if file not in known:
        near = difflib.get_close_matches(file, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"add {file}.py to `extensions`"
        raise StageError(f"{reference} is in no extension of this experiment; {hint}")
    return Part(known[file], name)


def _check_encoder(
    where: str,
    reference: str,
    options: Mapping[str, Any],
    known: Mapping[str, Extension],
    reads: str = declared.IMAGE,
) -> None:
    """Raise UserError for an encoder's function that does not exist or takes other options."""
    try:
        one = declared.part(part_of(reference, known), "encoder")
    except StageError as error:
        raise UserError(f"{where}.model: {error}") from error
    if one.arguments[0] != reads:
        raise UserError(
            f"{where}.model: the first argument of {reference} is {one.arguments[0]}, and this "
            f"encoder reads {reads}s; name another function"
        )
    own = one.arguments[1:]
    for name in options:
        if name not in own and not one.takes_any:
            near = difflib.get_close_matches(name, own, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it takes {', '.join(own) or 'none'}"
            raise UserError(
                f"{where}.model_options has {name}, and {reference} has no such; {hint}"
            )
    for name in one.required:
        if name not in options and name != reads:
            raise UserError(f"{where}.model_options lacks {name}, which {reference} needs; give it")


def _check(where: str, method: Method, one: Declared) -> None:
    if one.trains_encoder and method.adapt != "ft":
        raise UserError(f"{where}: the loss of {method.head} takes the encoder; set adapt: ft")
    if method.trains_encoder and not one.trains_encoder:
        raise UserError(f"{where}: {method.head} is a head on frozen features; leave out adapt")
    given = _given(method.space)
    own = ", ".join(one.ranges) or "none of its own"
    for name in given:
        if name in _TRAINING and not one.trained:
            raise UserError(
                f"{where}.space has {name}, but {method.head} has no loss, so it is not trained by "
                f"steps; leave {name} out"
            )
        if name not in one.ranges and name not in (*_TRAINING, "scale"):
            near = difflib.get_close_matches(name, (*one.ranges, *_TRAINING), n=1)
            hint = f"did you mean {near[0]}?" if near else f"it declares {own}"
            raise UserError(
                f"{where}.space has {name}, which {method.head} does not declare; {hint}"
            )
    if one.trained and "lr" not in given:
        raise UserError(f"{where}.space lacks lr, which every method with a loss needs; give it")
    for name, limits in one.ranges.items():
        if name not in given:
            if limits.default is None:
                raise UserError(
                    f"{where}.space lacks {name}, which {method.head} declares; give it"
                )
            continue
        low, high = bounds(given[name])
        if (limits.low is not None and low < limits.low) or (
            limits.high is not None and high > limits.high
        ):
            raise UserError(
                f"{where}.space.{name} spans [{low:g}, {high:g}], and {method.head} declares it "
                f"{limits}; stay within that"
            )
        if limits.whole and not _is_whole(given[name]):
            raise UserError(
                f"{where}.space.{name} must be whole numbers, as {method.head} declares; use "
                f"randint, choice or one number"
            )


def _given(space: Space) -> dict[str, Domain]:
    """The domains that a file gives, without those that stand at their default."""
    fields = Space.model_fields
    return {
        name: domain
        for name, domain in space.domains.items()
        if name not in STANDARD or domain != fields[name].default
    }


def _is_whole(domain: Domain) -> bool:
    values: tuple[float, ...]
    match domain:
        case RandInt():
            return True
        case QUniform(quniform=values) | Choice(choice=values) | Grid(grid=values):
            pass
        case float() | int():
            values = (domain,)
        case _:
            return False
    return all(float(value).is_integer() for value in values)
