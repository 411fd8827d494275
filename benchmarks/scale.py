"""The cost of 50,000 cells in the control plane: planning, executing, status, reports. No training.

`python benchmarks/scale.py [--cells 50400] [--keep FOLDER]` drives a whole plan through the real
executor with stages that do no work (a cell only writes its row), and then times each command as a
user would start it, on the resulting store. Ends with one line of JSON:

    plan_50k_s          `nml-orch plan`, a process from start to end
    status_50k_s        `nml-orch status`, the same
    status_no_index_s   the same with the index deleted: every manifest is opened
    report_rows_50k_s   all the report's tables from the store, without planning
    verify_50k_s        the checks of a second sweep, which has nothing to do
    executor_cells_per_s, driver_mb   cells driven a second; the driver's peak memory
    listing_s           one recursive listing of the store

`--part nodes` starts only a simulated cluster: `--nodes` (32) raylets without CPUs, and a head that
does the work. It ends with the cost of the nodes in the scheduler:

    nodes_start_s       until all are up, and nodes_mb, the memory of their processes
    tasks_per_s         empty tasks from one driver, on the head alone (`tasks_per_s_1`) and
                        in the whole cluster (`tasks_per_s_n`)
    resources_ms        one query of the cluster's resources and nodes, as in a sweep
"""

import argparse
import functools
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from statistics import median

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.contract import Hooks, Outcome, Work
from jobs.features.spec import FeaturesStep
from jobs.noise.spec import NoiseStep
from jobs.storage.folder import Folder
from jobs.tuning import schema
from jobs.tuning.schema import Cell
from jobs.tuning.spec import TuneStep
from orchestrator.experiment import load
from orchestrator.plan import build, plan
from orchestrator.plan.plan import Plan
from orchestrator.run.executor import Executor
from orchestrator.run.progress import Lines
from orchestrator.step.step import KINDS
from orchestrator.store.store import Store

CELLS_A_SEED = 5 * 6 * 4 * 4 * 5  # levels, tasks, methods, fractions, tuning seeds


def words(cells: int) -> list[str]:
    """The command-line arguments of a sweep with about this many cells."""
    seeds = ",".join(map(str, range(max(1, round(cells / CELLS_A_SEED)))))
    return [
        *("--noise", "0,5,10,20,30", "--seeds", seeds),
        *("--set", "tuning.fractions=[25,50,75,100]", "--set", "tuning.seeds=[0,1,2,3,4]"),
    ]


def planned(cells: int) -> Plan:
    given = words(cells)
    return build.build(load.load(noise=given[1], seeds=given[3], overrides=[given[5], given[7]]))


def idle(works: Sequence[Work], hooks: Hooks) -> None:
    """A stage that does nothing."""
    for work in works:
        metrics = {"pretrain/images_per_s": 1000.0, "noise/realised_percent": 5.0}
        if isinstance(work.spec, FeaturesStep):
            row = {"part": "test", "preprocessing": "raw", "sve": 1.0, "lsvr": 1.0}
            row |= {"effective_rank": 2.0, "singular_values": [1.0, 1.0]}
            work.output.write_table("spectrum.parquet", pa.Table.from_pylist([row]))
        if isinstance(work.spec, NoiseStep):
            columns = ("key", "clean", "noisy")  # of captions: no matrix is drawn for them
            none = pa.table({name: pa.array([], pa.string()) for name in columns})
            work.output.write_table("changed.parquet", none)
        hooks.done(
            work.address, Outcome({"rows_train": 1000, "eligible": 9, "changed": 1}, metrics)
        )


@functools.cache
def _cell_file(text: str) -> bytes:
    """A cell's file, with a row that matches the cell's spec."""
    spec = TuneStep.model_validate_json(text)
    made: dict[str, object] = {f.name: 1 if f.type == "int" else 50.0 for f in fields(Cell)}
    made |= {
        "task": spec.task.name,
        "domain": spec.task.domain,
        "trained_on": spec.task.trained_on,
        "method": spec.method_name,
        "head": spec.method.head,
        "fraction": spec.fraction,
        "tuning_seed": spec.seed,
        "metric": "accuracy",
        "test_digest": spec.task.name,
    }
    sink = pa.BufferOutputStream()
    row = {name: [made[name]] for name in schema.of(Cell).names}
    pq.write_table(pa.table(row), sink, compression="none", write_statistics=False)
    return bytes(sink.getvalue().to_pybytes())


def idle_cell(works: Sequence[Work], hooks: Hooks) -> None:
    """A tuning stage that writes a cell's row and trains nothing."""
    for work in works:
        assert isinstance(work.spec, TuneStep)
        work.output.write_bytes(
            "cell.parquet", _cell_file(work.spec.model_dump_json()), durable=False
        )
        hooks.done(work.address, Outcome({}, {"test_accuracy": 50.0}))


def drive(cells: int, root: str) -> None:
    """Execute the plan in this process, and print time and memory."""
    made, store = planned(cells), Store(Folder.of(root))
    store.prepare()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begun = time.perf_counter()
    stages = dict.fromkeys(KINDS, f"{__name__}:idle") | {"tune": f"{__name__}:idle_cell"}
    totals = {kind: len(made.of_kind(kind)) for kind in KINDS}
    results = Executor(made, store, done=[], progress=Lines(totals, {}), stages=stages).run()
    seconds = time.perf_counter() - begun
    assert all(result.status == "done" for result in results.values()), "a step failed"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        json.dumps(
            {
                "cells": totals["tune"],
                "executor_cells_per_s": totals["tune"] / seconds,
                "planned_mb": before / 1024,
                "driver_mb": peak / 1024,
            }
        )
    )


def read(cells: int, root: str) -> None:
    """Time the report's tables, a sweep's checks and a listing in this process."""
    from orchestrator.results import collect

    made, store = planned(cells), Store(Folder.of(root))
    took = {}
    begun = time.perf_counter()
    tables = collect.collect(made, store)
    took["report_rows_50k_s"] = time.perf_counter() - begun
    assert tables.cells.num_rows == len(made.of_kind("tune"))
    begun = time.perf_counter()
    found = plan.assess(made, store, verify=True)
    took["verify_50k_s"] = time.perf_counter() - begun
    assert all(assessment.state == "done" for assessment in found.values())
    begun = time.perf_counter()
    took["files"] = sum(1 for _ in store.root.files())
    took["listing_s"] = time.perf_counter() - begun
    print(json.dumps(took))


def nodes(count: int) -> None:
    """Time Ray's scheduler with one node and with many, in this process."""
    import psutil
    import ray
    from ray.cluster_utils import Cluster

    @ray.remote(num_cpus=0.5)
    def nothing() -> None:
        return None

    def rate(tasks: int = 400) -> float:
        ray.get([nothing.remote() for _ in range(20)])  # workers have started
        begun = time.perf_counter()
        ray.get([nothing.remote() for _ in range(tasks)])
        return tasks / (time.perf_counter() - begun)

    def memory() -> float:
        children = psutil.Process().children(recursive=True)
        return sum(child.memory_full_info().uss for child in children) / 2**20

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        took = {"tasks_per_s_1": rate()}
        alone, begun = memory(), time.perf_counter()
        for _ in range(count):
            cluster.add_node(wait=False, num_cpus=0, object_store_memory=80 * 2**20)
        cluster.wait_for_nodes(timeout=150)
        took |= {"nodes": float(count), "nodes_start_s": time.perf_counter() - begun}
        took |= {"nodes_mb": memory() - alone, "tasks_per_s_n": rate()}
        begun = time.perf_counter()
        for _ in range(10):
            ray.cluster_resources()
            ray.nodes()
        took["resources_ms"] = 100 * (time.perf_counter() - begun)
    finally:
        ray.shutdown()
        cluster.shutdown()
    print(json.dumps({name: round(value, 2) for name, value in took.items()}))


def verb(root: str, *given: str) -> float:
    """Seconds of one `nml-orch` process."""
    begun = time.perf_counter()
    command = [sys.executable, "-m", "nml_orch", *given, "--storage", root]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begun


def part(name: str, cells: int, root: str) -> dict[str, float]:
    """Run one part in a separate process."""
    command = [sys.executable, __file__, "--cells", str(cells), "--part", name, "--keep", root]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    found: dict[str, float] = json.loads(output.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=50_400)
    parser.add_argument("--keep", help="an empty folder for the store, which is left there")
    parser.add_argument("--part", choices=["drive", "read", "nodes"], help="this part alone")
    parser.add_argument("--nodes", type=int, default=32, help="of the simulated cluster")
    given = parser.parse_args()
    if given.part == "nodes":
        nodes(given.nodes)
        return
    if given.part:
        {"drive": drive, "read": read}[given.part](given.cells, given.keep)
        return
    root = given.keep or tempfile.mkdtemp()
    try:
        found = part("drive", given.cells, root)
        for name in ("plan", "status"):
            times = [verb(root, name, *words(given.cells)) for _ in range(3)]
            found[f"{name}_50k_s"] = median(times)
        found |= part("read", given.cells, root)
        shutil.rmtree(Path(root) / ".index")
        found["status_no_index_s"] = verb(root, "status", *words(given.cells))
    finally:
        if not given.keep:
            shutil.rmtree(root)
    print(json.dumps({name: round(value, 2) for name, value in found.items()}))


if __name__ == "__main__":
    main()
