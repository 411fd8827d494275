"""Where every process of ours starts: the one import name that no file of a user's has.

A user's files may be called `orchestrator`, `jobs`, `analysis` or `experiments` too, and Python
takes the first that it finds: in the working folder, on PYTHONPATH, in what a submitted sweep
brought along. So a driver (`nml-orch`, `python -m nml_orch`) and a Ray worker (started by
`orchestrator/cluster`) import the three packages from where they were installed before they do
anything else. Python finds their modules through them from then on. Processes that these fork
inherit it.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

HOME = Path(__file__).resolve().parents[1]
"""The folder in which this package and its siblings were installed."""

EXPERIMENTS = HOME / "experiments"
"""The experiment files that ship with the project."""


def pin() -> None:
    """Import our packages from `HOME`, whatever else `sys.path` holds before it."""
    sys.path.insert(0, str(HOME))
    try:
        for package in ("analysis", "jobs", "orchestrator"):
            importlib.import_module(package)
    finally:
        sys.path.remove(str(HOME))


def main() -> None:
    """Run the command line, as `nml-orch` does."""
    pin()
    from orchestrator.cli import main as run

    run()
