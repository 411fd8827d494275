"""What an experiment's seeds can show, said before compute is spent on them."""

from __future__ import annotations

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


def claims_tested(experiment: Experiment) -> int:
    """How many claims share the correction: the registered ones, else all that can be tested.

    The methods allow seven of the published claims, and four more for each NMTune.
    """
    if experiment.claims is not None:
        return len(experiment.claims)
    variants = sum(name.startswith("nmtune") for name in experiment.tuning.methods)
    return 7 + 4 * variants
