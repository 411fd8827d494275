"""One grammar of addresses: every written address can be parsed, and nothing else can."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.contract import SLUG
from orchestrator.errors import UserError
from orchestrator.experiment import load
from orchestrator.plan import build
from orchestrator.step.address import (
    Address,
    AddressError,
    AuditAddress,
    CellAddress,
    CellsAddress,
    CorpusAddress,
    FeaturesAddress,
    HashesAddress,
    NoiseAddress,
    OverlapAddress,
    PretrainedAddress,
    ReportAddress,
    RotationAddress,
    RunAddress,
    ScratchAddress,
    StepAddress,
    SweepAddress,
    TrackingAddress,
    Trial,
    kind_of,
    parse,
    parse_as,
    parse_step,
    scratch_of,
    short,
)
from orchestrator.step.step import KINDS

# Names that look like parts of the grammar are the ones that could be misread.
names = st.sampled_from(["encoder", "tune", "noise", "level", "seed", "0", "1e1"]) | st.from_regex(
    re.compile(SLUG, re.ASCII), fullmatch=True
).map(lambda name: name.strip()[:80])
levels = st.floats(0, 100, allow_nan=False)
seeds = st.integers(0, 2**63)
corpora = st.builds(CorpusAddress, names)
noises = st.builds(NoiseAddress, names, names, levels, st.none() | seeds)
runs = st.builds(RunAddress, names, names, names, levels, seeds)
encoders = runs | st.builds(PretrainedAddress, names)
features = st.builds(FeaturesAddress, encoders, names)
cells = st.builds(CellAddress, encoders, names, st.builds(Trial, names, levels, levels, seeds))
overlaps = st.builds(OverlapAddress, st.none() | names, names, seeds)
steps = corpora | st.builds(HashesAddress, names) | overlaps | noises | encoders | features | cells
marks = st.text("0123456789abcdef", min_size=12, max_size=12)
addresses = (
    steps
    | st.builds(CellsAddress, encoders, names)
    | st.builds(ReportAddress, names)
    | st.builds(SweepAddress, names)
    | st.builds(TrackingAddress, names)
    | st.builds(RotationAddress, features)
    | st.builds(AuditAddress, noises)
    | st.builds(ScratchAddress, steps, marks)
)


@given(addresses)
def test_parsing_gives_back_the_address_that_was_written(address: Address) -> None:
    assert parse(str(address)) == address


@given(addresses, addresses)
def test_two_addresses_never_share_a_text(one: Address, other: Address) -> None:
    assert (one == other) == (str(one) == str(other))


@given(steps, marks)
def test_a_scratch_address_is_the_same_from_the_text_of_a_step(
    address: StepAddress, mark: str
) -> None:
    written = scratch_of(str(address), mark + "0" * 52)
    assert parse_as(ScratchAddress, written) == ScratchAddress(address, mark)


@given(st.text("abc/=@.0123 e-") | st.lists(names).map("/".join) | addresses.map(str))
def test_a_parsed_address_writes_the_text_it_was_parsed_from(text: str) -> None:
    try:
        found = parse(text)
    except AddressError:
        return
    assert str(found) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "corpus",
        "corpus/",
        "corpus/Digits",
        "corpus/a/b",
        "corpus/a\n",
        "/corpus/a",
        "heads/a",
        "noise/c/n/10",
        "noise/c/n/level=",
        "noise/c/n/level=nan",
        "noise/c/n/level=-1",
        "noise/c/n/level=010",
        "noise/c/n/level=10.0",
        "noise/c/n/level=1_0",
        "noise/c/n/noise=10",
        "noise/c/n/level=10/draw=0",
        "noise/c/n/seed=0/level=10",
        "noise/c/n/draw=/level=10",
        "noise/c/n/draw=00/level=10",
        "pretrain/c/n/r/noise=0",
        "pretrain/c/n/r/noise=0/seed=1.5",
        "pretrain/encoder/x",
        "features/c/n/r/images",
        "tune/encoder/e/t/lp/fraction=100",
        "tune/encoder/e/t/lp/fraction=100/label_noise=0/seed=0",
        "tune/encoder/e/t/lp/label_noise=5/fraction=100/seed=0",
        "rotation/corpus/a",
        "audit/corpus/a",
        ".scratch/corpus/a",
        ".scratch/corpus/a@0123",
        ".scratch/report/a@0123456789ab",
    ],
)
def test_a_text_that_is_not_an_address_is_refused_in_a_sentence(text: str) -> None:
    with pytest.raises(AddressError) as caught:
        parse(text)
    assert str(caught.value).startswith(repr(text))
    assert isinstance(caught.value, UserError)


def test_an_address_of_another_form_is_refused() -> None:
    with pytest.raises(AddressError, match="not the address of a step"):
        parse_step("report/demo")
    with pytest.raises(AddressError, match="no FeaturesAddress"):
        parse_as(FeaturesAddress, "corpus/digits")


def test_every_step_of_a_plan_has_an_address_of_its_kind() -> None:
    forms = {
        "corpus": CorpusAddress,
        "hashes": HashesAddress,
        "overlap": OverlapAddress,
        "noise": NoiseAddress,
        "pretrain": RunAddress,
        "encoder": PretrainedAddress,
        "features": FeaturesAddress,
        "tune": CellAddress,
    }
    seen = set()
    for name in ("demo", "encoders-practical"):
        made = build.build(load.load(name, overrides=["tuning.label_noise=[0,20]"]))
        for step in made.steps.values():
            assert type(parse_step(step.address)) is forms[step.kind]
            assert kind_of(step.address) == step.kind
            seen.add(step.kind)
    assert seen == set(KINDS)


@given(runs, names)
def test_a_short_address_leaves_out_the_corpus_noise_and_recipe(
    run: RunAddress, images: str
) -> None:
    assert short(str(FeaturesAddress(run, images))) == (
        f"noise={run.level:g}/seed={run.seed}/{images}"
    )
    assert short(str(CorpusAddress(images))) == images
