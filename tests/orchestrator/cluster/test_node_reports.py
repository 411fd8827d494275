"""What the nodes of a cluster report before a sweep starts."""

from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from jobs.storage.folder import Folder
from orchestrator.cluster.nodes import _answer, _collect


def test_a_node_that_left_after_it_was_asked_is_not_part_of_the_check(
    ray_session: None, tmp_path: Path
) -> None:
    folder = Folder.of(tmp_path)
    folder.write_bytes("token", b"token")
    gone = ray.NodeID.from_random().hex()
    (here,) = (node["NodeID"] for node in ray.nodes() if node["Alive"])
    reports = []
    for node in (gone, here):
        pinned = NodeAffinitySchedulingStrategy(node, soft=False)
        task = ray.remote(_answer).options(num_cpus=0, scheduling_strategy=pinned)
        reports.append(_collect(folder, "token", node, task.remote(folder, "token", node)))
    assert reports[0] is None
    assert reports[1] is not None
    assert (reports[1].node, reports[1].storage_fault) == (here, "")
