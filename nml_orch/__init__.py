"""The start of every process: the one import name that no file of a user has.

A user's files may also be called `orchestrator`, `jobs`, `analysis` or `experiments`. Python takes
the first that it finds: in the working folder, on PYTHONPATH, in what a submitted sweep brought. So
a driver (`nml-orch`, `python -m nml_orch`) and a Ray worker (started by `orchestrator/cluster`)
first import the three packages from where they are installed. Python then finds their modules
through them. Processes that these fork inherit it.
"""

from __future__ import annotations

import gc
import importlib
import sys
from pathlib import Path

HOME = Path(__file__).resolve().parents[1]
"""The folder in which this package and its siblings are installed."""


OBJECTS = 10_000
"""New objects after which Python looks for garbage; usually 700."""


def pin() -> None:
    """Import our packages from `HOME`, even if `sys.path` has others of their names before it."""
    sys.path.insert(0, str(HOME))
    try:
        for package in ("analysis", "jobs", "orchestrator"):
            importlib.import_module(package)
    finally:
        sys.path.remove(str(HOME))


def prepare() -> None:
    """Prepare this process for our work: `pin`, and look for garbage less often.

    Importing torch, timm and Ray makes hundreds of thousands of objects and no garbage. Python's
    usual search takes a fifth of that time.
    """
    gc.set_threshold(OBJECTS)
    pin()


def main() -> None:
    """Run the command line, as `nml-orch` does."""
    prepare()
    from orchestrator.cli import main as run

    run()
