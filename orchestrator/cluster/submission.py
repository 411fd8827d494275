"""Sends sweeps to a running cluster as Ray jobs; follows and stops them.

The driver runs on the cluster and does not need the terminal that sent it. A job is one
`nml-orch sweep`. If it is sent again, it continues from the steps that are in the storage. A job
carries no secrets: its environment has only the commit, and the cluster has its own access to
storage and tracking.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from jobs import reach
from orchestrator.cluster.working_dir import WorkingDir
from orchestrator.errors import ClusterError, UserError
from orchestrator.store.provenance import environment, redact

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
"""The address of a cluster's jobs API after `ray attach -p 8265` or `ray dashboard`."""

SILENT_SECONDS = 30.0  # how long the API may be silent; a request may take longer

FINISHED = ("SUCCEEDED", "FAILED", "STOPPED")


@dataclass(frozen=True)
class Job:
    """A submitted sweep as the cluster knows it."""

    name: str
    status: str  # PENDING, RUNNING, or one of FINISHED
    arguments: str  # of `nml-orch sweep`
    message: str
    exit_code: int | None


class Cluster:
    """The jobs of one running cluster."""

    def __init__(self, address: str, source: str = "--address") -> None:
        """`source` says where the address comes from.

        Raises UserError for an address that is no URL, ClusterError if nothing answers there.
        """
        self._address = f"{address} (from {source})" if source else address
        if not address.startswith(("http://", "https://")):
            raise UserError(
                f"the address of the jobs API, {self._address}, must begin with http:// or "
                f"https://, like {DEFAULT_ADDRESS}"
            )
        fault = reach.web_fault(f"{address.rstrip('/')}/api/version")
        if fault:
            raise self._no_answer(fault)
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        from ray.job_submission import JobSubmissionClient

        with self._client_errors():
            self._client = JobSubmissionClient(address)
        # Ray's client sets no limit, and would wait for ever for an API that falls silent.
        request = self._client._do_request
        self._client._do_request = partial(  # type: ignore[method-assign]
            request, timeout=(reach.SECONDS, SILENT_SECONDS)
        )

    def submit(self, name: str, arguments: Sequence[str], files: WorkingDir) -> None:
        """Send `nml-orch sweep ARGUMENTS` and its files. Raises UserError if the name exists."""
        if any(job.name == name for job in self.jobs()):
            raise UserError(f"a job named {name} exists at {self._address}; give another --id")
        with tempfile.TemporaryDirectory(prefix="nml-submit-") as folder, self._client_errors():
            files.copy(Path(folder))
            self._client.submit_job(
                entrypoint=shlex.join(["nml-orch", "sweep", *arguments]),
                submission_id=name,
                runtime_env={"working_dir": folder, "env_vars": _job_environment()},
                metadata={"words": redact(shlex.join(arguments))},
            )

    def jobs(self) -> list[Job]:
        """All submitted jobs, oldest first."""
        with self._client_errors():
            listed = self._client.list_jobs()
        sent = [details for details in listed if details.submission_id]
        return [_job(details) for details in sorted(sent, key=lambda d: d.start_time or 0)]

    def job(self, name: str) -> Job:
        """One job. Raises UserError if no job has that name."""
        for job in self.jobs():
            if job.name == name:
                return job
        known = ", ".join(job.name for job in self.jobs()) or "none"
        raise UserError(f"no job is named {name} at {self._address}; known: {known}")

    def follow(self, name: str, say: Callable[[str], None]) -> Job:
        """Pass all output of the job to `say`, from its start until it ends. Returns the job."""
        self.job(name)  # raises UserError for an unknown name
        with self._client_errors():
            asyncio.run(self._tail(name, say))
        return self.job(name)

    def stop(self, name: str) -> None:
        """Stop the job as Ctrl-C would. Committed steps stay. Raises UserError if it has ended."""
        job = self.job(name)
        if job.status in FINISHED:
            raise UserError(
                f"job {name} has ended already ({job.status.lower()}); `nml-orch submit --list` "
                f"shows which still run"
            )
        with self._client_errors():
            self._client.stop_job(name)

    async def _tail(self, name: str, say: Callable[[str], None]) -> None:
        """Pass the job's output on. While it is silent, ask whether the API still answers."""
        texts = aiter(self._client.tail_job_logs(name))
        while True:
            following = asyncio.ensure_future(anext(texts, None))
            while not (await asyncio.wait({following}, timeout=SILENT_SECONDS))[0]:
                try:
                    await asyncio.to_thread(self._client.get_job_status, name)
                except BaseException:
                    following.cancel()
                    raise
            text = following.result()
            if text is None:
                return
            say(text)

    @contextlib.contextmanager
    def _client_errors(self) -> Iterator[None]:
        """Turn the client's errors into a ClusterError of one sentence."""
        import aiohttp

        try:
            yield
        except (ConnectionError, RuntimeError, OSError, aiohttp.ClientError) as error:
            raise self._no_answer(" ".join(str(error).split())[:300]) from error

    def _no_answer(self, reason: str) -> ClusterError:
        return ClusterError(
            f"the jobs API at {self._address} does not answer correctly ({reason}); forward its "
            f"port with `ray dashboard cluster.yaml`, or give --address"
        )


def _job_environment() -> dict[str, str]:
    """The job's environment variables: the commit of the code that submits it."""
    here = environment()
    if not here["commit"]:
        return {}
    return {"NML_COMMIT": here["commit"] + ("+changes" if here["dirty"] else "")}


def _job(details: Any) -> Job:
    status = getattr(details.status, "value", str(details.status))
    arguments = (details.metadata or {}).get("words", details.entrypoint)
    message = details.message or ""
    return Job(details.submission_id, status, arguments, message, details.driver_exit_code)
