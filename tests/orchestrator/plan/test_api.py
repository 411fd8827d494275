"""Plans with an encoder behind an API: what bears identity, what is refused, what it would cost."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from jobs.features.spec import FeaturesStep
from orchestrator.errors import UserError
from orchestrator.experiment.model import Experiment
from orchestrator.plan import build
from orchestrator.plan.paid import accepting_drift, api_of
from orchestrator.plan.plan import Plan

LP = {"lp": {"head": "linear", "space": {"lr": 0.01}}}
ADA = {
    "name": "ada",
    "kind": "api",
    "base_url": "https://api.example/v1",
    "model": "text-embedding-ada-002",
}
FEATURES = "features/encoder/ada/remarks-films"


def plan(methods: dict[str, Any] = LP, features: Any = None, **changes: Any) -> Plan:
    given = {
        "name": "mine",
        "encoders": [{**ADA, **changes}],
        "tasks": ["remarks-films", "remarks-kitchen"],
        "tuning": {"methods": methods},
        **({"features": features} if features else {}),
    }
    return build.build(Experiment.model_validate(given))


def test_an_api_goes_the_way_of_every_other_encoder() -> None:
    found = plan()
    assert {step.kind for step in found.steps.values()} == {
        "corpus", "hashes", "overlap", "encoder", "features", "tune",
    }  # fmt: skip
    assert found.steps[FEATURES].inputs["encoder"] == "encoder/ada"
    assert len(found.of_kind("overlap")) == 2


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"base_url": "https://API.example/v1/"}, True),
        ({"base_url": "https://other.example/v1"}, False),
        ({"model": "text-embedding-3-small"}, False),
        ({"dimensions": 64}, False),
        ({"extra": {"input_type": "query"}}, False),
        ({"prompt": "query: "}, False),
        ({"pair": "join"}, False),
        ({"max_length": 128}, False),
        ({"truncate": "refuse"}, False),
        ({"key_env": "MY_KEY"}, True),
        ({"batch_rows": 1, "batch_tokens": 1, "concurrency": 1, "timeout": 1}, True),
        ({"price_per_million": 1, "max_price": 1}, True),
    ],
    ids=str,
)
def test_only_what_decides_a_vector_bears_identity(changes: dict[str, Any], same: bool) -> None:
    before, after = plan().steps, plan(**changes).steps
    for address in ("encoder/ada", FEATURES):
        assert (before[address].fingerprint == after[address].fingerprint) is same


def test_how_to_ask_travels_with_the_features_and_never_changes_other_encoders() -> None:
    own = api_of(plan(concurrency=9).steps[FEATURES])
    assert own is not None
    assert own.concurrency == 9
    assert "api" not in FeaturesStep(images="x", parts=("test",)).semantic()


def test_accepting_a_changed_model_changes_no_fingerprint() -> None:
    before = plan()
    after = accepting_drift(before)
    own = api_of(after.steps[FEATURES])
    assert own is not None
    assert own.accept_drift
    assert {a: s.fingerprint for a, s in before.steps.items()} == {
        a: s.fingerprint for a, s in after.steps.items()
    }


@pytest.mark.parametrize(
    ("methods", "features", "words"),
    [
        (
            {"lora": {"head": "linear", "adapt": "lora", "space": {"lr": 0.01}}},
            None,
            "stays behind",
        ),
        ({"ft": {"head": "linear", "adapt": "ft", "space": {"lr": 0.01}}}, None, "stays behind"),
        ({"zero": {"head": "zero_shot"}}, None, "needs an encoder with an image and a text tower"),
        (LP, {"views": {"count": 2, "mask": 0.1}}, "stays behind an API; leave the mask out"),
    ],
)
def test_what_needs_the_model_itself_is_refused_when_planned(
    methods: dict[str, Any], features: Any, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        plan(methods, features)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"base_url": "api.example/v1"}, "no http"),
        ({"base_url": "https://me:secret@api.example/v1"}, "has a user"),
        ({"base_url": "https://api.example/v1?key=secret"}, "a query"),
        ({"extra": {"api_key": "secret"}}, "looks like a key"),
        ({"extra": {"model": "other"}}, "field of its own"),
        ({"key_env": "sk-secret"}, "should match pattern"),
        ({"max_price": 3}, "price_per_million"),
        ({"concurrency": 0}, "greater than or equal to 1"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        plan(**changes)
