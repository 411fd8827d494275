"""The features stage: frozen encoders over corpora, by Ray Data.

Works with the same resources are one execution over small units of shards. Encoders that prepare
the same rows alike are fed from one decoding (`groups.py`, `together.py`). Units are ordered by
encoder, so a process loads an encoder once for all its units and image sets. A unit's features are
saved in the step's scratch at once; an interrupted step resumes with the units that it lacks. After
a step's last unit, one task concatenates them into the output. Nothing here decides what to run,
commits an output or retries.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from typing import Any, cast

import pyarrow as pa
import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext, Dataset

from jobs.contract import Failure, Hooks, Outcome, StageError, Work
from jobs.corpus.shards import Index
from jobs.corpus.units import UNIT_ROWS, Unit, units_of
from jobs.features.api import buy_texts, encoder_of, write_features
from jobs.features.given import import_features
from jobs.features.grids import GRID_ROWS
from jobs.features.groups import Job, groups, weights_of
from jobs.features.identity import made_with
from jobs.features.parts import MADE_WITH, finish, may_add
from jobs.features.spec import FeaturesStep, GivenStep
from jobs.remote import report_each

_WRITERS = 4  # steps of bought features that are written at once
_SHARE = 0.25  # of a process's part of its node's memory: what encoders fed together may take


def run(works: Sequence[Work], hooks: Hooks) -> None:
    """Extract each work's features (spec: `FeaturesStep`; inputs: `encoder`, `corpus`).

    Imports given features (spec: `GivenStep`, no inputs) as they are. Of an encoder behind an API
    (`FeaturesStep.api`), buys first what its ledger lacks: see `jobs/features/api.py`.

    Output: `features-<part>.parquet`, `classes.json`, `extraction.json`, `spectrum.parquet`; counts
    and metrics: see `parts.finish`. A work that fails is reported with its error; the others
    continue. After a stop, unfinished works are not reported and keep their finished units in
    scratch.
    """
    _configure_ray_data()
    works = _import_given(works, hooks)
    bought = [work for work in works if _is_api(work)]
    with ThreadPoolExecutor(1) as beside:  # a server is waited for while others compute
        buying = beside.submit(_buy, bought, hooks)
        _extract([work for work in works if not _is_api(work)], hooks)
        buying.result()


def _extract(works: Sequence[Work], hooks: Hooks) -> None:
    """The works whose encoder runs here."""
    groups: dict[tuple[float, int], list[Job]] = defaultdict(list)
    for work in sorted(works, key=lambda work: work.inputs["encoder"].uri):
        step = cast(FeaturesStep, work.spec)
        try:
            index = Index.read(work.inputs["corpus"])
            _require_gpus(step.gpus_per_worker)
            if work.output.exists(MADE_WITH):  # parts are added to those that it has
                may_add(work.output, json.loads(made_with(step, work.inputs["encoder"])))
        except Exception as error:
            hooks.done(work.address, error)
            continue
        units = units_of(index, step.wanted, UNIT_ROWS if step.grid is None else GRID_ROWS)
        wanted = (step.gpus_per_worker, step.cpus_per_worker)
        groups[wanted].append(Job(work, step, index, units))
    for (gpus, cpus), jobs in groups.items():
        _Execution(jobs, gpus, cpus, hooks).run()


class _Execution:
    """Some jobs as one Ray Data execution, and the state of its results."""

    def __init__(self, jobs: Sequence[Job], gpus: float, cpus: int, hooks: Hooks) -> None:
        self._jobs, self._gpus, self._cpus, self._hooks = jobs, gpus, cpus, hooks
        self._groups = _groups(jobs, gpus, cpus)
        self._sharing = {number: len(group) for group in self._groups for number in group}
        self._units_left = [len(job.units) for job in jobs]
        self._seconds = [0.0] * len(jobs)  # of work, in all units
        self._reported: set[int] = set()
        self._finishing: dict[ray.ObjectRef[Outcome], int] = {}

    def run(self) -> None:
        """Extract all units; report each job as soon as it is finished."""
        try:
            for result in self._unit_results():
                self._handle_result(result)
                self._collect_finished(wait=0)
                if self._hooks.stopping():
                    break
            while self._finishing and not self._hooks.stopping():
                self._collect_finished(wait=1)
        except Exception as error:  # of the execution as a whole, not of one job
            for number in range(len(self._jobs)):
                self._report(number, error)

    def _unit_results(self) -> Iterator[dict[str, Any]]:
        items = [
            {"group": number} | asdict(unit)
            for number, group in enumerate(self._groups)
            for unit in self._jobs[group[0]].units
        ]
        source = ray.data.from_items(items, override_num_blocks=len(items))
        encoded = _encode_units(source, self._jobs, self._groups, self._gpus, self._cpus)
        for batch in encoded.iter_batches(batch_size=None, batch_format="pyarrow"):
            yield from cast(pa.Table, batch).to_pylist()

    def _handle_result(self, result: dict[str, Any]) -> None:
        """Handle a job's result of one unit. An error of a unit fails its job."""
        number = result["job"]
        job = self._jobs[number]
        self._units_left[number] -= 1
        self._seconds[number] += result["seconds"]
        if result["failure"]:
            self._report(number, Failure.from_json(result["failure"]).as_error())
        elif self._units_left[number] == 0 and number not in self._reported:
            self._finishing[_finish.remote(job)] = number
        share = 1 - self._units_left[number] / len(job.units)
        if number not in self._reported:
            rows = sum(unit.stop - unit.start for unit in job.units)
            words = f"{share:.0%} of {rows:,} rows"
            if self._sharing[number] > 1:
                words += f", decoded once for {self._sharing[number]} encoders"
            self._hooks.say(job.work.address, 0.95 * share, words)

    def _collect_finished(self, wait: float) -> None:
        finished, _ = (
            ray.wait(list(self._finishing), num_returns=len(self._finishing), timeout=wait)
            if self._finishing
            else ([], [])
        )
        for reference in finished:
            number = self._finishing.pop(reference)
            try:
                self._report(number, ray.get(reference).took(self._seconds[number]))
            except Exception as error:
                self._report(number, error)

    def _report(self, number: int, result: Outcome | BaseException) -> None:
        if number not in self._reported:
            self._reported.add(number)
            self._hooks.done(self._jobs[number].work.address, result)


def _groups(jobs: Sequence[Job], gpus: float, cpus: int) -> list[list[int]]:
    """The jobs, by number, that are fed from one decoding; what the cluster has limits them."""
    processes, memory = 0, math.inf
    for node in ray.nodes():
        has = node["Resources"] if node["Alive"] else {}
        here = int(has.get("GPU", 0) / gpus if gpus else has.get("CPU", 0) / cpus)
        if here:
            processes += here
            memory = min(memory, _SHARE * has.get("memory", 0) / here)
    return groups(jobs, weights_of(jobs), max(1, processes), memory)


# -- in the workers --------------------------------------------------------------------------------


def _encode_units(
    source: Dataset, jobs: Sequence[Job], groups: Sequence[Sequence[int]], gpus: float, cpus: int
) -> Dataset:
    """Extract the units: in tasks on CPUs, whose processes Ray reuses; in actors on GPUs."""
    if gpus == 0:
        return source.map_batches(partial(_encode, jobs, groups), batch_size=1, num_cpus=cpus)
    most = max(1, int(ray.cluster_resources()["GPU"] / gpus))
    return source.map_batches(
        _EncodeActor,
        fn_constructor_args=(jobs, groups),
        batch_size=1,
        num_cpus=cpus,
        num_gpus=gpus,
        compute=ActorPoolStrategy(min_size=1, max_size=most),
    )


class _EncodeActor:
    """`_encode` in a lasting process: Ray ends the process of a GPU task with the task."""

    def __init__(self, jobs: Sequence[Job], groups: Sequence[Sequence[int]]) -> None:
        self._jobs, self._groups = jobs, groups

    def __call__(self, batch: Any) -> pa.Table:
        """Extract one unit; see `_encode`."""
        return _encode(self._jobs, self._groups, batch)


def _encode(jobs: Sequence[Job], groups: Sequence[Sequence[int]], batch: Any) -> pa.Table:
    """Extract one unit into the scratch of a group's jobs; the result is one row for each."""
    from jobs.features.together import extract_unit  # it imports torch

    numbers = groups[int(batch["group"][0])]
    unit = Unit(
        str(batch["part"][0]),
        str(batch["file"][0]),
        int(batch["start"][0]),
        int(batch["stop"][0]),
        str(batch["sha256"][0]),
    )
    begun = time.monotonic()
    errors = extract_unit([jobs[number] for number in numbers], unit)
    seconds = (time.monotonic() - begun) / len(numbers)
    return pa.Table.from_pylist(
        [
            {
                "job": number,
                "failure": _as_failure(error, jobs[number].work.address),
                "seconds": seconds,
            }
            for number, error in zip(numbers, errors, strict=True)
        ]
    )


def _as_failure(error: Exception | None, address: str) -> str:
    """An error as JSON; empty: there is none."""
    return Failure.of(error, address).as_json() if error is not None else ""


@ray.remote(num_cpus=1)
def _finish(job: Job) -> Outcome:
    begun = time.monotonic()
    found = finish(job.step, job.index, job.units, job.work.scratch, job.work.output)
    return found.took(time.monotonic() - begun)


def _is_api(work: Work) -> bool:
    return isinstance(work.spec, FeaturesStep) and work.spec.api is not None


def _buy(works: Sequence[Work], hooks: Hooks) -> None:
    """Buy the vectors of encoders behind APIs, in this process; each step is written by a task.

    One thread for each ledger asks: these are different servers or models.
    """
    ledgers: dict[str, list[Work]] = defaultdict(list)
    for work in works:
        ledgers[encoder_of(work).ledger].append(work)
    if not ledgers:
        return
    with ThreadPoolExecutor(len(ledgers)) as asking, ThreadPoolExecutor(_WRITERS) as writing:

        def ask(mine: Sequence[Work]) -> None:
            for work, error in buy_texts(mine, hooks):
                if error is not None:
                    hooks.done(work.address, error)
                else:
                    hooks.say(work.address, 0.9, "writing features")
                    writing.submit(report_each, write_features, [([work], 1, 0)], hooks)

        for asked in [asking.submit(ask, mine) for mine in ledgers.values()]:
            asked.result()


def _import_given(works: Sequence[Work], hooks: Hooks) -> list[Work]:
    """Import the given features, one task for each work; return the other works."""
    given = [work for work in works if isinstance(work.spec, GivenStep)]
    report_each(import_features, [([work], 1, 0) for work in given], hooks)
    return [work for work in works if not isinstance(work.spec, GivenStep)]


def _require_gpus(gpus: float) -> None:
    if gpus > ray.cluster_resources().get("GPU", 0):
        raise StageError(
            f"features.gpus_per_worker={gpus:g}, but the cluster has "
            f"{ray.cluster_resources().get('GPU', 0):g} GPUs; set it to 0 or add a node with GPUs"
        )


def _configure_ray_data() -> None:
    """Set Ray Data's options, as every stage does, since all threads of a process share them."""
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = DataContext.get_current()
    context.print_on_execution_start = False
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
