"""Links to MLflow's pages: each experiment's runs, its newest sweep's charts, its methods."""

from __future__ import annotations

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
