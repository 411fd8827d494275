"""What a person sees in MLflow: a real browser before a real `nml-orch ui`."""

import os
import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from mlflow import MlflowClient

import synthetic
from browser import CHROMIUM, Browser, browser
from commands import Start, answers, free_port
from jobs.storage.folder import Folder
from orchestrator.experiment import load
from orchestrator.plan import build
from orchestrator.results import collect
from orchestrator.store.store import Store
from orchestrator.tracking import pages as links
from orchestrator.tracking.mirror import sync
from planted import listening

pytestmark = pytest.mark.slow


@dataclass
class Pages:
    """MLflow's pages over a finished sweep, served by `process`."""

    process: int
    folder: Path
    url: str
    experiment_id: str
    parent_id: str
    children: dict[str, str]  # address -> run id

    def run(self, run_id: str, tab: str = "") -> str:
        page = f"{self.url}/#/experiments/{self.experiment_id}/runs/{run_id}{tab}"
        return f"{page}?workflowType=machine_learning"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory, start: Start) -> Iterator[Pages]:
    folder = tmp_path_factory.mktemp("pages")
    overrides = ["tuning.fractions=[10,100]", "tasks=[digits,digits-parity,digits-rotated]"]
    made = build.build(load.load(noise="0,5,10,20,30", seeds="0,1", overrides=overrides))
    store = Store(Folder.of(folder / "nml-store"))
    synthetic.fill(made, store)
    uri = f"sqlite:///{folder}/mlflow.db"
    report = collect.refresh(made, store)
    with collect.local(report) as files:
        sync(made, store, uri, report.record(files))
    client = MlflowClient(tracking_uri=uri)
    found = client.get_experiment_by_name("demo")
    runs = client.search_runs([found.experiment_id], max_results=1000)
    by_address = {run.data.tags["nml.address"]: run.info.run_id for run in runs}
    port = free_port()
    command = start(folder, "ui", "--port", str(port))
    url = f"http://127.0.0.1:{port}"
    command.wait_until(lambda: answers(f"{url}/health"), "MLflow's pages", every=0.3)
    process = command.process.pid
    yield Pages(process, folder, url, found.experiment_id, by_address["sweep/demo"], by_address)
    os.killpg(command.process.pid, signal.SIGTERM)
    command.process.wait()


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine")
    folder = tmp_path_factory.mktemp("browser")
    shots = Path(os.environ.get("NML_SCREENSHOTS", folder / "shots"))
    with browser(folder / "profile", shots) as opened:
        yield opened


def test_the_pages_are_served_on_loopback_alone(pages: Pages) -> None:
    found = listening(pages.process)
    assert pages.url.rpartition(":")[2] in {at for _, at, _ in found}
    assert {address for address, _, _ in found} <= {"127.0.0.1", "::1"}, found


def test_the_experiments_page_lists_runs_by_level(pages: Pages, web: Browser) -> None:
    url = f"{pages.url}/#/experiments/{pages.experiment_id}/runs?workflowType=machine_learning"
    web.visit(url, "sweep demo", shot="experiment")


def test_the_sweeps_page_describes_it_and_names_its_corpus(pages: Pages, web: Browser) -> None:
    text = web.visit(pages.run(pages.parent_id), "sweep demo", "nml.step_unit", shot="sweep")
    assert "digits" in text


def test_ui_prints_a_link_to_the_sweeps_charts(pages: Pages) -> None:
    uri = f"sqlite:///{pages.folder}/mlflow.db"
    charts = links.pages(uri, pages.url)["demo: the curves over noise"]
    assert charts == pages.run(pages.parent_id, "/model-metrics")


def test_the_sweeps_charts_are_the_curves_over_noise(pages: Pages, web: Browser) -> None:
    url = pages.run(pages.parent_id, "/model-metrics")
    web.visit(url, "lsvr", "id_accuracy", "id_macro_f1", shot="sweep-charts")


def test_the_methods_lines_lie_in_one_chart(pages: Pages, web: Browser) -> None:
    uri = f"sqlite:///{pages.folder}/mlflow.db"
    url = links.pages(uri, pages.url)["demo: all methods in one chart"]
    web.visit(url, "id_accuracy", "nmtune-released-control", shot="methods")


def test_a_cell_of_the_report_leads_to_its_run(pages: Pages, web: Browser) -> None:
    page = links.runs_page(pages.url.replace("//", "//user:secret@"), "demo")
    assert page.startswith(f"{pages.url}/#/experiments/{pages.experiment_id}/runs?")
    address = "tune/digits/symmetric/resnet-small/noise=5/seed=0/lp"
    text = web.visit(links.search(page, address), "sweep demo", "matching runs", shot="cell")
    assert re.search(r"\b2\s+matching runs", text)  # the cell's run, and the sweep that it is below
    assert links.runs_page(pages.url, "another") == ""
    assert links.runs_page(f"http://127.0.0.1:{free_port()}", "demo") == ""


def test_a_childs_page_shows_its_tasks_and_what_it_read(pages: Pages, web: Browser) -> None:
    address = "tune/digits/symmetric/resnet-small/noise=5/seed=0/nmtune-paper"
    text = web.visit(
        pages.run(pages.children[address]), "digits-rotated/accuracy", "noise=5", shot="cells"
    )
    assert "nmtune-paper" in text


def test_the_report_opens_in_the_page(pages: Pages, web: Browser) -> None:
    url = pages.run(pages.parent_id, "/artifacts/report.html")
    web.visit(url, "What does label noise in pre-training do to handwritten digits?", shot="report")


def test_the_cells_table_opens_in_the_page(pages: Pages, web: Browser) -> None:
    address = "tune/digits/symmetric/resnet-small/noise=5/seed=0/lp"
    url = pages.run(pages.children[address], "/artifacts/cells.csv")
    web.visit(url, "cells.csv", "test_accuracy", shot="cells-table")


def test_levels_compare_side_by_side(pages: Pages, web: Browser) -> None:
    ids = [
        pages.children[f"tune/digits/symmetric/resnet-small/noise={level}/seed=0/lp"]
        for level in (0, 10, 30)
    ]
    quoted = "%22,%22".join(ids)
    url = f"{pages.url}/#/compare-runs?runs=[%22{quoted}%22]"
    url += f"&experiments=[%22{pages.experiment_id}%22]"
    web.visit(url, "digits/accuracy", "digits-rotated/accuracy", shot="compare")
