"""A user's own files may have the names of our packages; we never import them instead."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nml_orch import HOME
from planted import FILES, TRAP, write_traps

A_CLUSTER = """
import ray, sys
ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""

IN_A_TASK = """
from nml_orch import pin
pin()
from orchestrator import cluster

def files():
    import importlib, os
    names = ("analysis.statistics", "jobs.storage.folder", "orchestrator.store.store")
    return os.getcwd(), *(importlib.import_module(name).__file__ for name in names)

with cluster.session():
    import ray
    for file in ray.get(ray.remote(files).remote()):
        print(file)
"""


@pytest.fixture
def traps(tmp_path: Path) -> Path:
    """A folder with a user's own files under our packages' names."""
    folder = tmp_path / "mine"
    write_traps(folder)
    return folder


def test_a_sweep_runs_among_a_users_files_of_our_names(planted: Path) -> None:
    assert {path.read_text() for path in map(planted.joinpath, FILES)} == {TRAP}
    assert (planted / "nml-store/report").is_dir()


@pytest.mark.slow
def test_workers_of_a_submitted_job_import_nothing_of_what_was_sent(traps: Path) -> None:
    """Ray tells a job's driver of the folder that was sent by the variable used here."""
    sent = json.dumps({"runtime_env": {"working_dir": str(traps)}})
    clean = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    clean |= {"RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(traps)}
    pipe = subprocess.PIPE
    head = subprocess.Popen(
        [sys.executable, "-c", A_CLUSTER], env=clean, stdin=pipe, stdout=pipe, text=True
    )
    assert head.stdout is not None
    try:
        address = head.stdout.readline().strip()
        done = subprocess.run(
            [sys.executable, "-c", IN_A_TASK],
            cwd=traps,
            env={**clean, "RAY_ADDRESS": address, "RAY_JOB_CONFIG_JSON_ENV_VAR": sent},
            capture_output=True,
            text=True,
            check=True,
            timeout=300,
        )
    finally:
        head.communicate()
    folder, *found = done.stdout.splitlines()
    assert "working_dir_files" in folder, done.stdout  # where Ray unpacks what was sent
    ours = ("analysis/statistics.py", "jobs/storage/folder.py", "orchestrator/store/store.py")
    assert found == [str(HOME / file) for file in ours]


def test_a_bundled_experiment_is_found_beside_a_users_folder(traps: Path) -> None:
    (traps / "experiments/demo.yaml").write_text("name: mine\n")
    done = subprocess.run(
        [sys.executable, "-m", "nml_orch", "plan", "demo", "--storage", "store"],
        cwd=traps,
        env={**os.environ, "PYTHONPATH": str(traps)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
