"""Where MLflow is, who says so, and whether anything answers there. Never imports mlflow."""

from __future__ import annotations

import os
import re
from importlib.metadata import entry_points
from urllib.parse import urlsplit

from jobs.reach import database_fault, web_fault
from orchestrator.errors import UserError
from orchestrator.store.provenance import redact
from orchestrator.tracking import sqlite

VARIABLE = "MLFLOW_TRACKING_URI"

_WEB = ("http", "https")
_KINDS = ("sqlite", "postgresql", "mysql", "mssql", "file", "databricks", "databricks-uc", "uc", "")
"""The other schemes of MLflow's own stores. None: a folder. Installed packages can add some."""


def resolve_uri(configured: str | None, field: str = "tracking.uri") -> str:
    """The tracking URI: the one that `field` gives, else the environment's, else a database here.

    Raises UserError for a text that is no address which MLflow could open.
    """
    uri = configured or os.environ.get(VARIABLE) or "sqlite:///mlflow.db"
    if fault := _fault(uri):
        where = field if configured else VARIABLE
        raise UserError(
            f"{where} = {redact(uri)}: is no address ({fault}); give one like http://HOST:5000"
        )
    return sqlite.absolute(uri)


def other(configured: str | None) -> str:
    """How to name another server, as words: the environment's does not count beside the file's."""
    if configured:
        return "name another server with --set tracking.uri=URI"
    return f"set {VARIABLE} or --set tracking.uri=URI"


def _fault(uri: str) -> str:
    """What makes a URI unusable for MLflow whatever runs there; "" if nothing does."""
    try:
        parts = urlsplit(uri)
        port = parts.port if parts.scheme in _WEB else None
    except ValueError as error:
        return str(error)
    if parts.scheme in _WEB:
        return "" if parts.hostname and port != 0 else "it names no host and port"
    if re.fullmatch(r"[^/]+:[0-9]+", uri):
        return "a server's address begins with http:// or https://"
    kind = parts.scheme.partition("+")[0]
    if kind in _KINDS:
        return ""
    if kind in {plugin.name for plugin in entry_points(group="mlflow.tracking_store")}:
        return ""
    known = ", ".join(kind for kind in (*_WEB, *_KINDS) if kind)
    return f"MLflow has no kind {kind!r}, but {known}"


def named(uri: str) -> str:
    """The URI without secrets, and the environment variable if it comes from there."""
    shown = redact(uri)
    return f"{shown} (from {VARIABLE})" if os.environ.get(VARIABLE) == uri else shown


def check_answers(uri: str) -> None:
    """Raise ConnectionError within seconds if no server answers at the URI.

    MLflow's client tries a web server for a minute and a database for three. A URI without a server
    of its own (a database file, a managed service) passes. Raises ModuleNotFoundError if the
    database's Python package is missing.
    """
    fault = web_fault(uri) if uri.startswith(("http://", "https://")) else database_fault(uri)
    if fault and not uri.startswith("http"):
        from sqlalchemy.engine import make_url

        make_url(uri).get_dialect().import_dbapi()  # a server that is there would not help
    if fault:
        raise ConnectionError(fault)


def reason(error: Exception) -> str:
    """The first line of an error's innermost cause, without secrets."""
    cause: BaseException = error
    while cause.__cause__ is not None or cause.__context__ is not None:
        cause = cause.__cause__ or cause.__context__ or cause
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return redact(lines[0])[:160] if lines else type(cause).__name__
