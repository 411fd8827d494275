"""What the stage's Tune runs have in common: they are quiet, and end when the user asks to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ray import tune
from ray.tune.execution import class_cache

from jobs.contract import Hooks
from jobs.tuning.trained import Configuration

Drawn = Mapping[str, Sequence[Configuration]]
"""A cell's address -> its configurations."""

LOST_WORKERS = 1  # times a cell or a configuration is started again after its process has died

QUIET = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # else three log files a trial
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # else a traceback for a lost process
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # the caller decides what Ctrl-C means
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}


def withhold_keys() -> None:
    """Keep this process's AWS keys out of the command lines of Tune's actors.

    Every user of a node can list those. Workers have the node's own environment or rights.
    """
    passed_on = class_cache.ENV_VARS_TO_PROPAGATE
    passed_on -= {name for name in passed_on if name.startswith("AWS_")}


class StopWhenAsked(tune.Stopper):
    """Ends the run once the user asked to."""

    def __init__(self, hooks: Hooks) -> None:
        self._hooks = hooks

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune writes a copy of its settings, which nobody restores

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """No trial is stopped apart."""
        return False

    def stop_all(self) -> bool:
        """Whether the whole run ends."""
        return self._hooks.stopping()
