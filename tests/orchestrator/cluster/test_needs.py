"""The resources that an experiment asks for, compared with Ray's."""

import pytest

from orchestrator.cluster import Resources
from orchestrator.cluster.needs import lacking
from orchestrator.experiment import load

HAVE = Resources(nodes=2, cpus=4, gpus=1, most_cpus=2, most_gpus=1)
EVERY = ("pretrain", "features", "tune")


@pytest.mark.parametrize(
    ("override", "kind", "expected"),
    [
        ("pretrain.resources.workers=5", "pretrain", "pretrain.resources asks for 5 CPUs"),
        (
            "pretrain.resources.gpus_per_worker=2",
            "pretrain",
            "2 GPUs for a run, but Ray has 4 and 1",
        ),
        ("features.gpus_per_worker=2", "features", "features asks for 1 CPUs and 2 GPUs"),
        ("tuning.cpus=3", "tune", "largest node has 2 and 1; lower it"),
        ("tuning.gpus=1.5", "tune", "tuning asks for 1 CPUs and 1.5 GPUs in one process"),
    ],
)
def test_missing_resources_are_reported_while_a_step_needs_them(
    override: str, kind: str, expected: str
) -> None:
    asks = load.load(overrides=[override])
    (sentence,) = lacking(asks, HAVE, EVERY)
    assert expected in sentence
    assert not [*lacking(asks, HAVE, set(EVERY) - {kind})]


def test_nothing_is_reported_if_all_fits() -> None:
    assert not [*lacking(load.load(overrides=["tuning.gpus=0.5"]), HAVE, EVERY)]
