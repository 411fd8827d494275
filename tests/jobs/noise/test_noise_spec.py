"""The settings of noise in an experiment file."""

import pytest
from pydantic import TypeAdapter, ValidationError

from jobs.noise.spec import Noise, NoiseStep

ADAPTER: TypeAdapter[Noise] = TypeAdapter(Noise)

EXTRA: dict[str, dict[str, object]] = {
    "symmetric": {},
    "pair": {},
    "groups": {"file": "g.csv"},
    "transition": {"file": "t.npy"},
    "subset": {"classes": ["cat", 3]},
    "instance": {"file": "p.parquet"},
    "given": {"file": "t.parquet", "column": "worse"},
    "caption_swap": {},
    "caption_swap_near": {},
}


def noise(kind: str, **fields: object) -> Noise:
    return ADAPTER.validate_python(
        {"name": "n", "kind": kind, "levels": [5], **EXTRA[kind], **fields}
    )


@pytest.mark.parametrize("kind", EXTRA)
def test_a_noises_name_levels_and_paths_do_not_affect_a_levels_identity(kind: str) -> None:
    one = noise(kind)
    changed: dict[str, object] = {"name": "other", "levels": (0.0, 10.0)}
    if "file" in EXTRA[kind]:
        changed["file"] = "/elsewhere/" + str(EXTRA[kind]["file"])
    other = one.model_copy(update=changed)
    steps = [NoiseStep(corpus="c", noise=which, level=5).semantic() for which in (one, other)]
    assert steps[0] == steps[1]
    assert steps[0]["noise"]["kind"] == kind


@pytest.mark.parametrize("kind", EXTRA)
def test_settings_that_decide_the_rows_affect_identity(kind: str) -> None:
    base = noise(kind).semantic()
    if kind == "given":
        assert noise(kind, column="other").semantic() != base
    else:
        for change in ({"seed": 1}, {"of": "subset"}, {"classes": [1, 2]}):
            assert noise(kind, **change).semantic() != base
    if "sha256" in type(noise(kind)).model_fields:
        assert noise(kind, sha256="0" * 64).semantic() != base


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        ("symmetric", {"rate": 1}, "Extra inputs"),
        ("symmetric", {"file": "x"}, "Extra inputs"),
        ("given", {"seed": 1}, "Extra inputs"),
        ("subset", {"classes": ["cat"]}, "at least 2"),
        ("pair", {"levels": [5, 5]}, "given twice"),
        ("pair", {"levels": [100]}, "less than 100"),
        ("groups", {"sha256": "abc"}, "pattern"),
        ("caption_swap_near", {"file": "x.csv"}, "given together"),
        ("caption_swap_near", {"column": "x"}, "given together"),
    ],
)
def test_invalid_settings_are_refused(kind: str, fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        noise(kind, **fields)
