"""One corpus of digits for all of these tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from jobs.contract import Hooks, Outcome, Work
from jobs.corpus.job import run_corpus
from jobs.place import Place
from tests.jobs.finetune.digits import CORPUS, put_encoder


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> Place:
    root = Place.of(tmp_path_factory.mktemp("store"))
    results: dict[str, Outcome | BaseException] = {}
    built = Work("corpus/digits", "", CORPUS, {}, root / "corpus", root / "scratch")
    run_corpus([built], Hooks(results.__setitem__, lambda *_: None, lambda: False))
    assert isinstance(results["corpus/digits"], Outcome), results
    return root / "corpus"


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return put_encoder(Place.of(tmp_path_factory.mktemp("encoder")))
