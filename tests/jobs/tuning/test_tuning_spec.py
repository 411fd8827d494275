"""Valid search settings of an experiment file, and the messages for invalid ones."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from jobs.tuning.draw import draw
from jobs.tuning.search_space import Space
from jobs.tuning.spec import Tuning

LR = {"loguniform": [1e-3, 1e-1]}
LP = {"head": "linear", "space": {"lr": LR}}


def tuning(**changes: object) -> Tuning:
    return Tuning.model_validate({"methods": {"lp": LP}} | changes)


def test_a_grid_is_every_combination_in_order() -> None:
    space = Space.model_validate({"lr": {"grid": [0.1, 0.2]}, "svd": {"grid": [0, 1, 2]}, "mse": 3})
    drawn = draw(space, 6, 0)
    assert [(c.lr, c.svd) for c in drawn] == [(lr, svd) for lr in (0.1, 0.2) for svd in (0, 1, 2)]
    assert {c.mse for c in drawn} == {3}
    assert space.combinations == len(drawn)


def test_quniform_and_randint_are_drawn_as_tune_defines_them() -> None:
    space = Space.model_validate(
        {"lr": {"quniform": [0.5, 2, 0.5]}, "weight_decay": {"randint": [1, 4]}}
    )
    drawn = draw(space, 60, 0)
    assert {c.lr for c in drawn} == {0.5, 1, 1.5, 2}
    assert {c.weight_decay for c in drawn} == {1, 2, 3}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"search": "grid"}, "method lp has a domain to draw from"),
        (
            {"methods": {"lp": {"head": "linear", "space": {"lr": {"grid": [1, 2]}}}}},
            "gives lr as a grid, which needs search: grid",
        ),
        (
            {
                "search": "grid",
                "configurations": 3,
                "methods": {"lp": {"head": "linear", "space": {"lr": {"grid": [1, 2]}}}},
            },
            "has 2 combinations and the budget is configurations=3",
        ),
        ({"precision": "tf32"}, "exists on GPUs alone"),
        ({"label_noise": [10, 10]}, "one of label_noise is given twice"),
        ({"seeds": [0, 0]}, "one of seeds is given twice"),
        ({"fractions": [50, 50]}, "one of fractions is given twice"),
        ({"label_noise": [51]}, "less than or equal to 50"),
        ({"search": "optuna", "halving": {"first": 1}}, "leave out halving"),
        ({"methods": {"r": {"head": "ridge", "space": {"lr": LR}}}}, "l2 alone; leave out lr"),
        ({"methods": {"r": {"head": "ridge", "space": {}}}}, "l2 alone; give l2"),
        ({"methods": {"r": {"head": "lbfgs", "space": {"l2": 0}}}}, "l2 spans .* above 0"),
        ({"methods": {"lp": {"head": "linear", "space": {}}}}, "needs lr in its space"),
        (
            {"methods": {"lp": {"head": "linear", "space": {"lr": {"quniform": [1, 2, 3]}}}}},
            "needs low < high and 0 < q",
        ),
        (
            {"methods": {"lp": {"head": "linear", "space": {"lr": {"quniform": [0.05, 1, 0.1]}}}}},
            "low must be a multiple of q",
        ),
        (
            {"methods": {"lp": {"head": "linear", "space": {"lr": {"quniform": [1, 2.5, 1]}}}}},
            "high must be a multiple of q",
        ),
        ({"fractions": []}, "at least 1 item"),
        ({"seeds": []}, "at least 1 item"),
        (
            {"methods": {"lp": {"head": "linear", "space": {"lr": {"randint": [2, 2]}}}}},
            "needs low < high",
        ),
    ],
)
def test_an_impossible_search_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tuning(**changes)


def test_resources_do_not_change_the_identity() -> None:
    same = tuning(cpus=2, gpus=0.5, memory_mb=64).semantic()
    assert same == tuning().semantic()
    assert same != tuning(patience=2).semantic()
    assert same != tuning(precision="bf16").semantic()


# -- controls --------------------------------------------------------------------------------------

NMTUNE = {
    "head": "released",
    "space": {"lr": LR, "mse": 1.0, "cov": 0.04, "scale": {"choice": [1, 2]}},
}


def test_a_regularised_method_gets_its_control() -> None:
    found = Tuning.model_validate({"methods": {"nmtune": NMTUNE}})
    assert list(found.methods) == ["nmtune", "nmtune-control"]
    assert found.controls == {"nmtune": "nmtune-control"}
    control = found.methods["nmtune-control"]
    assert control.head == "released"
    assert control.space == Space(lr=LR)  # type: ignore[arg-type]
    assert found.settings(control).configurations == found.configurations
    tried = [draw(m.space, 8, 0) for m in found.methods.values()]
    assert [one.lr for one in tried[0]] == [one.lr for one in tried[1]]


def test_a_method_that_is_the_control_already_serves() -> None:
    plain = {"head": "released", "space": {"lr": LR}}
    less = {"head": "released", "space": {"lr": LR, "mse": 1.0}}
    methods = {"plain": plain, "nmtune": NMTUNE, "without-cov": less}
    found = Tuning.model_validate({"methods": methods})
    assert list(found.methods) == ["plain", "nmtune", "without-cov"]
    assert found.controls == {"nmtune": "plain", "without-cov": "plain"}
    assert Tuning.model_validate(found.model_dump()) == found


def test_another_method_of_a_controls_name_is_refused() -> None:
    other = {"head": "linear", "space": {"lr": LR}}
    with pytest.raises(
        ValidationError, match="nmtune-control is the name of the control of nmtune"
    ):
        Tuning.model_validate({"methods": {"nmtune": NMTUNE, "nmtune-control": other}})


def test_the_control_of_a_grid_tries_its_own_whole_grid() -> None:
    space = {"lr": {"grid": [0.01, 0.001]}, "mse": {"grid": [0.1, 1.0, 10.0]}}
    given = {"search": "grid", "configurations": 6}
    methods = {"nmtune": {"head": "paper", "space": space}}
    found = Tuning.model_validate({**given, "methods": methods})
    control = found.methods["nmtune-control"]
    assert found.settings(found.methods["nmtune"]).configurations == 6
    assert found.settings(control).configurations == len(draw(control.space, 6, 0)) == 2
