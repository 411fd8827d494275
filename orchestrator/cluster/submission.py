"""Sweeps as Ray jobs: sent to a running cluster, watched, stopped, taken up again.

The driver runs on the cluster and outlives the terminal that sent it. A job is one `nml-orch
sweep`; sent a second time it goes on from what the storage holds, whatever became of the first.
Nothing secret is put into a job: its environment holds a commit and settings of ours, and the
cluster has its own rights to storage and tracking.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.cluster.working_dir import Parcel
from orchestrator.errors import ClusterError, UserError
from orchestrator.store.provenance import environment, redact

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
"""Where `ray attach -p 8265` or `ray dashboard` brings a cluster's jobs API."""

FINISHED = ("SUCCEEDED", "FAILED", "STOPPED")


@dataclass(frozen=True)
class Job:
    """A submitted sweep as the cluster knows it."""

    name: str
    status: str  # PENDING, RUNNING, or one of FINISHED
    words: str  # the command line
    message: str
    exit_code: int | None


class Cluster:
    """The jobs of one running cluster."""

    def __init__(self, address: str) -> None:
        """Raises ClusterError when nothing answers at the address."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        from ray.job_submission import JobSubmissionClient

        self._address = address
        with self._refusals():
            self._client = JobSubmissionClient(address)

    def submit(self, name: str, words: Sequence[str], parcel: Parcel) -> None:
        """Send `nml-orch sweep WORDS` with its files; UserError when the name is taken."""
        if any(job.name == name for job in self.jobs()):
            raise UserError(f"a job named {name} exists at {self._address}; give another --id")
        with tempfile.TemporaryDirectory(prefix="nml-submit-") as folder, self._refusals():
            parcel.copy(Path(folder))
            self._client.submit_job(
                entrypoint=shlex.join(["nml-orch", "sweep", *words]),
                submission_id=name,
                runtime_env={"working_dir": folder, "env_vars": _carried()},
                metadata={"words": redact(shlex.join(words))},
            )

    def jobs(self) -> list[Job]:
        """Every job that was submitted, oldest first."""
        with self._refusals():
            listed = self._client.list_jobs()
        sent = [details for details in listed if details.submission_id]
        return [_job(details) for details in sorted(sent, key=lambda d: d.start_time or 0)]

    def job(self, name: str) -> Job:
        """One job; UserError when there is none of that name."""
        for job in self.jobs():
            if job.name == name:
                return job
        known = ", ".join(job.name for job in self.jobs()) or "none"
        raise UserError(f"no job is named {name} at {self._address}; known: {known}")

    def follow(self, name: str, say: Callable[[str], None]) -> Job:
        """Pass on what the job prints, from its beginning, until it ends; how it ended."""
        self.job(name)  # refuses a name that is none
        with self._refusals():
            asyncio.run(self._tail(name, say))
        return self.job(name)

    def stop(self, name: str) -> None:
        """Ask the job to end as Ctrl-C would; what it has committed stays."""
        job = self.job(name)
        if job.status in FINISHED:
            raise UserError(f"job {name} has ended already ({job.status.lower()})")
        with self._refusals():
            self._client.stop_job(name)

    async def _tail(self, name: str, say: Callable[[str], None]) -> None:
        async for text in self._client.tail_job_logs(name):
            say(text)

    @contextlib.contextmanager
    def _refusals(self) -> Iterator[None]:
        """What the client raises, as one sentence."""
        import aiohttp

        try:
            yield
        except (ConnectionError, RuntimeError, OSError, aiohttp.ClientError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ClusterError(
                f"the jobs API at {self._address} does not answer as it should ({reason}); open a "
                f"way to it with `ray dashboard cluster.yaml`, or name it with --address"
            ) from error


def _carried() -> dict[str, str]:
    """What a job is told of where it came from."""
    made = environment()
    carried = {}
    if made["commit"]:
        carried["NML_COMMIT"] = made["commit"] + ("+changes" if made["dirty"] else "")
    return carried


def _job(details: Any) -> Job:
    status = getattr(details.status, "value", str(details.status))
    words = (details.metadata or {}).get("words", details.entrypoint)
    message = details.message or ""
    return Job(details.submission_id, status, words, message, details.driver_exit_code)
