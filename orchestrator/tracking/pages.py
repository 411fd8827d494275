"""Links to MLflow's pages: an experiment's runs, one run, a sweep's charts and its methods."""

from __future__ import annotations

from urllib.parse import quote, urlsplit

from orchestrator.tracking.mlflow import connect

VIEW = "workflowType=machine_learning"  # of a page's address


def pages(uri: str, host: str) -> dict[str, str]:
    """Links by title on a server at `host`: each experiment's runs, and its newest sweep's charts.

    Raises what the client raises. MLflow's front page shows views for language-model traces; these
    links do not.
    """
    client = connect(uri)
    found: dict[str, str] = {}
    for experiment in client.search_experiments(max_results=50):
        if experiment.name == "Default":
            continue
        runs = f"{host}/#/experiments/{experiment.experiment_id}/runs"
        found[experiment.name] = f"{runs}?{VIEW}"
        sweeps = client.search_runs(
            [experiment.experiment_id], "tags.`nml.kind` = 'sweep'", max_results=1
        )
        for sweep in sweeps:
            charts = f"{runs}/{sweep.info.run_id}/model-metrics?{VIEW}"
            found[f"{experiment.name}: the curves over noise"] = charts
            methods = "searchFilter=tags.%60nml.kind%60%20%3D%20%27method%27"
            found[f"{experiment.name}: all methods in one chart"] = (
                f"{runs}?{methods}&compareRunsMode=CHART&{VIEW}"
            )
    return found


def runs_page(uri: str, experiment: str) -> str:
    """The page of an experiment's runs on a web server; empty without one, or where it is silent.

    The link has no password. Whoever opens it may be asked for one.
    """
    if not uri.startswith(("http://", "https://")):
        return ""
    try:
        found = connect(uri).get_experiment_by_name(experiment)
    except Exception:  # of any kind: a report needs no server
        return ""
    if found is None:
        return ""
    parts = urlsplit(uri)
    host = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"
    return f"{host}/#/experiments/{found.experiment_id}/runs?{VIEW}"


def search(runs_page: str, address: str) -> str:
    """The page of runs, filtered by the address of one: it lies below its sweep.

    A search and no run's id, because a group of cells that grows gets a new run.
    """
    wanted = quote(f"tags.`nml.address` = '{address}'", safe="")
    return f"{runs_page}&searchFilter={wanted}"
