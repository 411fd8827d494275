"""The control plane: plans an experiment, runs its steps, and keeps their results."""

from pathlib import Path

STORAGE = "nml-store"
"""The folder of results, unless the experiment names another."""

HOME = Path(__file__).resolve().parents[1]
"""The folder in which this package and its siblings are installed."""

EXPERIMENTS = HOME / "experiments"
"""The experiment files that ship with the project."""
