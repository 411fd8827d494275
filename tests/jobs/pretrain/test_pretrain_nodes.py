"""Runs that no longer fit wait for the node that comes for a lost one, and for nothing else.

On real nodes: tests/cluster/test_nodes.py.
"""

from collections.abc import Callable
from typing import Any

import pytest
import ray

from jobs.contract import Hooks, Work
from jobs.pretrain import nodes
from jobs.pretrain.packs import Node
from jobs.pretrain.spec import Resources

TWO = Resources(workers=2, cpus_per_worker=1)


def node(*, alive: bool = True) -> dict[str, Any]:
    return {"Alive": alive, "NodeID": "n", "Resources": {"CPU": 1.0} if alive else {}}


@pytest.fixture
def found(
    monkeypatch: pytest.MonkeyPatch, make_work: Callable[..., Work], supervised: Callable[..., Any]
) -> Callable[..., tuple[list[Node], set[str]]]:
    """The nodes that two workers get, and what is said meanwhile, as the cluster changes."""
    monkeypatch.setattr(nodes, "LOOK_SECONDS", 0.0)
    work = make_work(supervised(), workers=2)

    def room(*looks: list[dict[str, Any]], stop_at: int = 1_000) -> tuple[list[Node], set[str]]:
        said: list[str] = []
        seen = iter([look for look in looks for _ in range(2)])  # it looks twice in each round
        now = [looks[-1]]

        def look() -> list[dict[str, Any]]:
            now[0] = next(seen, now[0])
            return now[0]

        monkeypatch.setattr(ray, "nodes", look)
        hooks = Hooks(
            done=lambda *_: None,
            say=lambda address, share, words: said.append(words),
            stopping=lambda: len(said) >= stop_at,
        )
        return nodes.room_for(TWO, [work], hooks), set(said)

    return room


Found = Callable[..., tuple[list[Node], set[str]]]
ONE_LOST = [node(), node(alive=False)]


def test_a_node_in_place_of_a_lost_one_is_waited_for(found: Found) -> None:
    room, said = found(ONE_LOST, ONE_LOST, [*ONE_LOST, node()])
    assert room == [Node(1.0, 0.0)] * 2
    assert said == {"waits for a node in place of a lost one"}


def test_where_no_node_was_lost_nothing_is_waited_for(found: Found) -> None:
    assert found([node()], [node(), node()]) == ([Node(1.0, 0.0)], set())


def test_the_wait_ends(found: Found, monkeypatch: pytest.MonkeyPatch) -> None:
    assert found(ONE_LOST, stop_at=3)[0] == [Node(1.0, 0.0)]  # by a request to stop
    monkeypatch.setattr(nodes, "REPLACEMENT_SECONDS", 0.05)
    room, said = found(ONE_LOST)
    assert room == [Node(1.0, 0.0)]
    assert said
