"""How many runs train side by side, in a sentence, as the stage packs them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from jobs.pretrain.packs import Node
from orchestrator.cli import _run
from orchestrator.experiment import load
from orchestrator.plan import build
from orchestrator.plan.plan import Plan
from orchestrator.plan.together import together_line

MEMORY = ", as many as memory holds (measured before their first step)"


def planned(*overrides: str, noise: str = "0,5,10,20,30", seeds: str = "0") -> Plan:
    return build.build(load.load(noise=noise, seeds=seeds, overrides=list(overrides)))


def line(plan: Plan, nodes: Sequence[Node] | None) -> str | None:
    return together_line(plan, set(plan.steps), nodes, "it")


@pytest.mark.parametrize(
    ("overrides", "nodes", "wanted"),
    [
        (
            [],
            [Node(2, 0)],
            "5 runs in 2 worker groups, as many as it has room for at once; up to 3 of a group "
            f"that differ in noise alone train side by side{MEMORY}",
        ),
        (
            ["pretrain.resources.together=2"],
            [Node(1, 0)],
            "5 runs in 1 worker group, as many as it has room for at once; at most 2 "
            "(pretrain.resources.together) of a group that differ in noise alone train side by "
            "side",
        ),
        (
            ["pretrain.resources.together=1"],
            [Node(1, 0)],
            "5 runs in 1 worker group, as many as it has room for at once, one after another "
            "(pretrain.resources.together is 1)",
        ),
        (
            [],
            [Node(4, 0), Node(4, 0)],
            "5 runs in 5 worker groups, each by itself: it has room for all at once",
        ),
        (
            ["pretrain.resources.workers=2", "pretrain.resources.gpus_per_worker=1"],
            [Node(8, 4)],
            "5 runs in 2 worker groups, as many as it has room for at once; up to 3 of a group "
            f"that differ in noise alone train side by side{MEMORY}",
        ),
    ],
)
def test_the_line_says_what_the_cluster_and_the_file_decide(
    overrides: list[str], nodes: list[Node], wanted: str
) -> None:
    assert line(planned(*overrides), nodes) == f"Pre-training: {wanted}"


def test_runs_of_different_seeds_never_train_side_by_side() -> None:
    plan = planned(noise="0", seeds="0,1,2")
    found = line(plan, [Node(1, 0)])
    assert found is not None
    assert found.endswith("one after another: no two of a group differ in noise alone")
    assert line(plan, None) is None


def test_nothing_is_said_of_a_single_run_or_of_what_fits_nowhere() -> None:
    plan = planned()
    one = next(step.address for step in plan.of_kind("pretrain"))
    assert together_line(plan, {one}, [Node(1, 0)], "it") is None
    assert line(planned("pretrain.resources.cpus_per_worker=9"), [Node(2, 0)]) is None


def test_plan_says_it_for_this_machine_and_leaves_a_cluster_to_the_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    command = ["plan", "--noise", "0,10,20", "--seeds", "0", "--storage", str(tmp_path)]
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert _run(command) == 0
    assert "3 runs in 2 worker groups, as many as this machine (with 2" in capsys.readouterr().out
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert _run(command) == 0
    assert "Where the cluster has room for fewer at once, up to 3" in capsys.readouterr().out
    gpus = ["--set", "pretrain.resources.gpus_per_worker=0.5", "--gpus", "1"]
    assert _run([*command, *gpus]) == 0
    assert "3 runs in 2 worker groups, as many as a cluster of 1 GPUs" in capsys.readouterr().out
