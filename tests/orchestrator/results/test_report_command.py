"""Promises of `nml-orch report`: every flag does what its help says, in text as on the page."""

import re
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pytest
from mlflow import MlflowClient

import synthetic
from jobs.contract import Outcome
from jobs.storage.folder import Folder
from orchestrator.cli import _run
from orchestrator.experiment import load
from orchestrator.plan import build
from orchestrator.plan.plan import Plan
from orchestrator.results.tables import FinishedSteps
from orchestrator.store.store import Store

SETS = ["tuning.fractions=[100]", "tasks=[digits]", "tuning.label_noise=[0,40]"]
WORDS = ["--noise", "0,10", "--seeds", "0,1,2", *(w for s in SETS for w in ("--set", s))]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A finished sweep, but for one cell."""
    monkeypatch.chdir(tmp_path)
    made = Store(Folder.of(tmp_path / "nml-store"))
    synthetic.fill(plan(), made)
    made.output(plan().of_kind("tune")[0].address).delete()
    return made


def plan() -> Plan:
    return build.build(load.load(noise="0,10", seeds="0,1,2", overrides=SETS))


def report_output(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert _run(["report", *WORDS, *words]) == 0
    return capsys.readouterr().out


def test_out_gets_every_file_of_the_report(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report_output(capsys, "--out", "made/here") == "made/here/report.html\n"
    kept = tmp_path / "nml-store/report/demo"
    for file in (path for path in kept.rglob("*") if path.is_file()):
        copied = tmp_path / "made/here" / file.relative_to(kept)
        assert copied.read_bytes() == file.read_bytes()


def test_a_cell_on_the_page_leads_to_its_folder_in_the_store(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report_output(capsys)
    page = tmp_path / "nml-store/report/demo/report.html"
    table = page.read_text().partition('id="cells"')[2]
    links = re.findall(r'<a href="([^"]+)">folder</a>', table)
    rows = [cell for cell in plan().of_kind("tune") if not cell.labels["label_noise"]]
    assert len(links) == len(rows) - 1
    assert all((page.parent / unquote(link) / "manifest.json").is_file() for link in links)
    assert "MLflow</a>" not in table  # no server is named


@pytest.mark.parametrize("out", ["file", "file/below"])
def test_out_that_cannot_be_written_is_one_sentence(
    out: str, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert _run(["report", *WORDS, "--out", out]) == 2
    assert f"--out {out} cannot be written" in capsys.readouterr().err


def test_tex_names_the_tables_and_they_hold_the_pages_numbers(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = report_output(capsys, "--tex", "--out", "made").splitlines()
    names = ("claims", "label-noise-id", "overlap", "scores-id", "tasks")
    assert paths == [f"made/tables/{name}.tex" for name in names]
    for path in paths:
        text = Path(path).read_text()
        assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 1
    page = Path("made/report.html").read_text()
    numbers = re.findall(r"(\d\d\.\d)\}? \{\\scriptsize", Path(paths[-2]).read_text())
    # Two levels; where a cell lacks, two seeds are left and there is no interval to match.
    assert len(numbers) == 2 * len(plan().experiment.tuning.methods) - 1
    assert all(f">{number}<small>" in page for number in numbers)


def test_rotation_is_measured_when_asked_and_stays_in_the_report(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    random = np.random.default_rng(0)
    for step in plan().of_kind("features"):
        record = store.manifest(step.address)
        assert record is not None
        vectors = pa.array(random.standard_normal(40 * 4).astype(np.float32))
        column = pa.FixedSizeListArray.from_arrays(vectors, 4)
        table = pa.table({"key": [f"k{at}" for at in range(40)], "vector": column})
        store.output(step.address).write_table("features-test.parquet", table)
        store.commit(step, Outcome(record.counts, record.metrics), record.provenance)
    csv = tmp_path / "nml-store/report/demo/rotation.csv"
    report_output(capsys)
    assert not csv.exists()
    report_output(capsys, "--rotation")
    measured = csv.read_text()
    assert len(measured.splitlines()) == 1 + 3  # a noisy encoder in each of three seeds
    report_output(capsys)
    assert csv.read_text() == measured


def test_the_markdown_says_what_the_page_says(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report_output(capsys, "--out", "made")
    text, page = (Path(f"made/report.{kind}").read_text() for kind in ("md", "html"))
    plain = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))
    for sentence in re.findall(r"^- \*\*.+?\*\*: (.+)$", text, re.MULTILINE):
        assert sentence in plain
    tables = [line for line in text.splitlines() if line.startswith("| ") and "%" not in line]
    values = {v for line in tables for v in re.findall(r"(?<=\| )\d+\.\d(?= )", line)}
    assert len(values) > 4
    assert all(f"> {v} <" in page or f">{v}<" in page for v in values)
    assert "40 % label noise" in text
    assert "macro F1" in text
    assert f"- missing: `{plan().of_kind('tune')[0].address}`: no reason given" in text


def test_an_empty_store_has_nothing_to_report_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert _run(["report", *WORDS]) == 2
    error = capsys.readouterr().err
    assert "nothing to report" in error
    assert error.count("\n") == 1


def test_test_images_of_an_id_task_count_in_every_domain_that_tests_on_them(
    tmp_path: Path,
) -> None:
    tasks = "tasks=[domainnet-real, domainnet-sketch, domainnet-sketch-to-real]"
    planned = build.build(load.load(noise="0,10", seeds="0", overrides=[tasks]))
    made = Store(Folder.of(tmp_path))
    synthetic.fill(planned, made)
    spectra = FinishedSteps(planned, made).readout({}, []).spectra.to_pylist()
    domains: dict[str, set[str]] = {
        images: set() for images in ("domainnet-real", "domainnet-sketch")
    }
    for row in spectra:
        domains[row["images"]].add(row["domain"])
    assert domains == {"domainnet-real": {"id", "ood"}, "domainnet-sketch": {"id"}}


def test_cells_that_were_not_planned_are_not_missing(tmp_path: Path) -> None:
    sets = ["tuning.fractions=[10,100]", "tuning.seeds=[0,1]"]
    planned = build.build(load.load("digits-clip", noise="0", overrides=sets))
    made = Store(Folder.of(tmp_path))
    synthetic.fill(planned, made)
    done, asked = FinishedSteps(planned, made).readout({}, []).finished()
    assert done == asked == len(planned.of_kind("tune"))


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("features", "spectrum.parquet"),
        ("pretrain", "curves.parquet"),
        ("noise", "changed.parquet"),
        ("tune", "cell.parquet"),
    ],
)
def test_no_report_is_made_of_a_changed_file(
    kind: str, name: str, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = [one for one in plan().of_kind(kind) if one.labels.get("draw", 0) == 0]
    address = steps[-1].address
    folder = store.output(address)
    folder.write_table(name, folder.read_table(name), compression="none")  # equal rows, other bytes
    assert _run(["report", *WORDS]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"nml-orch: {name} of {address} is not the file that the step wrote")
    assert message.endswith(f"--redo {address}\n")
    assert not (Path("nml-store") / "report").exists()


def test_a_stored_report_that_was_changed_is_written_again(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    report_output(capsys)
    report = Path("nml-store/report/demo")
    for file in ("summary.parquet", "table.csv", "report.html"):
        whole = (report / file).read_bytes()
        (report / file).write_bytes(whole[:-9] + b"tampered!")
        report_output(capsys)
        assert b"tampered!" not in (report / file).read_bytes()
    written = (report / "manifest.json").stat().st_mtime_ns
    report_output(capsys)
    assert (report / "manifest.json").stat().st_mtime_ns == written


def test_the_history_of_registered_claims_is_in_the_report_and_outlives_it(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def told(*claims: str) -> str:
        chosen = ["--set", f"claims=[{', '.join(claims)}]"] if claims else []
        report_output(capsys, *chosen)
        return (tmp_path / "nml-store/report/demo/verdicts.md").read_text().replace("\\", "")

    first = told("sve-moves", "slight-noise-helps-id")
    finished = len(plan().steps) - 1
    assert f"UTC, after {finished} steps were finished: sve-moves, slight-noise-helps-id." in first
    assert "Of 2 registered claims" in first
    store.output("report/demo").delete()
    second = told("sve-moves")
    assert re.search(r"registered on .*Changed on .*removed slight-noise-helps-id\.", second)
    assert "Of 1 registered claim," in second
    assert "no claim is registered any more" in told()
    assert told("sve-moves").count("registered on") == 2
    assert _run(["report", *WORDS, "--set", "claims=[sve-move]"]) == 2
    assert "did you mean sve-moves" in capsys.readouterr().err


@pytest.mark.slow
def test_a_sweep_registers_claims_says_so_and_tags_its_run(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    synthetic.finish(store, plan().of_kind("tune")[0])  # nothing is left to run
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    words = [*WORDS, "--set", f"tracking.uri={uri}", "--force"]
    assert _run(["sweep", *words, "--set", "claims=[sve-moves, id-peaks-at-5-10]"]) == 0
    printed = capsys.readouterr()
    assert "2 claims were registered on " in printed.err
    assert "claims: id-peaks-at-5-10 cannot be tested as planned" in printed.err
    assert "-v: more" in printed.out
    assert _run(["sweep", *words, "--set", "claims=[sve-moves]"]) == 0
    assert "removed id-peaks-at-5-10" in capsys.readouterr().err
    client = MlflowClient(tracking_uri=uri)
    (experiment,) = client.search_experiments(filter_string="name = 'demo'")
    runs = client.search_runs([experiment.experiment_id], "tags.`nml.kind` = 'sweep'")
    assert [run.data.tags["nml.claims"] for run in runs] == ["sve-moves"]
    assert {run.data.tags["nml.features_dtype"] for run in runs} == {"float32"}


@pytest.mark.slow
def test_a_cell_that_answers_one_class_for_every_sample_is_flagged_everywhere(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = plan().of_kind("tune")
    synthetic.finish(store, cells[0])  # nothing is left to run
    clean, recorded = (c for c in cells[:5] if c.labels["method"] == "lp")
    varied = next(c for c in cells if c.labels["method"] == "mlp")
    noisy = next(c for c in cells if c.labels["method"] == "mlp" and c.labels["label_noise"])

    def commit(address: str, **counts: int) -> None:
        step, record = plan().steps[address], store.manifest(address)
        assert record is not None
        outcome = Outcome({**record.counts, **counts}, record.metrics)
        store.commit(step, outcome, record.provenance)

    commit(recorded.address, distinct_predictions=1)
    commit(noisy.address, distinct_predictions=1)
    commit(varied.address, distinct_predictions=2)
    one_class = pa.table({"key": ["a", "b"], "label": [0, 1], "predicted": [0, 0]})
    store.output(clean.address).write_table("predictions.parquet", one_class)  # of an older version
    commit(clean.address, n_test=2)

    sentence = "3 cells answer one class (or one number) for every test sample: "
    named = "LP on digits (2) and MLP on digits"
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    for _ in range(2):  # the second finds the report in the store
        assert _run(["sweep", *WORDS, "--set", f"tracking.uri={uri}", "--force"]) == 0
        assert f"\nconstant {sentence}{named}. " in capsys.readouterr().out
    report = Path("nml-store/report/demo")
    for name in ("report.html", "report.md", "verdicts.md"):
        assert sentence in (report / name).read_text().replace("\\", ""), name
    flagged = [
        line for line in (report / "problems.csv").read_text().splitlines() if ",constant," in line
    ]
    assert {line.split(",")[0] for line in flagged} == {
        recorded.address,
        noisy.address,
        clean.address,
    }
    client = MlflowClient(tracking_uri=uri)
    (experiment,) = client.search_experiments(filter_string="name = 'demo'")
    (run,) = client.search_runs([experiment.experiment_id], "tags.`nml.kind` = 'sweep'")
    assert run.data.tags["nml.constant_cells"].startswith(sentence)
