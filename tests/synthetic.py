"""A store as a sweep would leave it, with made-up numbers and nothing trained."""

import hashlib
import math

import pyarrow as pa

from jobs.contract import Outcome
from orchestrator.plan.plan import Plan
from orchestrator.step.step import Step
from orchestrator.store import provenance
from orchestrator.store.manifest import Manifest
from orchestrator.store.store import Store

EPOCHS = 20


def fill(plan: Plan, store: Store) -> list[Manifest]:
    """Commit every step of a plan, in order."""
    store.prepare()
    return [finish(store, step) for step in plan.steps.values()]


def finish(store: Store, step: Step) -> Manifest:
    """Commit one step with the files and numbers that its stage would leave."""
    output = store.begin(step).output
    metrics: dict[str, float] = {}
    counts = {"rows": 1000}
    level = float(step.labels.get("noise", 0))
    if step.kind == "corpus":
        counts = {"rows_train": 1000, "rows_validation": 200, "rows_test": 300}
    elif step.kind == "hashes":
        counts = {"images": 1500, "undecodable": 0}
    elif step.kind == "overlap":
        counts = {"test_images": 300, "test_undecodable": 0, "overlap": 0}
        metrics = {"overlap/percent": 0.0}
    elif step.kind == "noise":
        counts = {"eligible": 1000, "changed": round(10 * level)}
        metrics = {"noise/realised_percent": level}
        columns = ("key", "clean", "noisy")  # of captions: no matrix is drawn of them
        empty = pa.table({name: pa.array([], pa.string()) for name in columns})
        output.write_table("changed.parquet", empty)
    elif step.kind == "pretrain":
        final = 90 - level / 2 + _jitter(step)
        rows = [
            {"metric": f"pretrain/{name}", "step": epoch, "value": value}
            for epoch in range(1, EPOCHS + 1)
            for name, value in {
                "val_accuracy": final * (1 - math.exp(-epoch / 4)),
                "train_accuracy_clean": 95 * (1 - math.exp(-epoch / 4)),
                "train_accuracy_flipped": 3.0 * epoch,
            }.items()
            if level or "flipped" not in name
        ]
        output.write_table("curves.parquet", pa.Table.from_pylist(rows))
        metrics = {"pretrain/val_accuracy": final, "pretrain/images_per_s": 1000.0}
    elif step.kind == "encoder":
        output.write_json("encoder.json", {})
    elif step.kind == "features":
        row = {"part": "test", "preprocessing": "released", "sve": 3 + level / 50}
        row |= {"lsvr": 1 - level / 100, "effective_rank": 20.0}
        values = [10.0 / (1 + k) for k in range(16)]
        table = pa.Table.from_pylist([{**row, "singular_values": values}])
        output.write_table("spectrum.parquet", table)
    else:
        row = _cell(step, level)
        output.write_table("cell.parquet", pa.Table.from_pylist([row]))
        metrics = {"test_accuracy": row["test_accuracy"]}
    moment = provenance.now()
    facts = {**provenance.environment(), "started": moment, "finished": moment, "seconds": 1.0}
    return store.commit(step, Outcome(counts, metrics), facts)


def _cell(step: Step, level: float) -> dict[str, object]:
    gain = {"lp": 0, "mlp": 2}.get(str(step.labels["method"]), 4)
    base = 85 - level / 5 if step.labels["domain"] == "id" else 65 - level / 2
    accuracy = base + gain + float(step.labels["fraction"]) / 50 + _jitter(step)
    accuracy -= float(step.labels["label_noise"]) / 2
    return {
        **{name: step.labels[name] for name in ("task", "domain", "method", "fraction")},
        "trained_on": getattr(step.spec, "task").trained_on,  # noqa: B009
        "tuning_seed": step.labels["tuning_seed"],
        "label_noise": step.labels["label_noise"],
        "test_digest": str(step.labels["task"]),  # every task has a test of its own
        "test_accuracy": accuracy,
        "test_macro_f1": accuracy - 1,
        "test_metric": accuracy,
        "metric": "accuracy",
        "validation_accuracy": accuracy + 1,
        "n_train": 1000,
        "n_validation": 200,
        "n_test": 300,
        "configurations": 8,
        "configurations_failed": 0,
        "lr": 0.001,
        "weight_decay": 0.0,
        "mse": 0.0,
        "cov": 0.0,
        "svd": 0.0,
    }


def _jitter(step: Step) -> float:
    """Something between -1 and 1 that is the step's own."""
    return int(hashlib.sha256(step.address.encode()).hexdigest()[:4], 16) / 2**15 - 1
