"""From `ray up` to `ray down`, over SSH, on a machine that plays two."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import stores
from stores import LEVEL_20

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

NEEDED = ("unshare", "ip", "ssh", "ssh-keygen", "rsync", "/usr/sbin/sshd")
SCRIPT = Path(__file__).with_name("own_machine.py")


def _missing() -> str:
    absent = [name for name in NEEDED if shutil.which(name) is None]
    if absent:
        return f"needs {', '.join(absent)} (Debian: openssh-server, rsync, iproute2)"
    if os.geteuid() != 0:
        return "needs root, for namespaces of its own"
    alone = subprocess.run(["unshare", "--mount", "--pid", "--net", "--fork", "true"], check=False)
    return "" if alone.returncode == 0 else "needs the right to make namespaces"


@pytest.fixture(scope="module")
def happened(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    missing = _missing()
    if missing:
        pytest.skip(missing)
    undisturbed: Path = request.getfixturevalue("undisturbed")
    folder = stores.copy(undisturbed, tmp_path_factory.mktemp("own"), *LEVEL_20[1:])
    path = os.pathsep.join([str(SCRIPT.parents[1]), str(SCRIPT.parents[2])])
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_", "AWS_"))}
    alone = ["unshare", "--mount", "--pid", "--net", "--fork", "--kill-child", "--mount-proc"]
    log = folder / "log.txt"
    with log.open("w") as written:
        done = subprocess.run(
            [*alone, sys.executable, str(SCRIPT), str(folder)],
            env={**clean, "PYTHONPATH": path},
            stdout=subprocess.PIPE,
            stderr=written,
            text=True,
            check=False,
        )
    assert done.returncode == 0, log.read_text()[-8000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps({name: found[name] for name in ("up_s", "joined_s")}))
    return found


def test_a_sweep_sent_from_outside_ends_on_the_cluster(happened: dict[str, Any]) -> None:
    code, output = happened["first"]
    assert code == 0, output
    assert "16 reused, 8 done" in output
    assert "OOD accuracy, noise in %" in output


def test_storage_inside_the_job_is_refused_before_anything_is_sent(
    happened: dict[str, Any],
) -> None:
    code, output = happened["refused"]
    assert code == 2
    assert "--storage" in output
    assert "first" in happened["listed"]
    assert happened["listed"].count("\n") == 2


def test_sent_again_it_recomputes_nothing(happened: dict[str, Any]) -> None:
    code, output = happened["again"]
    assert code == 0, output
    assert "24 reused" in output


def test_mlflow_on_the_head_holds_it_all(happened: dict[str, Any]) -> None:
    assert set(happened["runs"]) == {"FINISHED"}
    assert len(happened["runs"]) > 5


def test_ray_down_leaves_no_ray(happened: dict[str, Any]) -> None:
    assert happened["left"] == []
