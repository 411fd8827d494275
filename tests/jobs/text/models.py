"""Small untrained text models of several kinds, as folders that save_pretrained writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE, WordLevel
from tokenizers.pre_tokenizers import ByteLevel, Whitespace
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast

from jobs.contract import Outcome, Work
from jobs.corpus.shards import File, Index
from jobs.encoders.digests import digest
from jobs.encoders.encoder import load
from jobs.encoders.pretrained import import_encoder
from jobs.encoders.spec import EncoderStep, TransformersEncoder
from jobs.encoders.text import TextEncoder
from jobs.storage.folder import Folder

SENTENCE = "the film is a dull bright short and not very long plot with one good or bad actor"
WORDS = SENTENCE.split(" ")
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("pair", pa.string()),
        pa.field("label", pa.int32()),
    ]
)

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "bert": {"model_type": "bert", **SMALL, "pad_token_id": 0},
    # Positions begin after the padding's own: 64 texts' tokens need 66.
    "roberta": {
        "model_type": "roberta",
        **SMALL,
        "max_position_embeddings": 66,
        "type_vocab_size": 1,
        "pad_token_id": 0,
    },
    "gpt2": {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "modernbert": {
        "model_type": "modernbert",
        **SMALL,
        "pad_token_id": 0,
        "local_attention": 8,
        "global_attn_every_n_layers": 2,
    },
    "qwen3": {"model_type": "qwen3", **SMALL, "num_key_value_heads": 2, "head_dim": 8},
}
DECODERS = ("gpt2", "qwen3")


def words_tokenizer() -> PreTrainedTokenizerFast:
    """BERT's kind: words, with special tokens around a text or a pair."""
    made = Tokenizer(WordLevel({w: n for n, w in enumerate(SPECIAL + WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = Whitespace()
    made.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def bytes_tokenizer() -> PreTrainedTokenizerFast:
    """GPT-2's kind: byte pairs, nothing around a text, no token for padding or masking."""
    made = Tokenizer(BPE())
    made.pre_tokenizer = ByteLevel(add_prefix_space=False)
    trainer = BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([SENTENCE], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        model_input_names=["input_ids", "attention_mask"],
    )


def put_model(folder: Path, kind: str, **changes: Any) -> Path:
    """Write a model of a kind with random weights, and its tokenizer; `changes`: of its config."""
    tokenizer = bytes_tokenizer() if kind in DECODERS else words_tokenizer()
    options = {**CONFIGS[kind], "vocab_size": len(tokenizer), **changes}
    config = AutoConfig.for_model(**options)
    for name in ("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"):
        setattr(config, name, getattr(tokenizer, name, None))
    torch.manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        model = AutoModel.from_config(config)
        for parameter in model.parameters():  # larger than drawn: rows differ visibly
            parameter.data.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def imported(folder: Path | str, root: Path, **settings: Any) -> tuple[Outcome, TextEncoder]:
    """The encoder of a model's folder, imported below `root` and opened."""
    spec = TransformersEncoder(name="e", model=str(folder), **settings)
    output = Folder.of(root / "out")
    step = EncoderStep(encoder=digest(spec))
    outcome = import_encoder(Work("encoder/e", "f", step, {}, output, Folder.of(root / "scratch")))
    opened = load(output)
    assert isinstance(opened, TextEncoder)
    return outcome, opened


def texts(rows: int, seed: int = 0, longest: int = 30) -> list[str]:
    """Sentences of 1 to `longest` words."""
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(1, longest + 1))) for _ in range(rows)]


def table(first: list[str], second: list[str | None] | None = None) -> pa.Table:
    """Rows as in a text corpus's shards."""
    keys = [f"r{n:04d}" for n in range(len(first))]
    labels = [int("good" in text.split()) for text in first]
    second = second or [None] * len(first)
    return pa.table([keys, first, second, labels], schema=SCHEMA)


def put_corpus(folder: Folder, parts: dict[str, pa.Table]) -> Folder:
    """Write a text corpus of one shard for each part."""
    files = {}
    for part, rows in parts.items():
        name = f"{part}-00000.parquet"
        sink = pa.BufferOutputStream()
        pq.write_table(rows, sink, row_group_size=50)
        folder.write_bytes(name, sink.getvalue().to_pybytes())
        files[part] = (File(name, len(rows), len(sink.getvalue()), folder.sha256(name)),)
    Index("texts", ("bad", "good"), files).write(folder)
    return folder


def features_of(opened: TextEncoder, rows: pa.Table, size: int | str = "auto") -> torch.Tensor:
    """The plain features of rows, in order."""
    found = torch.empty(len(rows), opened.dim)
    size = opened.batch_size(size, "float32")  # type: ignore[arg-type]
    for batch in opened.batches(rows, size, None, 1):
        found[torch.from_numpy(batch.rows)] = opened.features(batch.inputs)
    return found
