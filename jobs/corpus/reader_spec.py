"""The settings of a corpus's readers in an experiment file: one class for each kind of source."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from jobs.contract import NOT_SEMANTIC, PATH, SILENT, Spec
from jobs.corpus.form import LabelKind, Modality
from jobs.corpus.mask_spec import Column, MaskColumn, MaskFields, check_masks

WhereValue = Annotated[int, Field(strict=True)] | str


def _refuse_duplicates(classes: tuple[str, ...]) -> tuple[str, ...]:
    repeated = [name for name, count in Counter(classes).items() if count > 1]
    if repeated:
        raise ValueError(f"two classes are called {repeated[0]!r}: give each a name of its own")
    if not all(name.strip() for name in classes):
        raise ValueError("a class has no name: give each a name of its own")
    return classes


ClassNames = Annotated[tuple[str, ...], AfterValidator(_refuse_duplicates)]


def _refuse_line_breaks(delimiter: str) -> str:
    if delimiter in '\r\n"':
        raise ValueError("a quote or a line break separates no fields: give another delimiter")
    return delimiter


Delimiter = Annotated[str, Field(min_length=1, max_length=1), AfterValidator(_refuse_line_breaks)]


class DigitsReader(Spec):
    """scikit-learn's handwritten digits: 1,797 real 8 x 8 images, shipped inside the package."""

    rows: ClassVar[int | None] = 1797  # known without reading; for the cost preview
    modality: ClassVar[Modality] = "image"

    kind: Literal["digits"] = "digits"


class RemarksReader(Spec):
    """Short remarks on films or kitchen things, made from templates: the texts of the text demo."""

    rows: ClassVar[int | None] = 800
    modality: ClassVar[Modality] = "text"

    kind: Literal["remarks"] = "remarks"
    domain: Literal["films", "kitchen"] = Field("films", description="what the remarks are about")


class FileReader(Spec):
    """The settings of all readers of files."""

    rows: ClassVar[int | None] = None
    modality: ClassVar[Modality] = "image"

    path: Annotated[str, PATH, NOT_SEMANTIC] = Field(
        min_length=1, description="a file or folder: local, s3:// or gs://"
    )
    version: str = Field(
        "", description="of the data: change it when the data at the path has changed"
    )
    key_prefix: Annotated[str, SILENT] = Field(
        "", description="put before every key, where keys of two parts are the same"
    )


class ImageFolderReader(FileReader):
    """A folder of images for each class; key: path below the root (`n01440764/a_1.JPEG`)."""

    kind: Literal["imagefolder"] = "imagefolder"
    class_names: Annotated[str | None, PATH, NOT_SEMANTIC] = Field(
        None, description="a file with the folders' class names: `folder name` lines, or JSON"
    )


class IlsvrcTarReader(FileReader):
    """ILSVRC2012's own tars: the training tar of class tars, or the flat validation tar.

    Key: class and member name (`n01440764/n01440764_1.JPEG`); in the flat tar, the member name.
    """

    kind: Literal["ilsvrc_tar"] = "ilsvrc_tar"
    synsets: Annotated[str | None, PATH, NOT_SEMANTIC] = Field(
        None, description="a file of `[ID] WNID name` lines, or JSON; see docs/corpora.md"
    )
    ground_truth: Annotated[str | None, PATH, NOT_SEMANTIC] = Field(
        None, description="one class a line, in the images' order; then `path` is the flat tar"
    )

    @model_validator(mode="after")
    def _ground_truth_needs_synsets(self) -> IlsvrcTarReader:
        if self.ground_truth is not None and self.synsets is None:
            raise ValueError("ground_truth gives numbers or WNIDs: give `synsets` as well")
        return self


class WebDatasetReader(FileReader):
    """WebDataset tars, as img2dataset writes them; key: the members' common stem."""

    kind: Literal["webdataset"] = "webdataset"
    files: str = Field("*.tar*", description="which files below the path, by file name")
    caption: str | None = Field(
        "txt", description="the member with the caption (`txt`), or a JSON field (`json:alt`)"
    )
    label: str | None = Field(
        None, description="the member with the label (`cls`), or a JSON field (`json:label`)"
    )
    classes: ClassNames = Field((), description="names in label order; needed with `label`")
    tar_in_key: bool = Field(False, description="prefix keys with the tar's name")

    @model_validator(mode="after")
    def _labels_have_classes(self) -> WebDatasetReader:
        if (self.label is None) != (not self.classes):
            raise ValueError("label and classes go together: name the classes in label order")
        if self.label is None and self.caption is None:
            raise ValueError("neither caption nor label: there is nothing to learn from")
        return self


class ParquetReader(FileReader, MaskFields):
    """Parquet in Hugging Face's layout; key: columns joined by `/`, else file and row number."""

    kind: Literal["parquet"] = "parquet"
    files: str = Field("*.parquet", description="which files below the path, by file name")
    image: Column = Field("image", description="encoded bytes, or a struct with a field `bytes`")
    label: Column | None = Field(None, description="integers, or strings, which are class names")
    label_name: Column | None = Field(None, description="the label's class name")
    classes: ClassNames = Field((), description="names in label order, if no column has them")
    caption: Column | None = Field(None, description="the column with the caption")
    key: tuple[Column, ...] = Field((), description="the columns that name a row")
    mask: MaskColumn = None
    where: dict[Column, WhereValue | tuple[WhereValue, ...]] = Field(
        default_factory=dict, description="column -> the value (or values) of the rows to keep"
    )

    @model_validator(mode="after")
    def _has_label_or_caption(self) -> ParquetReader:
        check_masks(self, self.mask, self.label, self.classes)
        if self.label is None and self.caption is None and self.mask is None:
            raise ValueError("neither caption nor label: there is nothing to learn from")
        if self.label is None and self.mask is None and (self.label_name or self.classes):
            raise ValueError("label_name and classes need `label`: give it as well")
        return self


class TableReader(FileReader, MaskFields):
    """A CSV or TSV of image paths; key: a column, else the image's path as the table gives it."""

    kind: Literal["table"] = "table"
    image: Column = Field("path", description="the image's path, below `root`")
    root: Annotated[str | None, PATH, NOT_SEMANTIC] = Field(
        None, description="the folder that image paths are relative to; none: the table's own"
    )
    columns: tuple[Column, ...] = Field((), description="names, for a table without a header")
    delimiter: Delimiter | None = Field(None, description="none: a comma, in .tsv files a tab")
    quoting: bool | None = Field(
        None, description="whether fields may be quoted (RFC 4180); none: yes, in .tsv files no"
    )
    caption: Column | None = Field(None, description="the column with the caption")
    label: Column | None = Field(None, description="integers with `classes`, or names")
    classes: ClassNames = Field((), description="names in label order")
    key: Column | None = Field(None, description="the column that names a row")
    mask: MaskColumn = None

    @model_validator(mode="after")
    def _has_label_or_caption(self) -> TableReader:
        check_masks(self, self.mask, self.label, self.classes)
        if self.label is None and self.caption is None and self.mask is None:
            raise ValueError("neither caption nor label: there is nothing to learn from")
        return self


class MaskFolderReader(FileReader, MaskFields):
    """A folder of images and one of their masks, as VOC, ADE20K and Cityscapes have them.

    Key: the image's path below the root, without its ending.
    """

    kind: Literal["maskfolder"] = "maskfolder"
    masks: Annotated[str, PATH, NOT_SEMANTIC] = Field(
        min_length=1, description="the folder of the masks"
    )
    names: Annotated[str | None, PATH, NOT_SEMANTIC] = Field(
        None, description="a file with the keys to read, one a line; none: all images"
    )
    image_ending: str = Field(".jpg", min_length=1, description="what images' names end in")
    mask_ending: str = Field(".png", min_length=1, description="what stands in its place in masks'")
    classes: ClassNames = Field(min_length=1, description="names in the order of their numbers")

    @model_validator(mode="after")
    def _numbers_fit(self) -> MaskFolderReader:
        check_masks(self, self.masks, None, self.classes)
        return self


class TextFields(Spec):
    """Which columns of a source of texts hold what."""

    text: Column = Field("text", description="the text of a row, or the first of two")
    pair: Column | None = Field(None, description="the second text of a row: the hypothesis, say")
    label: Column = Field("label", description="the class of a row, or its number")


class TextReader(FileReader):
    """The settings of all readers of texts; key: columns joined by `/`, else a hash of the texts.

    Equal texts without key columns get keys that end in -2, -3, ...
    """

    modality: ClassVar[Modality] = "text"

    files: str = Field("*", description="which files below the path, by file name")
    fields: TextFields = Field(description="which columns hold what")
    key: tuple[Column, ...] = Field((), description="the columns that name a row")
    label_names: ClassNames = Field(
        (), description="class names in label order; needed for integer labels without names"
    )
    unlabelled: tuple[WhereValue, ...] = Field(
        (), description="labels that stand for none, such as -1 and `-`: left out and counted"
    )
    labels: LabelKind = Field("classes", description="numbers: the target is a number")
    where: dict[Column, WhereValue | tuple[WhereValue, ...]] = Field(
        default_factory=dict, description="column -> the value (or values) of the rows to keep"
    )

    @model_validator(mode="after")
    def _numbers_have_no_names(self) -> TextReader:
        if self.labels == "numbers" and self.label_names:
            raise ValueError("label_names are names of classes, and labels: numbers has none")
        return self

    @property
    def columns_read(self) -> tuple[str, ...]:
        """Every column that the settings name, once."""
        fields = self.fields
        named = (fields.text, fields.pair, fields.label, *self.key, *self.where)
        return tuple(dict.fromkeys(name for name in named if name is not None))


class TextParquetReader(TextReader):
    """Texts in Parquet, also in Hugging Face's layout with class names in the metadata."""

    kind: Literal["parquet"] = "parquet"
    files: str = Field("*.parquet", description="which files below the path, by file name")


class TextTableReader(TextReader):
    """Texts in a CSV or TSV."""

    kind: Literal["table"] = "table"
    columns: tuple[Column, ...] = Field((), description="names, for a table without a header")
    delimiter: Delimiter | None = Field(None, description="none: a comma, in .tsv files a tab")
    quoting: bool | None = Field(
        None, description="whether fields may be quoted (RFC 4180); none: yes, in .tsv files no"
    )


class JsonLinesReader(TextReader):
    """Texts in JSON Lines: an object a line."""

    kind: Literal["jsonl"] = "jsonl"
    files: str = Field("*.jsonl*", description="which files below the path, by file name")


AnyReader = (
    DigitsReader
    | ImageFolderReader
    | IlsvrcTarReader
    | WebDatasetReader
    | ParquetReader
    | TableReader
    | MaskFolderReader
    | TextParquetReader
    | TextTableReader
    | JsonLinesReader
    | RemarksReader
)

_KINDS = (
    *("digits", "imagefolder", "ilsvrc_tar", "webdataset", "parquet", "table", "maskfolder"),
    *("jsonl", "remarks"),
)


def _reader_tag(value: Any) -> str | None:
    """The tag of a reader, as a model or as data: by its `kind`, and whether it has `fields`."""
    data = value if isinstance(value, dict) else vars(value)
    kind, fields = data.get("kind"), data.get("fields")
    return f"tagged-{kind}-text" if fields is not None and kind in ("parquet", "table") else kind


Reader = Annotated[
    Annotated[DigitsReader, Tag("digits")]
    | Annotated[ImageFolderReader, Tag("imagefolder")]
    | Annotated[IlsvrcTarReader, Tag("ilsvrc_tar")]
    | Annotated[WebDatasetReader, Tag("webdataset")]
    | Annotated[ParquetReader, Tag("parquet")]
    | Annotated[TableReader, Tag("table")]
    | Annotated[MaskFolderReader, Tag("maskfolder")]
    | Annotated[TextParquetReader, Tag("tagged-parquet-text")]
    | Annotated[TextTableReader, Tag("tagged-table-text")]
    | Annotated[JsonLinesReader, Tag("jsonl")]
    | Annotated[RemarksReader, Tag("remarks")],
    Discriminator(
        _reader_tag,
        custom_error_type="reader_kind",
        custom_error_message=f"`kind` must be {', '.join(_KINDS[:-1])} or {_KINDS[-1]}",
    ),
]
"""Every reader that an experiment file can name, distinguished by `kind` and `fields`."""
