"""Settings that all Tune runs of the stage share: quiet output, and a stop on request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ray import tune
from ray.tune.execution import class_cache

from jobs.contract import Hooks
from jobs.tuning.trained import Configuration

Drawn = Mapping[str, Sequence[Configuration]]
"""A cell's address -> its configurations."""

LOST_WORKERS = 1  # how often a cell or configuration is restarted after its process has died

QUIET = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # else three log files a trial
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # else a traceback for a lost process
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # the caller decides what Ctrl-C means
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}


def withhold_keys() -> None:
    """Keep this process's AWS keys out of the command lines of Tune's actors.

    Every user of a node can list these command lines. Workers use the node's own environment or
    access rights.
    """
    passed_on = class_cache.ENV_VARS_TO_PROPAGATE
    passed_on -= {name for name in passed_on if name.startswith("AWS_")}


class StopWhenAsked(tune.Stopper):
    """Ends the run once the user has asked to stop."""

    def __init__(self, hooks: Hooks) -> None:
        self._hooks = hooks

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune writes a copy of its settings, which is never restored

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """False: no single trial is stopped."""
        return False

    def stop_all(self) -> bool:
        """Whether the whole run ends."""
        return self._hooks.stopping()
