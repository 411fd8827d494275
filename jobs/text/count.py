"""How many tokens a text of a corpus has, counted on its first rows.

Takes a finished corpus of texts and the bytes of a `tokenizer.json`; gives a mean. Uses the
`tokenizers` library alone, which loads in a moment.
"""

from __future__ import annotations

from jobs.contract import StageError
from jobs.corpus.shards import PARTS, Index, read_rows
from jobs.storage.folder import Folder

ROWS = 256  # of a corpus's first shard


def tokens_per_row(corpus: Folder, tokenizer: bytes, most: int | None) -> float:
    """The mean number of tokens of a row, a pair counted together; `most`: of a row, none: all.

    Raises StageError for a tokenizer that cannot be read.
    """
    from tokenizers import Tokenizer

    try:
        opened = Tokenizer.from_str(tokenizer.decode())
    except Exception as error:  # the library raises plain Exceptions
        raise StageError(f"tokenizer.json cannot be read ({error}); save it again") from error
    opened.no_padding()
    opened.no_truncation()
    index = Index.read(corpus)
    files = [file for part in PARTS for file in index.parts[part]]
    rows = read_rows(corpus, files[0].file, 0, min(ROWS, files[0].rows), ["text", "pair"])
    texts = zip(rows["text"].to_pylist(), rows["pair"].to_pylist(), strict=True)
    found = opened.encode_batch([text if pair is None else (text, pair) for text, pair in texts])
    lengths = [len(one.ids) if most is None else min(most, len(one.ids)) for one in found]
    return sum(lengths) / len(lengths)
