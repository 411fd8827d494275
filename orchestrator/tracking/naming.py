"""What runs and metrics are called on a tracking page.

A run is called as the store spells it, without what an experiment has one of each (corpus, noise,
recipe), so that a column shows it whole. A page draws the metrics of one prefix in one section, and
the metric of one name of several runs in one chart. So the sweep's averages are
`<domain>_<metric>/<method>`, and each method has a run of its own with `<domain>_<metric>`: their
lines lie in one chart. Pure.
"""

from __future__ import annotations

import re

from orchestrator.step.address import short
from orchestrator.step.step import Step

DOMAINS = ("id", "ood")
CURVE = "curve/"  # the first section of a run's page: sections are sorted


def of_step(step: Step) -> str:
    """The name of a step's run, such as "pretrain noise=5/seed=0"; its address without a level."""
    if step.labels.get("noise") is None:
        return step.address
    return f"{step.kind} {short(step.address)}"


def of_cells(step: Step) -> str:
    """The name of the run of a cell's encoder and method, such as "tune noise=5/seed=0/lp"."""
    method = step.labels["method"]
    if step.labels.get("noise") is None:
        return f"tune/encoder/{step.labels['encoder']}/{method}"
    return f"tune noise={step.labels['noise']:g}/seed={step.labels['seed']}/{method}"


def average(metric: str) -> str:
    """A summary's metric as the sweep's run has it: `id/<method>/accuracy` is
    `id_accuracy/<method>`, and others stay as they are.
    """
    domain, method, measure = split(metric)
    return f"{domain}_{measure}/{method}" if domain else metric


def split(metric: str) -> tuple[str, str, str]:
    """Domain, method and measure of a summary's metric; three times "" for others."""
    domain, _, rest = metric.partition("/")
    method, _, measure = rest.rpartition("/")
    return (domain, method, measure) if domain in DOMAINS and method else ("", "", "")


def model(run_name: str) -> str:
    """A model's name: that of its run, without the characters that a server forbids."""
    return re.sub(r"[^\w=-]+", "_", run_name.removeprefix("pretrain "))
