"""S3 buckets: one client for each, which retries what fails for a moment.

The client retries a request that meets 503, a reset connection or no answer, with growing random
pauses, for about a minute; after that it raises OSError. A warning is logged once for each outage.
Nothing imports pyarrow before a bucket is opened.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow.fs as pafs

ATTEMPTS = 10  # pauses double up to 20 s
CONNECT_SECONDS = 10.0
SILENT_SECONDS = 5.0  # a request may take this long before a warning is logged
QUIET_SECONDS = 60.0  # between two such warnings of a process
OPTIONS = ("endpoint_override", "region", "scheme")  # after the ? of an s3:// URI

log = logging.getLogger("nml.storage")


def open_s3(uri: str) -> tuple[pafs.FileSystem, str]:
    """The filesystem and the path within it of `s3://bucket/folder?option=value`.

    Raises ValueError for an option that is not in OPTIONS, and for credentials.
    """
    # A # is a character of the path. Python's own parser takes it for the start of a fragment.
    path, _, query = uri.removeprefix("s3://").partition("?")
    return _client(path.partition("/")[0], query), path.rstrip("/")


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
    return pafs.S3FileSystem(
        **options,
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
        connect_timeout=CONNECT_SECONDS,
    )


_last_warning = [-QUIET_SECONDS]


@contextmanager
def warn_when_slow(uri: str) -> Iterator[None]:
    """Log a warning when a request has taken SILENT_SECONDS."""

    def warn() -> None:
        if time.monotonic() - _last_warning[0] >= QUIET_SECONDS:
            _last_warning[0] = time.monotonic()
            log.warning("storage %s does not answer; trying again for about a minute", uri)

    timer = threading.Timer(SILENT_SECONDS, warn)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
