"""The grammar of addresses. Every address is written and read here, and nowhere else.

    corpus/<corpus>
    hashes/<corpus>
    overlap/pretrain/<corpus>/<task>/limit=1
    overlap/encoder/<task>/limit=1        for encoders that are not trained here
    noise/<corpus>/<noise>/draw=0/level=10       labels that are given: without draw=
    pretrain/<run>                        <run> is <corpus>/<noise>/<recipe>/noise=10/seed=0
    encoder/<name>                        an encoder that is not trained here
    features/<encoder>/<images>           <encoder> is a <run>, or encoder/<name>
    tune/<encoder>/<task>/<method>/fraction=100[/label_noise=20]/seed=0
    tune/<encoder>/<method>               all cells of one encoder and method
    report/<experiment>    sweep/<experiment>    tracking/<experiment>
    rotation/<features>    audit/<noise>
    .scratch/<step>@<start of its fingerprint>

An address is a folder below the root of a store, or (the group of cells, sweep, tracking) the name
of a run or a lease. Each form is a frozen dataclass: `str` writes it, `parse` reads it. Names are
`Slug`s. Levels and shares are percentages, written and kept with six significant digits.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeAlias, TypeVar

from orchestrator.errors import UserError
from orchestrator.step.parts import is_named, number, slug, whole

SCRATCH = ".scratch"
FINGERPRINT_CHARACTERS = 12  # of a fingerprint, in the address of scratch


class AddressError(UserError):
    """A text is not an address, or not an address of the wanted form."""


@dataclass(frozen=True)
class CorpusAddress:
    """A corpus."""

    corpus: str

    def __str__(self) -> str:
        return f"corpus/{self.corpus}"


@dataclass(frozen=True)
class HashesAddress:
    """What a corpus's images are compared by."""

    corpus: str

    def __str__(self) -> str:
        return f"hashes/{self.corpus}"


@dataclass(frozen=True)
class OverlapAddress:
    """A task's test images that are trained on."""

    corpus: str | None  # of pre-training; None: for encoders that are not trained here
    task: str
    limit: int  # percent of the test images, above which the task is refused

    def __str__(self) -> str:
        of = "encoder" if self.corpus is None else f"pretrain/{self.corpus}"
        return f"overlap/{of}/{self.task}/limit={self.limit}"


@dataclass(frozen=True)
class NoiseAddress:
    """One level of a draw of noise over a corpus."""

    corpus: str
    noise: str
    level: float  # percent
    draw: int | None  # its seed; None where nothing is drawn

    def __post_init__(self) -> None:
        _round(self, "level")

    def __str__(self) -> str:
        draw = "" if self.draw is None else f"/draw={self.draw}"
        return f"{self.folder(self.corpus, self.noise)}{draw}/level={self.level:g}"

    @staticmethod
    def folder(corpus: str, noise: str) -> str:
        """The folder that holds all draws and levels of a noise."""
        return f"noise/{corpus}/{noise}"


@dataclass(frozen=True)
class RunAddress:
    """A pre-training run, and the encoder that it trains."""

    corpus: str
    noise: str
    recipe: str
    level: float  # percent
    seed: int

    def __post_init__(self) -> None:
        _round(self, "level")

    @property
    def encoder(self) -> str:
        """The encoder, as addresses of its features and cells have it."""
        return f"{self.corpus}/{self.noise}/{self.recipe}/noise={self.level:g}/seed={self.seed}"

    def __str__(self) -> str:
        return f"pretrain/{self.encoder}"


@dataclass(frozen=True)
class PretrainedAddress:
    """An encoder that is not trained here. Given features have no such step, only the name."""

    name: str

    @property
    def encoder(self) -> str:
        """The encoder, as addresses of its features and cells have it."""
        return f"encoder/{self.name}"

    def __str__(self) -> str:
        return self.encoder


EncoderAddress: TypeAlias = RunAddress | PretrainedAddress


@dataclass(frozen=True)
class FeaturesAddress:
    """An encoder's features of a set of images."""

    of: EncoderAddress
    images: str

    @staticmethod
    def folder(of: EncoderAddress) -> str:
        """The folder that holds all features of an encoder."""
        return f"features/{of.encoder}"

    def __str__(self) -> str:
        return f"{self.folder(self.of)}/{self.images}"


@dataclass(frozen=True)
class Trial:
    """What distinguishes the cells of one encoder and task."""

    method: str
    fraction: float  # of the training rows, percent
    label_noise: float  # downstream, percent; 0 is not written
    seed: int

    def __post_init__(self) -> None:
        _round(self, "fraction")
        _round(self, "label_noise")

    def __str__(self) -> str:
        noisy = f"/label_noise={self.label_noise:g}" if self.label_noise else ""
        return f"{self.method}/fraction={self.fraction:g}{noisy}/seed={self.seed}"


@dataclass(frozen=True)
class CellAddress:
    """A cell: one task and one method on one encoder."""

    of: EncoderAddress
    task: str
    trial: Trial

    @staticmethod
    def folder(of: EncoderAddress) -> str:
        """The folder that holds all cells of an encoder."""
        return f"tune/{of.encoder}"

    def __str__(self) -> str:
        return f"{self.folder(self.of)}/{self.task}/{self.trial}"


@dataclass(frozen=True)
class CellsAddress:
    """All cells of one encoder and method."""

    of: EncoderAddress
    method: str

    def __str__(self) -> str:
        return f"tune/{self.of.encoder}/{self.method}"


@dataclass(frozen=True)
class _ExperimentAddress:
    """An address that each experiment has once."""

    experiment: str
    kind: ClassVar[str]

    def __str__(self) -> str:
        return f"{self.kind}/{self.experiment}"


class ReportAddress(_ExperimentAddress):
    """The report of an experiment."""

    kind = "report"


class SweepAddress(_ExperimentAddress):
    """The tracking run of an experiment's sweeps."""

    kind = "sweep"


class TrackingAddress(_ExperimentAddress):
    """The lease of the one driver that may write an experiment's tracking runs."""

    kind = "tracking"


@dataclass(frozen=True)
class RotationAddress:
    """The rotation of a feature space against the clean encoder's."""

    of: FeaturesAddress

    def __str__(self) -> str:
        return f"rotation/{self.of}"


@dataclass(frozen=True)
class AuditAddress:
    """The audit of one level of noise."""

    of: NoiseAddress

    def __str__(self) -> str:
        return f"audit/{self.of}"


StepAddress: TypeAlias = (
    CorpusAddress
    | HashesAddress
    | OverlapAddress
    | NoiseAddress
    | RunAddress
    | PretrainedAddress
    | FeaturesAddress
    | CellAddress
)


@dataclass(frozen=True)
class ScratchAddress:
    """What an interrupted step with one fingerprint needs to continue."""

    of: StepAddress
    fingerprint: str  # its start, FINGERPRINT_CHARACTERS hexadecimal digits

    def __str__(self) -> str:
        return scratch_of(str(self.of), self.fingerprint)


Address: TypeAlias = (
    StepAddress
    | CellsAddress
    | _ExperimentAddress
    | RotationAddress
    | AuditAddress
    | ScratchAddress
)


def parse(text: str) -> Address:
    """Parse an address; `str` gives the text back. Raises AddressError for any other text."""
    try:
        found = _parsed(text.split("/"))
    except ValueError as error:
        raise AddressError(f"{text!r} is no address: {error}") from None
    if str(found) != text:  # a number in other digits, such as 05 or 1e1
        raise AddressError(f"{text!r} is no address: it would be written {found}")
    return found


Form = TypeVar("Form", bound=Address)


def parse_as(form: type[Form], text: str) -> Form:
    """The address of one form. Raises AddressError for a text that has another form."""
    found = parse(text)
    if not isinstance(found, form):
        raise AddressError(f"{text!r} is no {form.__name__}")
    return found


def parse_step(text: str) -> StepAddress:
    """The address of a step. Raises AddressError for any other text."""
    found = parse(text)
    if not isinstance(found, StepAddress):
        raise AddressError(f"{text!r} is not the address of a step")
    return found


def scratch_of(step: str, fingerprint: str) -> str:
    """The address of a step's scratch folder, from the step's address and its whole fingerprint.

    Does not parse the step's address: reading a store needs this for 50,000 steps.
    """
    return f"{SCRATCH}/{step}@{fingerprint[:FINGERPRINT_CHARACTERS]}"


def kind_of(address: str) -> str:
    """The first part of an address: of a step, its kind."""
    return address.partition("/")[0]


def short(address: str) -> str:
    """An address without its kind, corpus, noise and recipe, which a sweep has only one of."""
    rest = address.partition("/")[2]
    _, level, below = rest.partition("/noise=")
    return f"noise={below}" if level else rest


_OF_EXPERIMENTS = {form.kind: form for form in (ReportAddress, SweepAddress, TrackingAddress)}


def _parsed(parts: Sequence[str]) -> Address:
    match parts:
        case ["corpus", corpus]:
            return CorpusAddress(slug(corpus))
        case ["hashes", corpus]:
            return HashesAddress(slug(corpus))
        case ["overlap", "pretrain", corpus, task, limit]:
            return OverlapAddress(slug(corpus), slug(task), whole("limit", limit))
        case ["overlap", "encoder", task, limit]:
            return OverlapAddress(None, slug(task), whole("limit", limit))
        case ["noise", corpus, noise, level]:
            return NoiseAddress(slug(corpus), slug(noise), number("level", level), None)
        case ["noise", corpus, noise, draw, level]:
            drawn = whole("draw", draw)
            return NoiseAddress(slug(corpus), slug(noise), number("level", level), drawn)
        case ["pretrain", *run]:
            return _run(run)
        case ["encoder", name]:
            return PretrainedAddress(slug(name))
        case ["features", *encoder, images]:
            return FeaturesAddress(_encoder(encoder), slug(images))
        case ["tune", *encoder, task, method, share, noise, seed] if is_named("label_noise", noise):
            noisy = number("label_noise", noise)
            return _cell(encoder, task, method, share, noisy, seed)
        case ["tune", *encoder, task, method, share, seed] if is_named("fraction", share):
            return _cell(encoder, task, method, share, 0.0, seed)
        case ["tune", *encoder, method]:
            return CellsAddress(_encoder(encoder), slug(method))
        case [kind, experiment] if kind in _OF_EXPERIMENTS:
            return _OF_EXPERIMENTS[kind](slug(experiment))
        case ["rotation", *below] if isinstance(of := _parsed(below), FeaturesAddress):
            return RotationAddress(of)
        case ["audit", *below] if isinstance(over := _parsed(below), NoiseAddress):
            return AuditAddress(over)
        case [".scratch", *step]:
            return _scratch("/".join(step))
    raise ValueError(f"no kind {parts[0]!r} has {len(parts) - 1} parts after it")


def _run(parts: Sequence[str]) -> RunAddress:
    match parts:
        case [corpus, noise, recipe, level, seed]:
            at = number("noise", level)
            return RunAddress(slug(corpus), slug(noise), slug(recipe), at, whole("seed", seed))
    raise ValueError("a run is CORPUS/NOISE/RECIPE/noise=LEVEL/seed=SEED")


def _encoder(parts: Sequence[str]) -> EncoderAddress:
    """The encoder of an address. The number of parts tells a corpus named `encoder` apart."""
    if len(parts) == 2 and parts[0] == "encoder":
        return PretrainedAddress(slug(parts[1]))
    return _run(parts)


def _cell(
    encoder: Sequence[str], task: str, method: str, share: str, label_noise: float, seed: str
) -> CellAddress:
    trial = Trial(slug(method), number("fraction", share), label_noise, whole("seed", seed))
    return CellAddress(_encoder(encoder), slug(task), trial)


def _scratch(text: str) -> ScratchAddress:
    step, mark, fingerprint = text.rpartition("@")
    if not mark or not re.fullmatch(f"[0-9a-f]{{{FINGERPRINT_CHARACTERS}}}", fingerprint):
        raise ValueError(f"it ends in no @ and {FINGERPRINT_CHARACTERS} hexadecimal digits")
    of = _parsed(step.split("/"))
    if not isinstance(of, StepAddress):
        raise ValueError(f"{step} is not the address of a step")
    return ScratchAddress(of, fingerprint)


def _round(address: NoiseAddress | RunAddress | Trial, name: str) -> None:
    """The number as addresses write it, so that equal addresses are equal texts."""
    object.__setattr__(address, name, float(f"{getattr(address, name) + 0.0:g}"))
