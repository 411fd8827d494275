"""A whole sweep through an embedding API: paid for once, never lost, never leaked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from commands import Run, in_process
from embedding_server import Reply, Stub, error, serving
from stores import finished

pytestmark = pytest.mark.slow

KEY = "planted-api-key-8c1"
FILE = """
name: remarks
encoders:
  - {{name: ada, kind: api, base_url: "{url}", model: text-embedding-ada-002,
     key_env: MY_API_KEY, price_per_million: 0.1, max_price: {most}, batch_rows: 16}}
tasks: [remarks-films, remarks-kitchen]
tuning:
  configurations: 1
  epochs: 2
  seeds: [0]
  fractions: [50]
  methods:
    lp: {{head: linear, space: {{lr: 0.01}}}}
tracking: {{uri: "sqlite:///{folder}/mlflow.db"}}
"""


@pytest.fixture(scope="module")
def stub() -> Iterator[Stub]:
    with serving() as found:
        yield found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, stub: Stub) -> Path:
    found = tmp_path_factory.mktemp("api")
    for name, most in (("dear", 1e-6), ("my", 20)):
        (found / f"{name}.yaml").write_text(FILE.format(url=stub.url, most=most, folder=found))
    return found


@pytest.fixture(scope="module")
def told(folder: Path, stub: Stub, run_on_ray: Run) -> dict[str, tuple[int, str]]:
    """What each of several sweeps on one store ended with and printed, in turn."""
    found: dict[str, tuple[int, str]] = {}

    def sweep(name: str, *words: str) -> None:
        before = len(stub.requests)
        found[name] = run_on_ray(folder, "sweep", *words, MY_API_KEY=KEY)
        requests[name] = len(stub.requests) - before

    sweep("dear", "dear.yaml")
    found["plan"] = in_process(folder, "plan", "my.yaml", MY_API_KEY=KEY)
    stub.fault = lambda texts, number: error(401, f"Incorrect API key provided: {KEY}")
    sweep("wrong key", "my.yaml")

    def echoing(texts: Sequence[str], number: int) -> Reply | None:
        if any(text == bad for text in texts):
            return error(400, f"refused; you sent Authorization: Bearer {KEY}")
        return error(503, f"busy, {KEY}") if number % 20 == 0 else None

    bad = _a_text(folder)
    stub.fault = echoing
    sweep("bad text", "my.yaml")
    bad = ""
    sweep("done", "my.yaml")
    stub.fault = lambda texts, number: error(500, "nobody may ask")
    sweep("again", "my.yaml")
    sweep("redone", "my.yaml", "--redo", "features/encoder/ada")
    sweep("forced", "my.yaml", "--set", "features.dtype=float16", "--force")
    return found


requests: dict[str, int] = {}


def _a_text(folder: Path) -> str:
    import pyarrow.parquet as pq

    shard = next((folder / "nml-store/corpus/remarks-films").glob("train-*.parquet"))
    return str(pq.read_table(shard)["text"][3].as_py())


Told = dict[str, tuple[int, str]]


def test_a_sweep_above_the_limit_is_refused_before_the_first_request(told: Told) -> None:
    code, printed = told["dear"]
    assert code == 2
    assert "more than max_price 1e-06" in printed
    assert requests["dear"] == 0


def test_plan_tells_texts_tokens_and_price_as_the_server_counts_them(
    told: Told, stub: Stub
) -> None:
    _, printed = told["plan"]
    (line,) = [line for line in printed.splitlines() if line.startswith("To buy of ada")]
    assert "1,600 texts" in line
    tokens = int(line.split(" texts, ")[1].split(" tokens")[0].replace(",", ""))
    assert tokens == pytest.approx(stub.tokens, rel=0.01)


def test_a_wrong_key_ends_the_step_in_one_sentence(told: Told) -> None:
    code, printed = told["wrong key"]
    assert code == 1
    assert "the key is not accepted; correct the environment variable MY_API_KEY" in printed
    assert requests["wrong key"] <= 2  # one for each features step


def test_a_bad_text_fails_alone(told: Told, stub: Stub) -> None:
    code, printed = told["bad text"]
    assert code == 1
    assert "gives no vector for 1 samples" in printed
    assert told["done"][0] == 0, told["done"][1]
    assert requests["done"] == 2  # the canary, and the text that is accepted now
    assert len(stub.sold) == 1601
    assert sum(stub.sold.values()) == 1602  # the canary twice


@pytest.mark.parametrize("name", ["again", "redone", "forced"])
def test_what_is_bought_is_never_asked_for_again(told: Told, name: str) -> None:
    assert told[name][0] == 0, told[name][1]
    assert requests[name] == 0


def test_every_step_is_done_and_the_report_says_what_is_true(told: Told, folder: Path) -> None:
    steps = sorted(finished(folder))
    assert "features/encoder/ada/remarks-kitchen" in steps
    assert "tune/encoder/ada/remarks-kitchen/lp/fraction=50/seed=0" in steps
    page = (folder / "nml-store/report/remarks/report.html").read_text()
    assert "not deterministic" in page


def test_the_key_is_found_nowhere(told: Told, folder: Path) -> None:
    kept = [path for path in folder.rglob("*") if path.is_file()]
    assert any(path.name == "mlflow.db" for path in kept)
    assert any(path.name == "report.html" for path in kept)
    assert [str(path) for path in kept if KEY.encode() in path.read_bytes()] == []
    for _, printed in told.values():
        assert KEY not in printed
    assert "***" in told["bad text"][1]


def test_the_commands_show_verify_and_export(told: Told, folder: Path) -> None:
    code, printed = in_process(folder, "embeddings", "show")
    assert (code, "1,601 texts of 16 numbers" in printed) == (0, True), printed
    code, printed = in_process(folder, "embeddings", "verify")
    assert (code, "are whole" in printed) == (0, True), printed
    code, printed = in_process(folder, "embeddings", "export", "out.parquet")
    assert (code, "1,601 vectors" in printed) == (0, True), printed
    ledger = next((folder / "nml-store/.embeddings").glob("*/answers/*.arrow"))
    data = bytearray(ledger.read_bytes())
    data[len(data) // 2] ^= 1
    ledger.write_bytes(data)
    code, printed = in_process(folder, "embeddings", "verify")
    assert (code, ledger.name in printed) == (1, True), printed
    code, printed = in_process(folder, "embeddings", "export", "damaged.parquet")
    assert (code, ledger.name in printed) == (2, True), printed
    assert not list(folder.glob("damaged*")), "nothing is half written"
