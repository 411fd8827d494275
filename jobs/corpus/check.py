"""Checks which of a reader's rows may enter a corpus, and says why the others may not.

Takes rows as readers give them (`readers.rows`). Gives the good rows by the corpus's form, the bad
ones as rows of the quarantine (source, key, reason), and counts of what is unusual but kept. Images
are checked by their structure. A small image, and one with anything unusual, is decoded; all are,
on request. Texts are checked as bytes. Nothing is repaired, and every row is counted. On request,
large images are replaced by smaller ones (`jobs.images.shrink`).

Reasons: no_key, no_label, label_unknown, and a reader's own (broken_json, too_large, ...).
Of images: no_image, empty_image, not_an_image, broken_header, too_many_pixels, truncated,
undecodable, no_caption, empty_caption, caption_not_utf8, caption_with_nul, unsafe_path, link,
not_a_file, two_images, caption_not_text, dotted_stem, repeated_member. Of masks: no_mask, and those
of `jobs.images.masks.checked`. Notes of images: all_ignored (a mask without a class), cmyk,
sixteen_bit, palette, animated, exif_rotated, wrong_extension, caption_of_lines.
Of texts, and the same of pairs: no_text, empty_text, text_not_utf8, text_not_text, text_with_nul,
text_too_long; label_not_a_number, wrong_number_of_fields. Notes: unlabelled, equal_rows,
equal_rows_other_label.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from jobs.corpus.form import Form
from jobs.corpus.mask_spec import MaskFields
from jobs.corpus.reader_spec import AnyReader
from jobs.corpus.shrunk import NONE, Shrunk
from jobs.corpus.spec import Corpus
from jobs.images import masks
from jobs.images.decode import decode_fault, fault_of
from jobs.images.headers import HeaderError, read_header
from jobs.images.masks import Numbers
from jobs.images.shrink import shrunk, smaller_size
from jobs.images.spec import Shrink

QUARANTINE_SCHEMA = pa.schema(
    [
        pa.field("source", pa.string(), nullable=False),  # file, as the reader names it
        pa.field("key", pa.string(), nullable=False),  # empty where the row has none
        pa.field("reason", pa.string(), nullable=False),  # one of the reasons above
    ]
)

Columns: TypeAlias = "tuple[list[Any], Counter[str], Shrunk]"
"""The columns after the key, the notes, and what was shrunk."""

TEXT_BYTES = 1 << 20  # of a text, in UTF-8; a longer one is no sample


@dataclass(frozen=True)
class Rules:
    """What a corpus requires of its rows."""

    form: Form
    labels: bool  # every row must have one
    classes: int  # labels are 0..classes-1
    relabel: tuple[int, ...] | None  # the corpus's label of each of the source's; None: the same
    captions: bool  # every row must have one; of texts: a pair
    max_pixels: int
    decode: bool  # every image, not only small and unusual ones
    masks: Numbers | None = None  # what the numbers of the source's masks stand for
    shrink: Shrink | None = None  # how large images are stored


def mask_numbers(corpus: Corpus, reader: AnyReader, classes: Sequence[int]) -> Numbers | None:
    """What the numbers of a reader's masks stand for: these classes; None without masks."""
    if corpus.label_kind != "masks":
        return None
    assert isinstance(reader, MaskFields), "all readers of a corpus have masks, or none"
    return masks.numbers_of(reader.first_class, reader.ignored, list(classes))


@dataclass(frozen=True)
class Checked:
    """Rows, separated into good and bad."""

    good: pa.Table  # by `Form.checked`
    kept: npt.NDArray[np.bool_]  # which rows are good, [N]
    bad: pa.Table  # by QUARANTINE_SCHEMA
    notes: Counter[str]  # of the good rows
    examples: dict[str, str]  # reason -> the first such row, in words
    shrunk: Shrunk = NONE


def check(rows: pa.Table, rules: Rules) -> Checked:
    """Separate good from bad rows (one row or more). A row's reason is its first fault found."""
    rows = rows.combine_chunks()
    reasons: list[str | None] = rows["fault"].to_pylist()
    _set_reason(reasons, "no_key", _is_empty(pc.utf8_trim_whitespace(rows["key"])))
    columns, notes, shrunk = _COLUMNS[rules.form.modality](rows, rules, reasons)
    bad = np.array([reason is not None for reason in reasons], dtype=bool)
    good = pa.array(~bad)
    table = pa.table([rows["key"], *columns], names=rules.form.checked.names)
    table = table.filter(good) if bad.any() else table
    faulty = pa.table(
        [
            rows["source"].filter(pa.array(bad)),
            rows["key"].filter(pa.array(bad)).fill_null(""),
            pa.array([reason for reason in reasons if reason], type=pa.string()),
        ],
        schema=QUARANTINE_SCHEMA,
    )
    return Checked(
        table.cast(rules.form.checked),
        ~bad,
        faulty,
        +notes,
        _examples(rows, rules, reasons),
        shrunk,
    )


def _examples(rows: pa.Table, rules: Rules, reasons: list[str | None]) -> dict[str, str]:
    found: dict[str, str] = {}
    for row, reason in enumerate(reasons):
        if reason is None or reason in found:
            continue
        key, label, detail = (rows[name][row].as_py() for name in ("key", "label", "detail"))
        if reason == "label_unknown" and detail is None:
            detail = f"the label {label} of {_known_labels(rules)} classes, which begin at 0"
        found[reason] = ": ".join(filter(None, [key, detail])) or "a row without a key"
    return found


def _set_reason(reasons: list[str | None], reason: str, where: Any) -> None:
    """Set the reason of the rows that have none yet."""
    for row in np.flatnonzero(_as_numpy(where)):
        reasons[row] = reasons[row] or reason


def _as_numpy(mask: Any) -> Any:
    return mask.to_numpy() if isinstance(mask, pa.ChunkedArray) else np.asarray(mask)


def _is_empty(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.equal(pc.fill_null(pc.binary_length(texts), 0), 0)


def _corpus_labels(column: pa.ChunkedArray, rules: Rules, reasons: list[str | None]) -> pa.Array:
    if not rules.labels:
        return pa.nulls(len(column), pa.int32())
    _set_reason(reasons, "no_label", column.is_null())
    labels = column.fill_null(0).to_numpy()
    outside = (labels < 0) | (labels >= _known_labels(rules))
    _set_reason(reasons, "label_unknown", outside)
    inside = np.where(outside, 0, labels)
    if rules.relabel:
        inside = np.array(rules.relabel, np.int64)[inside]
    return pa.array(inside.astype(np.int32))


def _known_labels(rules: Rules) -> int:
    return len(rules.relabel) if rules.relabel is not None else rules.classes


def _decoded(
    column: pa.ChunkedArray, what: str, wanted: bool, reasons: list[str | None]
) -> pa.Array | pa.ChunkedArray:
    """A column of UTF-8 bytes as text; `what` names it in the reasons. Nulls if not wanted."""
    if not wanted:
        return pa.nulls(len(column), pa.string())
    _set_reason(reasons, f"no_{what}", column.is_null())
    try:
        texts = column.cast(pa.string())
    except pa.ArrowInvalid:
        texts = _decode_each(column, what, reasons)
    _set_reason(reasons, f"empty_{what}", _is_empty(pc.utf8_trim_whitespace(texts)))
    _set_reason(reasons, f"{what}_with_nul", pc.fill_null(pc.match_substring(texts, "\0"), False))
    return texts


def _decode_each(column: pa.ChunkedArray, what: str, reasons: list[str | None]) -> pa.Array:
    texts: list[str | None] = []
    for row, data in enumerate(column.to_pylist()):
        try:
            texts.append(None if data is None else data.decode("utf-8"))
        except UnicodeDecodeError:
            texts.append(None)
            reasons[row] = reasons[row] or f"{what}_not_utf8"
    return pa.array(texts, type=pa.string())


# -- texts -----------------------------------------------------------------------------------------


def _text_columns(rows: pa.Table, rules: Rules, reasons: list[str | None]) -> Columns:
    """The columns of texts after the key."""
    texts = _checked_text(rows["text"], "text", True, reasons)
    pairs = _checked_text(rows["pair"], "pair", rules.captions, reasons)
    if pa.types.is_floating(rules.form.shard.field("label").type):
        _set_reason(reasons, "no_label", rows["number"].is_null())
        labels = rows["number"]
    else:
        labels = _corpus_labels(rows["label"], rules, reasons)
    bulk = texts.cast(pa.large_string()).cast(pa.large_binary())
    return [bulk, pairs, labels], Counter(), NONE


def _checked_text(
    column: pa.ChunkedArray, what: str, wanted: bool, reasons: list[str | None]
) -> pa.ChunkedArray:
    lengths = pc.fill_null(pc.binary_length(column), 0)
    _set_reason(reasons, f"{what}_too_long", pc.greater(lengths, TEXT_BYTES))
    texts = _decoded(column, what, wanted, reasons)
    return texts if isinstance(texts, pa.ChunkedArray) else pa.chunked_array([texts])


# -- images ----------------------------------------------------------------------------------------


def _image_columns(rows: pa.Table, rules: Rules, reasons: list[str | None]) -> Columns:
    """The columns of images after the key."""
    _set_reason(reasons, "no_image", rows["image"].is_null())
    labels = _corpus_labels(rows["label"], rules, reasons)
    captions = _decoded(rows["caption"], "caption", rules.captions, reasons)
    stored = _Stored(rows, rules, reasons)
    lines = np.flatnonzero(_as_numpy(_has_line_breaks(captions)))
    stored.notes["caption_of_lines"] = sum(reasons[row] is None for row in lines)
    sizes = np.array(stored.sizes, np.int32).reshape(-1, 2)
    columns = [stored.column(), labels, captions, sizes[:, 0], sizes[:, 1]]
    if rules.masks is not None:
        columns.append(_checked_masks(rows["mask"], rules.masks, sizes, reasons, stored.notes))
    return columns, stored.notes, stored.shrunk


def _checked_masks(
    column: pa.ChunkedArray,
    numbers: Numbers,
    sizes: npt.NDArray[np.int32],
    reasons: list[str | None],
    notes: Counter[str],
) -> pa.Array:
    """The masks of the images that are good so far, as the corpus keeps them."""
    _set_reason(reasons, "no_mask", _is_empty(column))
    kept: list[bytes | None] = [None] * len(column)
    for row, reason in enumerate(reasons):
        if reason is None:
            size = int(sizes[row, 0]), int(sizes[row, 1])
            found = masks.checked(column[row].as_py(), size, numbers)
            if isinstance(found, str):
                reasons[row] = found
            else:
                kept[row], any_class = found
                notes["all_ignored"] += not any_class
    return pa.array(kept, pa.binary())


def _has_line_breaks(texts: Any) -> Any:
    """Which captions have a line break inside; a table's stray quotes are one cause."""
    found = pc.match_substring_regex(pc.utf8_trim_whitespace(texts), r"[\r\n]")
    return pc.fill_null(found, False)


class _Stored:
    """The images of some rows as they are stored: checked, and shrunk where the rules say so."""

    def __init__(self, rows: pa.Table, rules: Rules, reasons: list[str | None]) -> None:
        self._rules, self._rows = rules, rows
        self.sizes = [(0, 0)] * len(rows)  # of every good row: width, height
        self.notes: Counter[str] = Counter()
        self.shrunk = NONE
        self._smaller: dict[int, bytes] = {}  # row -> what takes the image's place
        image = rows["image"].chunk(0)  # the only chunk; combining would copy it
        _, offsets_buffer, data = image.buffers()
        if data is None:  # every image is null
            return
        offsets = np.frombuffer(offsets_buffer, np.int64, len(rows) + 1, 8 * image.offset).tolist()
        view = memoryview(data).cast("B")
        for row, claimed in enumerate(rows["claims"].to_pylist()):
            if reasons[row] is None:
                reasons[row] = self._check(row, view[offsets[row] : offsets[row + 1]], claimed)

    def _check(self, row: int, encoded: memoryview, claimed: str | None) -> str | None:
        """Note a row's image; the reason why it is bad, if it is."""
        rules = self._rules
        try:
            header = read_header(encoded)
        except HeaderError as error:
            return error.reason
        if header.width * header.height > rules.max_pixels:
            return "too_many_pixels"
        size = header.width, header.height
        if rules.shrink is not None and smaller_size(*size, rules.shrink) is not None:
            try:
                found = shrunk(encoded, rules.shrink, rules.max_pixels)
            except Exception as error:
                return fault_of(error)
            if found is not None:
                self._smaller[row], size = found
                self.shrunk += Shrunk(1, len(encoded), len(self._smaller[row]))
        elif (rules.decode or not header.plain) and (
            fault := decode_fault(encoded, rules.max_pixels)
        ):
            return fault
        self.sizes[row] = size
        self.notes.update(header.notes)
        if claimed is not None and claimed != header.format:
            self.notes["wrong_extension"] += 1
        return None

    def column(self) -> pa.Array | pa.ChunkedArray:
        """The images, large_binary [N]; null for bad rows that have none."""
        images = self._rows["image"]
        if not self._smaller:
            return images
        return pa.array(
            [self._smaller.get(row) or images[row].as_py() for row in range(len(images))],
            images.type,
        )


_COLUMNS = {"image": _image_columns, "text": _text_columns}
