"""What a message of the analysis tells who calls it to do works when it is done."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from analysis import readout
from analysis.claims import own
from analysis.rotation import rotation, space
from analysis.statistics import pearson

EYE = np.eye(4, 3)
TABLE = pa.table({"a": [1], "b": [2]})


def readout_of(fractions: tuple[float, ...]) -> readout.Readout:
    question = readout.Question(
        title="t",
        corpus="c",
        noise_kind="symmetric",
        objective="supervised",
        recipe="r",
        encoder="e",
        levels=(0.0,),
        seeds=(0,),
        id_tasks=("t",),
        ood_tasks=(),
        methods=("lp",),
        fractions=fractions,
        tuning_seeds=(),
    )
    return readout.Readout("demo", question, readout._TABLES["cells"].empty_table())


CALLS: dict[str, tuple[Callable[[], Any], str, Callable[[], Any]]] = {
    "one row": (lambda: space(EYE[:1]), r"give \[N >= 2, D\]", lambda: space(EYE[:2])),
    "one axis": (lambda: space(EYE[0]), r"give \[N >= 2, D\]", lambda: space(EYE)),
    "a value that is none": (
        lambda: space(EYE * np.nan),
        "extract them again in float32",
        lambda: space(EYE.astype(np.float32)),
    ),
    "other samples": (
        lambda: rotation(space(EYE), space(EYE[:3])),
        "features of 4 and 3 samples; give the same",
        lambda: rotation(space(EYE[:3]), space(EYE[:3])),
    ),
    "a value too few": (
        lambda: pearson([1, 2, 3], [1, 2]),
        "give as many of each",
        lambda: pearson([1, 2, 3], [1, 2, 4]),
    ),
    "a table without a column": (
        lambda: readout._checked("cells", TABLE.drop_columns("b"), TABLE.schema),
        "the readout's cells table lacks b; add them",
        lambda: readout._checked("cells", TABLE, TABLE.schema),
    ),
    "no fraction": (
        lambda: readout_of(()),
        r"question\.fractions is empty; name at least one, in percent",
        lambda: readout_of((100.0,)).fraction,
    ),
    "a domain of nobody": (
        lambda: own._domain("ID"),
        "domain is 'ID'; give 'id' or 'ood'",
        lambda: own._domain("id"),
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_remedy_works_when_it_is_followed(name: str) -> None:
    refused, remedy, followed = CALLS[name]
    with pytest.raises(ValueError, match=remedy):
        refused()
    assert followed() is not None
