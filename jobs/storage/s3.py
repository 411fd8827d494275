"""Buckets: one client for each, which retries what fails for a moment.

The client retries a request that meets 503, a reset connection or no answer, with growing random
pauses, for one or two minutes; after that it raises OSError. A warning is logged once for each
outage. A process that calls `check_first` learns within seconds that nothing answers at a bucket:
the command line, whose user waits. Workers do not, so a short outage costs them no step. Nothing
imports pyarrow before a bucket is opened.
"""

from __future__ import annotations

import functools
import logging
import os
import re
import threading
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from jobs import reach

if TYPE_CHECKING:
    import pyarrow.fs as pafs

ATTEMPTS = 10  # pauses double up to 20 s
CONNECT_SECONDS = 10.0
SILENT_SECONDS = 5.0  # a request may take this long before a warning is logged
QUIET_SECONDS = 60.0  # between two such warnings of a process
OPTIONS = ("endpoint_override", "region", "scheme")  # after the ? of an s3:// URI
GS_RETRY_SECONDS = 60  # Google's client tries for 15 minutes
GS_ENDPOINT = "https://storage.googleapis.com"
_UNREACHABLE = re.compile(r"curlCode: (5|6|7|28), (?P<reason>[^;]*)")
"""No proxy, host, connection or answer, in an error of the S3 client."""

log = logging.getLogger("nml.storage")

_checking_first = False


def check_first() -> None:
    """From now on, opening a bucket for the first time raises OSError if nothing answers there."""
    global _checking_first
    _checking_first = True


def open_s3(uri: str) -> tuple[pafs.FileSystem, str]:
    """The filesystem and the path within it of `s3://bucket/folder?option=value`.

    Raises ValueError for an option that is not in OPTIONS, and for credentials.
    """
    parts = urllib.parse.urlsplit(uri)
    return _client(parts.netloc, parts.query), f"{parts.netloc}{parts.path}".rstrip("/")


def open_gs(uri: str) -> tuple[pafs.FileSystem, str]:
    """The filesystem and the path within it of `gs://bucket/folder?option=value`."""
    import pyarrow.fs as pafs

    parts = urllib.parse.urlsplit(uri)
    options = dict(urllib.parse.parse_qsl(parts.query))
    if _checking_first:
        endpoint = options.get("endpoint_override", "")
        if endpoint and "://" not in endpoint:
            endpoint = f"{options.get('scheme', 'https')}://{endpoint}"
        emulator = os.environ.get("CLOUD_STORAGE_EMULATOR_ENDPOINT", "")
        fault = _web_fault(endpoint or emulator or GS_ENDPOINT)
        if fault:
            raise OSError(fault)
    options.setdefault("retry_limit_seconds", str(GS_RETRY_SECONDS))
    query = urllib.parse.urlencode(options)
    filesystem, path = pafs.FileSystem.from_uri(
        urllib.parse.urlunsplit(parts._replace(query=query))
    )
    return filesystem, path


@functools.lru_cache(maxsize=8)
def _web_fault(endpoint: str) -> str:
    return reach.web_fault(endpoint)


@functools.lru_cache(maxsize=8)
def _client(bucket: str, query: str) -> pafs.FileSystem:
    import pyarrow.fs as pafs

    if "@" in bucket:
        raise ValueError(
            "an s3:// URI must not contain credentials, because it is recorded; give them by "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile or the machine's role"
        )
    options = dict(urllib.parse.parse_qsl(query))
    unknown = sorted(options.keys() - set(OPTIONS))
    if unknown:
        raise ValueError(
            f"an s3:// URI takes the options {', '.join(OPTIONS)}; remove {unknown[0]}"
        )
    scheme, mark, host = options.get("endpoint_override", "").rpartition("://")
    if mark:
        options |= {"scheme": scheme, "endpoint_override": host}
    if _checking_first:
        once = pafs.AwsStandardS3RetryStrategy(max_attempts=1)
        limits = {"connect_timeout": reach.SECONDS, "request_timeout": reach.SECONDS}
        _ask_once(pafs.S3FileSystem(**options, **limits, retry_strategy=once), bucket)
    return pafs.S3FileSystem(
        **options,
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
        connect_timeout=CONNECT_SECONDS,
    )


def _ask_once(filesystem: pafs.FileSystem, bucket: str) -> None:
    """Raise OSError if nothing answers. Any answer will do: the retrying client judges it."""
    try:
        filesystem.get_file_info(bucket)
    except OSError as error:
        found = _UNREACHABLE.search(str(error))
        if found is None:
            return
        fault = {
            "6": "no machine of that name is known",
            "7": "connection refused: no server listens there",
            "28": f"no answer within {reach.SECONDS:g} s",
        }
        raise OSError(fault.get(found[1], found["reason"])) from error


_last_warning = [-QUIET_SECONDS]


@contextmanager
def warn_when_slow(uri: str) -> Iterator[None]:
    """Log a warning when a request has taken SILENT_SECONDS."""

    def warn() -> None:
        if time.monotonic() - _last_warning[0] >= QUIET_SECONDS:
            _last_warning[0] = time.monotonic()
            log.warning("storage %s does not answer; waiting for it, for up to two minutes", uri)

    timer = threading.Timer(SILENT_SECONDS, warn)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
