"""`ray up` to `ray down` on machines of one's own, two of them played by this one.

Run by test_ray_up.py inside namespaces of its own (processes, network, mounts), so that Ray's ports
are free, `ray stop` finds no other Ray, and nothing outlives it. Takes a scratch folder; sets up an
SSH server with a key, a cluster file made from the shipped cluster/local.yaml, and does what
docs/cluster.md says. Prints one line of JSON for the test to judge.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import yaml

from commands import PATIENCE, TINY

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.prefix) / "bin"
HEAD, WORKER = "127.0.0.1", "127.0.0.2"


def run(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE, check=False)
    print(f"$ {shlex.join(words)}\n{done.stdout}{done.stderr}", file=sys.stderr, flush=True)
    if check and done.returncode:
        raise SystemExit(f"{words[0]} ended with {done.returncode}")
    return done


def own_home(folder: Path) -> Path:
    """The user's home with everything that is written to it kept in the scratch folder."""
    home = Path.home()
    for name in ("written", "work"):
        (folder / name).mkdir()
    layers = f"lowerdir={home},upperdir={folder}/written,workdir={folder}/work"
    run("mount", "-t", "overlay", "overlay", "-o", layers, str(home))
    for name in (".ssh", ".ray", "nml"):
        shutil.rmtree(home / name, ignore_errors=True)
    return home


def ssh_server(folder: Path, home: Path) -> Path:
    """sshd on port 22 of this namespace, for one key; the key's path."""
    keys = home / ".ssh"
    keys.mkdir(mode=0o700)
    for key in (keys / "id_ed25519", folder / "host_key"):
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key))
    (keys / "authorized_keys").write_text((keys / "id_ed25519.pub").read_text())
    Path("/run/sshd").mkdir(exist_ok=True)
    settings = {
        "ListenAddress": "0.0.0.0",
        "HostKey": str(folder / "host_key"),
        "PasswordAuthentication": "no",
        "UsePAM": "no",
        "StrictModes": "no",
        "PidFile": "none",
    }
    config = folder / "sshd_config"
    config.write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
    run("/usr/sbin/sshd", "-f", str(config))
    return keys / "id_ed25519"


def cluster_file(folder: Path, key: Path) -> Path:
    """The shipped file, with what is marked CHANGE changed, and this environment as the nodes'."""
    content: dict[str, Any] = yaml.safe_load((ROOT / "cluster/local.yaml").read_text())
    content["provider"] |= {"head_ip": HEAD, "worker_ips": [WORKER]}
    content["auth"] = {"ssh_user": "root", "ssh_private_key": str(key)}
    content |= {"min_workers": 1, "max_workers": 1}
    content["setup_commands"] = []  # everything is installed here
    content["file_mounts"] = {}  # the token lies in the home that both nodes share
    for name in ("head_start_ray_commands", "worker_start_ray_commands"):
        content[name] = [_here(command) for command in content[name]]
    # One machine: starting the second node must not stop the first.
    content["worker_start_ray_commands"] = content["worker_start_ray_commands"][1:]
    for name in (".profile", ".bash_profile", ".bashrc"):
        (Path.home() / name).write_text(f"export PATH={BIN}:$PATH\n")
    file = folder / "cluster.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def _here(command: str) -> str:
    changed = command.replace("~/nml/venv/bin", str(BIN))
    exports = f"PYTHONPATH={ROOT} RAY_enable_autoscaler_v2=0 RAY_USAGE_STATS_ENABLED=0"
    changed = changed.replace(
        "ray start --head", f"export {exports}; ray start --head --num-cpus=1"
    )
    return changed.replace(
        "ray start --address=$RAY_HEAD_IP",
        f"export {exports}; ray start --num-cpus=1 --node-ip-address={WORKER} "
        "--address=$RAY_HEAD_IP",
    )


def left() -> list[str]:
    """Ray's processes in this namespace."""
    found = [" ".join(p.info["cmdline"] or ()) for p in psutil.process_iter(["cmdline"])]
    return [line[:100] for line in found if "raylet" in line or "gcs_server" in line]


def main(folder: Path) -> dict[str, Any]:
    run("ip", "link", "set", "lo", "up")
    home = own_home(folder)
    os.chdir(home)
    os.environ |= {
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "RAY_AUTH_MODE": "token",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    run("ray", "get-auth-token", "--generate")
    file = cluster_file(folder, ssh_server(folder, home))
    started = time.monotonic()
    run("ray", "up", "--yes", "--no-config-cache", str(file))
    up = time.monotonic() - started
    started = time.monotonic()
    run(sys.executable, "-c", BOTH)
    joined = time.monotonic() - started
    work = folder / "experiment"
    work.mkdir()
    os.chdir(work)
    words = [*TINY, "--storage", str(folder / "nml-store")]
    refused = run("nml-orch", "submit", *TINY, check=False)
    sent = run("nml-orch", "submit", "--detach", "--id", "first", *words)
    shown = run("nml-orch", "submit", "--attach", "first", check=False)
    again = run("nml-orch", "submit", "--id", "second", *words, check=False)
    listed = run("nml-orch", "submit", "--list")
    print((home / "nml/mlflow.log").read_text()[-2000:], file=sys.stderr, flush=True)
    runs = run(sys.executable, "-c", MLFLOW)
    run("ray", "down", "--yes", str(file))
    return {
        "up_s": round(up, 1),
        "joined_s": round(joined, 1),
        "refused": [refused.returncode, refused.stderr],
        "sent": sent.stderr,
        "first": [shown.returncode, shown.stdout],
        "again": [again.returncode, again.stdout],
        "listed": listed.stdout,
        "runs": json.loads(runs.stdout.splitlines()[-1]),
        "left": left(),
    }


BOTH = """
import ray, time
ray.init("auto", log_to_driver=False, logging_level="ERROR")
while sum(node["Alive"] for node in ray.nodes()) < 2:
    time.sleep(0.2)
"""

MLFLOW = """
import json
from mlflow import MlflowClient
client = MlflowClient("http://127.0.0.1:5000")
(experiment,) = [e for e in client.search_experiments() if e.name == "demo"]
runs = client.search_runs([experiment.experiment_id], max_results=1000)
print(json.dumps(sorted(run.info.status for run in runs)))
"""

if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
