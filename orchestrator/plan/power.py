"""What an experiment's seeds can show, before compute is spent on them."""

from __future__ import annotations

from analysis import wording
from analysis.claims.verdicts import ALPHA
from analysis.schemas import REGULARISERS, SLIGHT
from analysis.statistics import LEAST_POINTS, LEAST_SEEDS, power, seeds_needed
from jobs.tuning.search_space import bounds
from orchestrator.experiment.model import Experiment
from orchestrator.plan.plan import Plan

EFFECT = 0.4  # points of accuracy: of the size that the papers report for slight noise
SPREAD = 0.3  # points: standard deviation over seeds, as measured on digits


def power_line(plan: Plan) -> str | None:
    """How often the planned seeds show EFFECT at SPREAD, and how many seeds show it in 80 %.

    None for an experiment that pre-trains nothing or at one noise level alone.
    """
    experiment = plan.experiment
    if experiment.pretrain is None or experiment.noise is None:
        return None
    if len(experiment.noise.levels) < 2:
        return None
    claims = claims_tested(plan)
    kind = "claims" if experiment.claims is None else "registered claims"
    seeds = len(experiment.pretrain.seeds)
    case = f"an effect of {EFFECT:g} points at a spread (SD) of {SPREAD:g} between seeds"
    wanted = seeds_needed(SPREAD, EFFECT, claims=claims)
    if seeds < LEAST_SEEDS:
        return (
            f"Power: fewer than {LEAST_SEEDS} seeds give no verdict ({seeds} planned); {wanted} "
            f"show {case} in 80 % of such experiments ({claims} {kind} share the correction)"
        )
    share = power(seeds, EFFECT, SPREAD, ALPHA / claims)
    return (
        f"Power: {seeds} seeds show {case} in {100 * share:.0f} % of such experiments, {wanted} "
        f"in 80 % ({claims} {kind} share the correction)"
    )


def replicates_line(experiment: Experiment) -> str | None:
    """How many replicates there are, and what each draws for itself; None without pre-training."""
    if experiment.pretrain is None or experiment.noise is None:
        return None
    seeds, noise, tuning = experiment.pretrain.seeds, experiment.noise, experiment.tuning.seeds
    own = ["initial weights", "data order"]
    shared = []
    if noise.shared:
        shared.append("the given labels" if noise.kind == "given" else "one draw of noise")
    else:
        own.append("noise")
    if tuning is None:
        own.append("tuning seed")
    else:
        shared.append(f"the tuning seeds {', '.join(map(str, tuning))}")
    what = f"Replicates: {len(seeds)}, each with its own {wording.join(own)}"
    return what + (f"; all share {wording.join(shared)}" if shared and len(seeds) > 1 else "")


def controls_line(experiment: Experiment) -> str | None:
    """The control of each regularised method; None if there is no such method."""
    controls = experiment.tuning.controls
    if not controls:
        return None
    named = [f"{name} against {control}" for name, control in controls.items()]
    return f"Controls (the same without regularisers): {wording.join(named, 6)}"


def claims_tested(plan: Plan) -> int:
    """How many claims share the correction: the registered ones, else all that can be tested.

    Counted from levels, tasks and methods alone: `candidates` finds the same, and takes a second.
    """
    experiment = plan.experiment
    if experiment.claims is not None:
        return len(experiment.claims)
    levels = experiment.noise.levels if experiment.noise else ()
    slight, heavy = any(0 < level <= SLIGHT for level in levels), any(x > SLIGHT for x in levels)
    changes = 0 in levels and (slight or heavy)
    methods, tuning = experiment.tuning.methods, experiment.tuning
    controls = {n: c for n, c in tuning.controls.items() if n.startswith("nmtune")}
    count = 0
    for domain in {task.domain for task in plan.tasks}:
        count += (
            (changes and slight) + (changes and slight and heavy) if domain == "id" else changes
        )
        count += changes + (
            len(levels) >= LEAST_POINTS
        )  # the feature space: it moves, it correlates
        count += {"mlp", "lp"} <= methods.keys()
        count += len(controls) * (1 + changes)  # the regularisers help, and narrow the gap
        count += sum(c != "mlp" for c in controls.values()) if "mlp" in methods else 0  # the head
    return count + _shares(experiment)


def _shares(experiment: Experiment) -> int:
    """How many regularisers of an NMTune are left out in a method of the same head."""
    used = {
        name: (
            method.head,
            {term for term in REGULARISERS if bounds(getattr(method.space, term))[1]},
        )
        for name, method in experiment.tuning.methods.items()
    }
    full = [
        head
        for name, (head, terms) in used.items()
        if name.startswith("nmtune") and len(terms) == len(REGULARISERS)
    ]
    return sum(
        (head, set(REGULARISERS) - {term}) in used.values()
        for head in full
        for term in REGULARISERS
    )
