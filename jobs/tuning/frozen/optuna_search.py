"""Optuna's search inside a cell: batches of configurations, each trained as one stack.

Takes a space and a budget; gives batches from the tree-structured Parzen estimator until the budget
is spent. It needs the validation scores of each batch before the next one. The first batch is drawn
at random. The extra `optuna` must be installed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jobs.contract import StageError
from jobs.tuning.search_space import Choice, Domain, LogUniform, QUniform, RandInt, Space, Uniform
from jobs.tuning.trained import Configuration, configuration

BATCHES = 4  # at most; fewer when the budget is small


class Optuna:
    """One method's search in one cell."""

    def __init__(self, space: Space, configurations: int, seed: int) -> None:
        """Raises StageError when optuna is not installed."""
        try:
            import optuna
        except ImportError:
            raise StageError(
                "tuning.search is optuna, which is not installed; "
                "run pip install 'nml-orch[optuna]', or use search: random"
            ) from None
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._failed = optuna.trial.TrialState.FAIL
        self._batch = -(-configurations // BATCHES)
        self._left = configurations
        self._fixed: dict[str, float] = {}
        self._open: dict[str, Any] = {}
        for name, domain in space.domains.items():
            found = _distribution(optuna.distributions, domain)
            if found is None:
                assert isinstance(domain, (int, float))
                self._fixed[name] = float(domain)
            else:
                self._open[name] = found
        sampler = optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=self._batch, constant_liar=True
        )
        self._study = optuna.create_study(direction="maximize", sampler=sampler)
        self._asked: list[Any] = []

    def ask(self) -> list[Configuration]:
        """The next batch; empty once the budget is spent."""
        count = min(self._batch, self._left)
        self._left -= count
        self._asked = [self._study.ask(self._open) for _ in range(count)]
        return [configuration({**self._fixed, **trial.params}) for trial in self._asked]

    def tell(self, scores: Sequence[float], failures: Sequence[str | None]) -> None:
        """Give the sampler the scores of the last batch; `failures`: why each failed, or None."""
        for trial, score, failure in zip(self._asked, scores, failures, strict=True):
            if failure is None:
                self._study.tell(trial, score)
            else:
                self._study.tell(trial, state=self._failed)


def _distribution(distributions: Any, domain: Domain) -> Any:
    """Optuna's distribution of a domain; None for a fixed value."""
    match domain:
        case LogUniform(loguniform=(low, high)):
            return distributions.FloatDistribution(low, high, log=True)
        case Uniform(uniform=(low, high)):
            return distributions.FloatDistribution(low, high)
        case QUniform(quniform=(low, high, step)):
            return distributions.FloatDistribution(low, high, step=step)
        case RandInt(randint=(low, high)):
            return distributions.IntDistribution(low, high - 1)
        case Choice(choice=values):
            return distributions.CategoricalDistribution(values)
    return None
