"""A private Ray runs no process that only a cluster needs, and Ray Data works without."""

import psutil
import pytest
import ray
import ray.data  # before Ray starts, as a sweep imports its stages
from ray.data._internal import stats


def line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it has ended meanwhile
        return ""


def test_a_private_ray_has_no_autoscaler_log_monitor_or_dashboard(ray_session: None) -> None:
    started = [line(each) for each in psutil.Process().children(recursive=True)]
    assert any("raylet/raylet" in line for line in started)
    names = ("monitor.py", "log_monitor.py", "dashboard.py")
    assert [line for line in started if any(f"/{name} " in line for name in names)] == []


@pytest.mark.skipif(
    not hasattr(stats, "get_or_create_stats_actor"), reason="this Ray calls the actor otherwise"
)
def test_ray_data_works_without_the_actor_that_counts_for_the_dashboard(ray_session: None) -> None:
    doubled = ray.data.range(3).map(lambda row: {"id": 2 * row["id"]})
    assert sorted(row["id"] for row in doubled.take_all()) == [0, 2, 4]
    named = {actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)}
    assert "datasets_stats_actor" not in named
