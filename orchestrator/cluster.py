"""Starting Ray, or joining it: quiet, with the settings this project relies on.

`RAY_ADDRESS` joins a running cluster; without it a private one is started on this machine and
ended with the process. Settings reach the workers through the job's runtime environment.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

WORKER_ENV = {
    "RAY_DATA_USE_DATASOURCE_V2": "0",  # its Parquet reader starts footer actors for each file
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    "PYTHONWARNINGS": "ignore",
    "TQDM_DISABLE": "1",
}
"""Settings of every process of ours, driver and workers alike."""


@contextmanager
def session(cpus: int | None = None) -> Iterator[None]:
    """Ray, up for the length of the block."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    for name, value in WORKER_ENV.items():
        os.environ.setdefault(name, value)
    import ray

    address = os.environ.get("RAY_ADDRESS")
    own = {} if address else {"address": "local", "num_cpus": cpus, "include_dashboard": False}
    ray.init(
        **own,
        logging_level="ERROR",
        log_to_driver=False,
        configure_logging=False,
        runtime_env={"env_vars": WORKER_ENV} if address else None,
    )
    try:
        yield
    finally:
        ray.shutdown()
