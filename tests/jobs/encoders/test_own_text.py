"""An encoder of texts by an extension: its module reads the ids of a tokenizer that is stored."""

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from jobs.contract import StageError, Work
from jobs.encoders import encoder
from jobs.encoders.digests import digest
from jobs.encoders.encoder import EncoderCard
from jobs.encoders.pretrained import import_encoder
from jobs.encoders.spec import EncoderStep, OwnTextEncoder
from jobs.encoders.text import TextEncoder
from jobs.storage.folder import Folder
from jobs.tuning.finetune.model import AdaptedEncoder
from jobs.tuning.methods import Method
from jobs.tuning.search_space import Space
from jobs.tuning.target import ClassTarget
from tests.jobs.encoders.own_models import SOURCE
from tests.jobs.text.models import features_of, table, words_tokenizer


def imported(folder: Path, **fields: Any) -> TextEncoder:
    tokenizer = folder / "tokenizer"
    words_tokenizer().save_pretrained(tokenizer)
    spec = OwnTextEncoder(
        name="own", model="mine:words", source=SOURCE, tokenizer=str(tokenizer), **fields
    )
    step = EncoderStep(encoder=digest(spec))  # type: ignore[arg-type]
    work = Work("encoder/own", "0", step, {}, Folder.of(folder / "out"), Folder.of(folder / "s"))
    import_encoder(work)
    assert EncoderCard.read(work.output).as_json() == work.output.read_json("encoder.json")
    opened = encoder.load(work.output, source=SOURCE)
    assert isinstance(opened, TextEncoder)
    return opened


def test_its_features_are_the_means_of_its_hidden_states(tmp_path: Path) -> None:
    opened: Any = imported(tmp_path, model_options={"width": 6}, pair="concat4")
    assert opened.dim == 24
    rows = table(["the film is good", "bad"], ["a plot", "a very long film"])
    found = features_of(opened, rows)
    own = words_tokenizer()
    model = opened.model.encoder
    u, v = (
        torch.stack(
            [model(torch.tensor(own(text).input_ids)[None], None)[0].mean(0) for text in each]
        )
        for each in (rows["text"].to_pylist(), rows["pair"].to_pylist())
    )
    torch.testing.assert_close(found, torch.cat([u, v, (u - v).abs(), u * v], 1).detach())


def test_its_weights_come_from_a_file_and_lora_adapts_its_mlp(tmp_path: Path) -> None:
    weights = {
        n: torch.randn(*v.shape)
        for n, v in imported(tmp_path / "a").model.encoder.state_dict().items()
    }  # type: ignore[union-attr]
    safetensors.torch.save_file(weights, tmp_path / "w.safetensors")
    opened: Any = imported(tmp_path / "b", file=str(tmp_path / "w.safetensors"))
    assert torch.equal(opened.model.encoder.table.weight, weights["table.weight"])
    method = Method(head="linear", adapt="lora", rank=2, space=Space(lr=0.1))
    adapted = AdaptedEncoder(opened, method, ClassTarget(2), 0)
    assert {name.split(".lora_")[0] for name in adapted.state()} == {"encoder.mlp"}


def test_a_tokenizer_is_identified_by_its_files(tmp_path: Path) -> None:
    imported(tmp_path)
    spec = OwnTextEncoder(name="own", model="mine:words", tokenizer=str(tmp_path / "tokenizer"))
    planned = digest(spec)
    assert isinstance(planned, OwnTextEncoder)
    assert "tokenizer_sha256" in planned.semantic()
    assert "tokenizer" not in planned.semantic()
    (tmp_path / "tokenizer/vocab.txt").write_text("more")
    with pytest.raises(StageError, match="holds other files"):
        digest(planned)
    with pytest.raises(StageError, match=r"tokenizer = .* has no tokenizer"):
        digest(spec.model_copy(update={"tokenizer": str(tmp_path / "nowhere")}))
