"""Errors that a user, an experiment file, a store or a cluster causes, each with its remedy.

Every message is one sentence: what is wrong, where (file, field, value), what to do. The command
line prints it without a traceback and ends with `exit_code`.
"""

from __future__ import annotations


class NmlError(Exception):
    """Base of all errors that are one sentence for the user."""

    exit_code = 1


class UserError(NmlError):
    """A command, an option or an experiment file asks for something impossible."""

    exit_code = 2


class DriftError(UserError):
    """Finished steps were made from other settings than the plan's."""


class StoreError(UserError):
    """The storage cannot be reached, read or written, or has content of another kind."""


class ReplacedError(StoreError):
    """A step is not, or no longer, the finished one that the plan saw."""


class ClusterError(NmlError):
    """Ray cannot be started or joined, or its nodes do not suit a sweep. Nothing was run."""

    exit_code = 2


class TrackingError(NmlError):
    """The MLflow server cannot be reached. Never stops a sweep."""
