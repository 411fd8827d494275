"""Fingerprints made from parts are the same as those of the whole fields."""

import pytest

from jobs.corpus.reader_spec import ImageFolderReader
from orchestrator.errors import UserError
from orchestrator.experiment import load
from orchestrator.plan import build
from orchestrator.step.fingerprint import Texts, canonical, fingerprint


@pytest.mark.parametrize("name", load.bundled())
def test_every_steps_fingerprint_is_the_hash_of_its_fields(name: str) -> None:
    loaded = load.load(name)
    try:
        made = build.build(loaded)
    except UserError as error:
        pytest.skip(f"its data is not here: {error}")
    assert {a: fingerprint(s.fields) for a, s in made.steps.items()} == {
        a: s.fingerprint for a, s in made.steps.items()
    }


def test_a_specs_text_is_the_canonical_json_of_its_semantic_fields() -> None:
    recipe = load.load().pretrain.recipe
    texts = Texts()
    assert texts.of(recipe) == canonical(recipe.semantic())
    assert texts.of(recipe) is texts.of(recipe), "made twice"
    other = recipe.model_copy(update={"name": "other"})
    assert texts.of(other) == canonical(other.semantic()) != texts.of(recipe)


def test_the_settings_of_a_cell_bear_identity_as_fields_of_the_cell() -> None:
    cell = build.build(load.load()).of_kind("tune")[0].spec
    fields = cell.semantic()
    assert "settings" not in fields
    assert {"task", "fraction", "epochs", "halving"} < set(fields)
    assert not {"cpus", "memory_mb"} & set(fields)
    assert Texts().of(cell) == canonical(fields)


def test_a_silent_field_bears_identity_only_when_it_is_set() -> None:
    """So that a field which is added later leaves the results made before it valid."""
    plain = ImageFolderReader(path="x")
    assert "key_prefix" not in plain.semantic()
    assert Texts().of(plain) == canonical(plain.semantic())
    other = plain.model_copy(update={"key_prefix": "val/"})
    assert other.semantic() == plain.semantic() | {"key_prefix": "val/"}
    assert Texts().of(other) == canonical(other.semantic())
