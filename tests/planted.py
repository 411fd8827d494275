"""A sweep with secrets planted in its environment and in the tracking URI of its file.

Files of a user lie where it runs, under the names of our packages. It is watched while it runs:
which command lines its processes have, and where they listen.
"""

import time
from contextlib import suppress
from pathlib import Path

import psutil

from commands import TINY, Command, Start, free_port

ROOT = Path(__file__).resolve().parents[1]
MARK = "planted-"
SECRETS = {
    "AWS_ACCESS_KEY_ID": "planted-aws-key-7d1",
    "AWS_SECRET_ACCESS_KEY": "planted-aws-secret-7d2",
    "AWS_SESSION_TOKEN": "planted-aws-token-7d3",
    "MLFLOW_TRACKING_USERNAME": "planted-user-7d4",
    "MLFLOW_TRACKING_PASSWORD": "planted-password-7d5",
    "MLFLOW_TRACKING_TOKEN": "planted-token-7d6",
    "HF_TOKEN": "planted-hf-7d7",
}
TRAP = "raise RuntimeError('a file of the user was imported')\n"
FILES = (
    "jobs.py",
    "analysis.py",
    "jobs/__init__.py",
    "orchestrator/__init__.py",
    "experiments/__init__.py",
)
WORDS = ["mine.yaml", *TINY, "--noise", "20", "--set", "tasks=[digits]"]
"""Of a TINY sweep one level and one task."""

IN_FILE = "http://planted-file-user:planted-file-pass@127.0.0.1:{port}/?token=planted-file-token"


def sweep(start: Start, folder: Path) -> None:
    """A sweep of WORDS whose MLflow never answers; its text and what was seen of it are kept."""
    text = (ROOT / "experiments/demo.yaml").read_text()
    uri = IN_FILE.format(port=free_port())
    (folder / "mine.yaml").write_text(f"{text}\ntracking:\n  uri: {uri}\n")
    write_traps(folder)
    path = folder.with_name("traps")  # without a colon, which ends an entry of PYTHONPATH
    write_traps(path)
    command = start(folder, "sweep", *WORDS, **SECRETS, PYTHONPATH=str(path), NML_FIGURES="1")
    lines: set[str] = set()
    ports: set[Listener] = set()
    while command.process.poll() is None:
        lines |= command_lines(command)
        ports |= listening(command.process.pid)
        time.sleep(1)
    code, output = command.finish()
    assert code == 0, output
    (folder / "screen.txt").write_text(output)
    (folder / "command-lines.txt").write_text("\n".join(sorted(lines)))
    (folder / "listening.txt").write_text("\n".join(map(" ".join, sorted(ports))))


def write_traps(folder: Path) -> None:
    """Put a user's files under our packages' names; to import one is an error."""
    for name in FILES:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(TRAP)


def command_lines(command: Command) -> set[str]:
    """Those of every process that came from a command."""
    found = set()
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if process.environ().get("NML_TEST_MARK") == command.mark:
                found.add(" ".join(process.cmdline()))
    return found


Listener = tuple[str, str, str]
"""An address of IPv4 or IPv6, a port, and the first word of the process's command line."""


def listening(pid: int) -> set[Listener]:
    """Where a process and what it started listen."""
    found = set()
    with suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        for process in [parent, *parent.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                name = " ".join(process.cmdline()[:1]).partition(" ")[0]
                for at in process.net_connections(kind="inet"):  # of both families
                    if at.status == psutil.CONN_LISTEN:
                        address = at.laddr.ip.removeprefix("::ffff:")
                        found.add((address, str(at.laddr.port), name))
    return found
