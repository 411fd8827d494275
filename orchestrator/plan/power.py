"""What an experiment's seeds can show, said before compute is spent on them."""

from __future__ import annotations

from analysis import wording
from analysis.claims.verdicts import ALPHA
from analysis.statistics import LEAST_SEEDS, power, seeds_needed
from orchestrator.experiment.model import Experiment

EFFECT = 0.4  # points of accuracy: of the size that the papers report for slight noise
SPREAD = 0.3  # points: standard deviation over seeds, as measured on digits


def power_line(experiment: Experiment) -> str | None:
    """How often the planned seeds show EFFECT at SPREAD, and how many seeds show it in 80 %.

    None for an experiment that pre-trains nothing or at one noise level alone.
    """
    if experiment.pretrain is None or experiment.noise is None:
        return None
    if len(experiment.noise.levels) < 2:
        return None
    claims = claims_tested(experiment)
    seeds = len(experiment.pretrain.seeds)
    case = f"an effect of {EFFECT:g} points at a spread (SD) of {SPREAD:g} between seeds"
    wanted = seeds_needed(SPREAD, EFFECT, claims=claims)
    if seeds < LEAST_SEEDS:
        return (
            f"Power: fewer than {LEAST_SEEDS} seeds give no verdict ({seeds} planned); {wanted} "
            f"show {case} in 80 % of such experiments ({claims} claims share the correction)"
        )
    share = power(seeds, EFFECT, SPREAD, ALPHA / claims)
    return (
        f"Power: {seeds} seeds show {case} in {100 * share:.0f} % of such experiments, {wanted} "
        f"in 80 % ({claims} claims share the correction)"
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


def claims_tested(experiment: Experiment) -> int:
    """How many claims the methods allow to be tested.

    Seven on noise and the feature space; MLP against LP in two domains; for each NMTune, what its
    regularisers add and whether they narrow the gap, and what its head adds if it is not MLP's.
    """
    tuning = experiment.tuning
    controls = {n: c for n, c in tuning.controls.items() if n.startswith("nmtune")}
    pairs = 2 * ({"mlp", "lp"} <= tuning.methods.keys())
    heads = 2 * sum(control != "mlp" for control in controls.values()) * ("mlp" in tuning.methods)
    return 7 + pairs + 4 * len(controls) + heads
