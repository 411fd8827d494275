"""Shared parts of the tests: one Ray for the whole run."""

from collections.abc import Iterator

import pytest

from orchestrator import cluster


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    with cluster.session(cpus=2):
        yield
