"""`docs/extensions.md` is true: its file passes the check, and its experiment is planned."""

import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from commands import Run

PAGE = (Path(__file__).resolve().parents[1] / "docs/extensions.md").read_text()


def block(language: str) -> str:
    """The page's blocks of a language, one after another."""
    return "\n\n".join(re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL))


def test_every_block_of_the_page_runs(tmp_path: Path, run: Run) -> None:
    (tmp_path / "my_methods.py").write_text(block("python"))
    (tmp_path / "my.yaml").write_text(block("yaml"))
    rows = {"key": ["a", "b"], "vector": [[0.0, 1.0]] * 2, "label": [0, 1]}
    pq.write_table(pa.table(rows), tmp_path / "reviews.parquet")
    code, printed = run(tmp_path, "extension", "check", "my_methods.py")
    assert code == 0, printed
    names = ["Shrinkage", "NearestMean", "Anchored", "small", "next_class"]
    names += ["shrinkage_beats_the_probe"]
    assert [line.split()[1] for line in printed.splitlines()] == [f"{name}:" for name in names]
    code, printed = run(tmp_path, "extension", "list", "my_methods.py")
    assert code == 0, printed
    assert "method   my_methods:Shrinkage  A head whose output stays near the features." in printed
    code, printed = run(tmp_path, "plan", "my.yaml")
    assert code == 0, printed
    (noise,) = re.findall(r"`noise: (\{.*?\})`", PAGE)
    words = ["--extension", "my_methods.py", "--set", f"noise={noise}"]
    method = "{head: my_methods:Shrinkage, space: {lr: 0.01, strength: 1}}"
    claim = ["--set", f"tuning.methods.shrinkage={method}"]
    claim += ["--set", "claims=[shrinkage-beats-the-probe]"]
    code, printed = run(tmp_path, "plan", *words, *claim)
    assert code == 0, printed
    (encoders,) = re.findall(r"^    encoders: (\[.*\])$", PAGE, re.MULTILINE)
    (anchored,) = re.findall(r"`anchored: (\{.*?\})`", PAGE)
    model, options = re.findall(r"`model: (\S+)`,\s+`model_options: (\{.*?\})`", PAGE)[0]
    (tmp_path / "weights.safetensors").write_bytes(b"")
    words = ["--extension", "my_methods.py", "--set", f"encoders={encoders}"]
    words += ["--set", f"tuning.methods.anchored={anchored}"]
    words += ["--set", f"pretrain.recipe.model={model}"]
    words += ["--set", f"pretrain.recipe.model_options={options}"]
    code, printed = run(tmp_path, "plan", *words)
    assert code == 0, printed


def test_a_new_file_runs(tmp_path: Path, run: Run) -> None:
    assert run(tmp_path, "extension", "new", "mine")[0] == 0
    code, printed = run(tmp_path, "extension", "check", "mine.py")
    assert code == 0, printed
    assert "trains as one stack of 4, as each alone" in printed
    code, printed = run(tmp_path, "extension", "new", "mine")
    assert (code, printed) == (2, "nml-orch: mine.py exists; give another name, or delete it\n")
    code, printed = run(tmp_path, "extension", "check", "my-file.py")
    assert code == 2
    assert "rename the file" in printed
