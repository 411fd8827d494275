"""The stage on a real Ray: a result for each cell, early, quietly, and from any thread."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
import ray

from commands import PATIENCE
from jobs.contract import Hooks, Outcome, StageError, Work
from jobs.storage.folder import Folder
from jobs.tuning import schema
from jobs.tuning.draw import draw
from jobs.tuning.frozen.cell import adapt
from jobs.tuning.frozen.features import FeatureCache
from jobs.tuning.job import run
from jobs.tuning.methods import Method
from jobs.tuning.search_space import Space
from jobs.tuning.spec import TuneStep
from tests.jobs.tuning.blobs import NMTUNE, ood_task, step
from tests.jobs.tuning.conftest import MakeWork, WriteFeatures

LINEAR = Method(head="linear", space=Space.model_validate({"lr": {"loguniform": [0.01, 1]}}))
RELEASED = Method(head="released", space=NMTUNE.space)
METHODS = {"lp": LINEAR, "nmtune": NMTUNE, "released": RELEASED}


@dataclass
class Answers:
    """Hooks that record their calls; `stop` stands for the user's Ctrl-C."""

    stop: Callable[[], bool] = lambda: False
    results: dict[str, Outcome | BaseException] = field(default_factory=dict)
    on_first: Callable[[], None] = lambda: None
    twice: list[str] = field(default_factory=list)
    progress: list[tuple[str, float, str]] = field(default_factory=list)

    def done(self, address: str, result: Outcome | BaseException) -> None:
        if address in self.results:
            self.twice.append(address)
        if isinstance(result, Outcome) and Outcome not in map(type, self.results.values()):
            self.on_first()
        self.results[address] = result

    @property
    def hooks(self) -> Hooks:
        return Hooks(self.done, lambda *report: self.progress.append(report), lambda: self.stop())


def id_works(write: WriteFeatures, make: MakeWork, levels: int = 2) -> list[Work]:
    return [
        make(
            f"level={level}/{name}",
            step(method_name=name, method=method),
            features=write(f"features-{level}"),
        )
        for name, method in METHODS.items()
        for level in range(levels)
    ]


def contents(folder: Folder) -> dict[str, bytes]:
    return {name: folder.read_bytes(name) for name, _ in folder.files()}


def test_cells_are_done_from_a_thread_as_they_would_be_alone_and_a_failing_one_fails_alone(
    ray_session: None,
    write_features: WriteFeatures,
    make_work: MakeWork,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    works = id_works(write_features, make_work)
    diverging = Method(head="linear", space=Space(lr=1e38))
    big = step(method=diverging, method_name="big")
    failing = [
        make_work("diverges", big, features=write_features("d")),
        make_work("absent", step(), features=write_features("empty", parts=())),
        make_work("greedy", step(cpus=512), features=write_features("g")),
    ]
    unfinished_at_first: list[Work] = []
    answers = Answers(
        on_first=lambda: unfinished_at_first.extend(
            work for work in works if not work.output.exists(schema.CELL)
        )
    )
    all_works = [works[0], *failing, *works[1:]]
    thread = threading.Thread(target=run, args=(all_works, answers.hooks))
    begun = time.monotonic()
    thread.start()
    thread.join(timeout=PATIENCE)
    passed = time.monotonic() - begun
    assert answers.twice == []
    failed = {a: r for a, r in answers.results.items() if isinstance(r, BaseException)}
    assert set(failed) == {"diverges", "absent", "greedy"}
    assert all(isinstance(error, StageError) for error in failed.values())
    assert "all 3 configurations failed" in str(failed["diverges"])
    assert "has no features-train.parquet" in str(failed["absent"])
    assert "tuning.cpus=512, but" in str(failed["greedy"])
    assert unfinished_at_first, "the first answer came only after every cell had ended"
    ended = [answers.results[work.address] for work in works]
    spent = [result.seconds for result in ended if isinstance(result, Outcome) and result.seconds]
    assert len(spent) == len(works)
    # All cells begin together. Were waiting counted, their times would add up to more than this.
    assert sum(spent) <= passed * ray.cluster_resources()["CPU"]
    for number, work in enumerate(works[::3]):
        alone = make_work(f"alone-{number}", step_of(work), features=work.inputs["features"])
        spec = step_of(work)
        drawn = draw(spec.method.space, spec.settings.configurations, spec.seed)
        outcome = adapt(alone, drawn, FeatureCache())
        assert outcome == answers.results[work.address]
        assert contents(alone.output) == contents(work.output)
    printed = capfd.readouterr()
    assert (printed.out.strip(), printed.err.strip()) == ("", "")
    assert not (tmp_path / "home" / "ray_results").exists()


def step_of(work: Work) -> TuneStep:
    assert isinstance(work.spec, TuneStep)
    return work.spec


def test_ood_cells_have_results_and_are_never_trained(
    ray_session: None, write_features: WriteFeatures, make_work: MakeWork
) -> None:
    trained = make_work("id", step(configurations=2), features=write_features())
    spec = step_of(trained)
    adapt(trained, draw(spec.method.space, 2, 0), FeatureCache())
    ood = step(task=ood_task(), configurations=2)
    works = [
        make_work(
            f"ood-{level}",
            ood,
            features=write_features(f"shift-{level}", parts=("test",)),
            head=trained.output,
        )
        for level in range(3)
    ]
    orphan = make_work("orphan", ood, features=write_features("x"), head=Folder("/nowhere"))
    answers = Answers()
    run([*works, orphan], answers.hooks)
    for work in works:
        assert isinstance(answers.results[work.address], Outcome)
        assert {name for name, _ in work.output.files()} == {schema.CELL, schema.PREDICTIONS}
    assert isinstance(answers.results["orphan"], StageError)


@pytest.mark.slow
def test_a_request_to_stop_ends_the_run_soon(
    ray_session: None, write_features: WriteFeatures, make_work: MakeWork
) -> None:
    features = write_features()
    works = [make_work(f"cell-{n}", step(seed=n, epochs=40), features=features) for n in range(30)]
    answers = Answers()
    answers.stop = lambda: len(answers.results) >= 2
    run(works, answers.hooks)
    assert 2 <= len(answers.results) < len(works)
    assert all(isinstance(result, Outcome) for result in answers.results.values())


@pytest.mark.slow
def test_a_long_cell_reports_progress_and_is_abandoned_on_a_request_to_stop(
    ray_session: None, write_features: WriteFeatures, make_work: MakeWork
) -> None:
    work = make_work("cell", step(epochs=100_000), features=write_features())
    answers = Answers()
    answers.stop = lambda: len({share for _, share, _ in answers.progress}) >= 3
    before = trial_processes()
    try:
        run([work], answers.hooks)
    finally:
        for pid in trial_processes() - before:  # else they train on during the next tests
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    assert answers.results == {}
    addresses, shares, words = (set(part) for part in zip(*answers.progress, strict=True))
    assert addresses == {work.address}
    assert min(shares) == 0
    assert 0 < max(shares) < 1
    assert all("3 configurations, 100000 epochs" in each for each in words)
    assert not work.output.exists(schema.CELL)


@pytest.mark.faults
@pytest.mark.slow
def test_a_cell_whose_process_is_killed_is_done_again(
    ray_session: None, write_features: WriteFeatures, make_work: MakeWork
) -> None:
    features = write_features()
    works = [make_work(f"c{n}", step(seed=n, epochs=400), features=features) for n in range(3)]
    answers = Answers()
    before = trial_processes()
    thread = threading.Thread(target=run, args=(works, answers.hooks))
    thread.start()
    try:
        killed = kill_one_trial(before, thread)
    finally:
        thread.join(timeout=PATIENCE)
        answers.stop = lambda: True
        thread.join()
    assert killed
    assert {type(result) for result in answers.results.values()} == {Outcome}
    assert len(answers.results) == 3


def trial_processes() -> set[int]:
    """The trial processes of this test run only: other Ray sessions may run on this machine.

    Ray names them after our class, and while they train after Tune's that wraps it.
    """
    found = set()
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            name = process.name()
            if re.match(r"ray::(_Trial|ResourceTrainable\.train)", name):
                found.add(process.pid)
    return found


def kill_one_trial(before: set[int], thread: threading.Thread) -> bool:
    """Kill (-9) one trial process that is not in `before`; give up when the thread has ended."""
    while thread.is_alive():
        for pid in trial_processes() - before:
            os.kill(pid, signal.SIGKILL)
            return True
        time.sleep(0.05)
    return False


def test_methods_of_a_seed_get_equal_budgets_and_the_same_draws() -> None:
    paper, linear = draw(NMTUNE.space, 8, 0), draw(LINEAR.space, 8, 0)
    released = draw(RELEASED.space, 8, 0)
    assert len(paper) == len(linear) == len(released) == 8
    assert paper == released
    assert paper == draw(NMTUNE.space, 8, 0)
    assert paper != draw(NMTUNE.space, 8, 1)
    assert draw(NMTUNE.space, 20, 0)[:8] == paper
    assert all(1e-3 <= c.lr <= 1e-2 and c.mse == c.cov == c.svd == 0.01 for c in paper)
    ranks = [sorted(range(8), key=lambda i: drawn[i].lr) for drawn in (paper, linear)]
    assert ranks[0] == ranks[1]  # the same quantiles of two different ranges


def test_every_kind_of_domain_is_drawn_inside_its_bounds() -> None:
    space = Space.model_validate(
        {"lr": {"choice": [0.1, 0.2]}, "weight_decay": {"uniform": [0.5, 0.6]}, "mse": 2}
    )
    drawn = draw(space, 50, 0)
    assert {c.lr for c in drawn} == {0.1, 0.2}
    assert all(0.5 <= c.weight_decay <= 0.6 for c in drawn)
    assert {c.mse for c in drawn} == {2.0}


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"lr": {"loguniform": [0, 1]}}, "needs 0 < low < high"),
        ({"lr": {"uniform": [2, 1]}}, "needs low < high"),
        ({"lr": 0}, "lr spans .* must be above 0"),
        ({"lr": float("inf")}, "should be a finite number"),
        ({"lr": 1, "cov": {"choice": [-1, 1]}}, "cov spans .* 0 or more"),
    ],
)
def test_a_space_that_cannot_be_searched_is_refused(space: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Space.model_validate(space)


def test_a_linear_head_takes_no_regulariser() -> None:
    with pytest.raises(ValueError, match="no output to regularise"):
        Method(head="linear", space=NMTUNE.space)
