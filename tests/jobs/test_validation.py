"""What is wrong with a file is said in our own words, with the nearest name, and where it is."""

import re

import pytest
import yaml
from pydantic import ValidationError

from jobs import strict_yaml
from jobs.validation import in_words
from orchestrator.errors import UserError
from orchestrator.experiment import load

THEIRS = re.compile(
    r"Input should|Extra inputs|Field required|valid (integer|number|string|boolean|tuple)|"
    r"union_tag|found character|expected <block|mapping values are not|could not determine"
)
"""Words of pydantic's and PyYAML's messages."""


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("noise.kind=symetric", "did you mean symmetric?"),
        ("pretrain.recipe.objective=supervized", "did you mean supervised?"),
        ("tuning.schedule=linaer", "must be one of cosine, linear; did you mean linear?"),
        ("overlap=refuze", "did you mean refuse?"),
        ("corpus.reader={kind: imagefoldr, path: x}", "did you mean imagefolder?"),
        ("corpus.reader={path: x}", "`kind` must be digits, "),
        ("tuning.epochs=1.5", "must be a whole number"),
        ("tuning.epochs=0", "must be at least 1"),
        ("tuning.fractions=[101]", "must be at most 100"),
        ("tuning.fractions=5", "must be a list"),
        ("tasks=[]", "must have at least 1 entry"),
        ("title=[a]", "must be text"),
        ("tracking.enabled=maybe", "must be true or false"),
        ("corpus=3", "must be fields with values"),
        ("pretrain.recipe.schedule.lr=fast", "must be a number"),
    ],
)
def test_a_wrong_value_is_answered_in_plain_words(override: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        load.load(overrides=[override])
    assert said in str(caught.value)
    assert not THEIRS.search(str(caught.value))


@pytest.mark.parametrize(
    "text",
    [
        "a: [1, 2",
        "a: {b: 1",
        "a: b: c",
        "a:\n\tb: 1",
        "a: 'open",
        "a: @b",
        "a: *nothing",
        "a: !!python/object:os.system x",
        "a: 1\n b: 2",
        "[a]: {}",
        "a: 1\n---\nb: 2",
        "a: 1\na: 2",
        "a: 2024-13-01",
        "\x00",
        "a: |\n b\n  - c\n d: e\nf",
    ],
)
def test_broken_yaml_is_answered_in_one_line_of_our_own(text: str) -> None:
    try:
        strict_yaml.parse(text)
    except yaml.YAMLError as error:
        said = strict_yaml.in_words(error)
        assert said
        assert "\n" not in said
        assert "<unicode string>" not in said
        assert not THEIRS.search(said)
    else:
        pytest.skip("this parser takes it")


def test_an_unknown_error_of_a_library_is_not_shown() -> None:
    from pydantic import TypeAdapter
    from pydantic.networks import HttpUrl

    with pytest.raises(ValidationError) as caught:
        TypeAdapter(HttpUrl).validate_python("nonsense")
    assert in_words(caught.value.errors()[0]) == (
        "is not a value that this field takes; correct it"
    )
