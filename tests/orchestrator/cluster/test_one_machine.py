"""A private Ray runs no process that only a cluster needs, and starts workers by a shorter way."""

import json
import os
import sys
from pathlib import Path

import psutil
import pytest
import ray
import ray.data  # before Ray starts, as a sweep imports its stages
from ray.data._internal import stats

from orchestrator.cluster.setup_worker import command


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
def test_ray_data_works_without_its_own_actors(ray_session: None) -> None:
    doubled = ray.data.range(3).map(lambda row: {"id": 2 * row["id"]})
    assert sorted(row["id"] for row in doubled.take_all()) == [0, 2, 4]
    named = {actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)}
    assert not named & {"datasets_stats_actor", "AutoscalingCoordinator"}


@pytest.mark.slow
def test_a_sweep_runs_without_them(planted: Path) -> None:
    """Nor does Ray Train ask for nodes. Seen from outside once a second, through all of a sweep."""
    lines = (planted / "command-lines.txt").read_text()
    assert "ray::TrainController" in lines
    assert "ray::_AutoscalingCoordinatorActor" not in lines
    assert "ray::_StatsActor" not in lines


class Asked:
    """An actor that tells a variable of its environment."""

    def variable(self, name: str) -> str | None:
        return os.environ.get(name)


@pytest.mark.parametrize(
    ("given", "seen"),
    [("plain", "plain"), ("a b'\"c", "a b'\"c"), ("${NML_RATES}x", "x")],
    ids=["plain", "quotes", "to be expanded by Ray"],
)
def test_a_worker_gets_the_variables_of_its_runtime_environment(
    given: str, seen: str, ray_session: None
) -> None:
    env = {"env_vars": {"NML_ASKED": given}}
    asked = ray.remote(num_cpus=0, runtime_env=env)(Asked).remote()
    assert ray.get(asked.variable.remote("NML_ASKED")) == seen
    ray.kill(asked)


WORKER = "/somewhere/workers/default_worker.py"
RAYS = Path(ray.__file__).parent / "_private" / "workers"


def words(context: str, language: str = "PYTHON") -> list[str]:
    mark = f"--serialized-runtime-env-context={context}"
    return [
        "-s",
        WORKER,
        "--gcs-address=a:1",
        f"--language={language}",
        mark,
        "--runtime-env-hash=7",
    ]


def test_the_worker_is_started_at_once_where_only_variables_are_set() -> None:
    context = {"env_vars": {"A": "1"}, "py_executable": sys.executable, "java_jars": []}
    line, variables = command(words(json.dumps(context)))
    assert line == [sys.executable, "-s", WORKER, "--gcs-address=a:1", "--runtime-env-hash=7"]
    assert variables == {"A": "1"}


@pytest.mark.parametrize(
    ("context", "language"),
    [
        ({"command_prefix": ["conda", "activate", "&&"]}, "PYTHON"),
        ({"py_executable": "/other/python"}, "PYTHON"),
        ({"override_worker_entrypoint": "/in/a/container.py"}, "PYTHON"),
        ({"something_new": True}, "PYTHON"),
        ({"env_vars": {"A": "$HOME"}}, "PYTHON"),
        ({"env_vars": {"A": "1"}}, "JAVA"),
    ],
)
def test_any_other_environment_is_for_rays_own_script(
    context: dict[str, object], language: str
) -> None:
    given = words(json.dumps(context), language)
    usual = [str(RAYS / "default_worker.py") if word == WORKER else word for word in given]
    assert command(given) == ([sys.executable, str(RAYS / "setup_worker.py"), *usual], {})
