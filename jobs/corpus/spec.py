"""What an experiment file can say of a corpus: where it comes from, its parts, its shards.

Paths never bear on a corpus's identity, since data moves; `version` does, for the day it changes.
"""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from jobs.contract import NOT_SEMANTIC, PATH, Slug, Spec

Column = Annotated[str, Field(min_length=1)]


def _told_apart(classes: tuple[str, ...]) -> tuple[str, ...]:
    twice = [name for name, count in Counter(classes).items() if count > 1]
    if twice:
        raise ValueError(f"two classes are called {twice[0]!r}: give each a name of its own")
    return classes


ClassNames = Annotated[tuple[str, ...], AfterValidator(_told_apart)]


class DigitsReader(Spec):
    """scikit-learn's handwritten digits: 1,797 real 8 x 8 images, shipped inside the package."""

    rows: ClassVar[int | None] = 1797  # known before it is read; for the cost preview

    kind: Literal["digits"] = "digits"


class FileReader(Spec):
    """What all readers of files share."""

    rows: ClassVar[int | None] = None

    path: Annotated[str, PATH, NOT_SEMANTIC] = Field(
        min_length=1, description="a file or folder: local, s3:// or gs://"
    )
    version: str = Field(
        "", description="of the data: change it when what lies at the path has changed"
    )


class ImageFolderReader(FileReader):
    """A folder for each class, images below; key: path below the root (`n01440764/a_1.JPEG`)."""

    kind: Literal["imagefolder"] = "imagefolder"
    class_names: Annotated[str | None, PATH, NOT_SEMANTIC] = Field(
        None, description="a file of names for the folders: `folder name` lines, or JSON"
    )


class IlsvrcTarReader(FileReader):
    """ILSVRC2012's own tars: the training tar of class tars, or the flat validation tar.

    Key: class and member name (`n01440764/n01440764_1.JPEG`), or the member name alone.
    """

    kind: Literal["ilsvrc_tar"] = "ilsvrc_tar"
    synsets: Annotated[str | None, PATH, NOT_SEMANTIC] = Field(
        None, description="a file of `[ID] WNID name` lines, or JSON; see docs/corpora.md"
    )
    ground_truth: Annotated[str | None, PATH, NOT_SEMANTIC] = Field(
        None, description="one class a line, in the images' order: makes `path` the flat tar"
    )

    @model_validator(mode="after")
    def _flat_needs_ids(self) -> IlsvrcTarReader:
        if self.ground_truth is not None and self.synsets is None:
            raise ValueError("ground_truth says classes by number or WNID: give `synsets` as well")
        return self


class WebDatasetReader(FileReader):
    """WebDataset tars, as img2dataset writes them; key: the members' common stem."""

    kind: Literal["webdataset"] = "webdataset"
    files: str = Field("*.tar*", description="which files below the path, by their last name")
    caption: str | None = Field(
        "txt", description="the member that holds it (`txt`), or a JSON member's field (`json:alt`)"
    )
    label: str | None = Field(
        None, description="the member that holds it (`cls`), or a JSON member's field"
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


class ParquetReader(FileReader):
    """Parquet in Hugging Face's layout; key: columns joined by `/`, else file and row number."""

    kind: Literal["parquet"] = "parquet"
    files: str = Field("*.parquet", description="which files below the path, by their last name")
    image: Column = Field("image", description="encoded bytes, or a struct with a field `bytes`")
    label: Column | None = Field(None, description="integers, or strings: then these are names")
    label_name: Column | None = Field(None, description="the label's class name")
    classes: ClassNames = Field((), description="names in label order, where no column has")
    caption: Column | None = None
    key: tuple[Column, ...] = ()
    where: dict[Column, str | int | tuple[str | int, ...]] = Field(
        default_factory=dict, description="column -> the value (or values) of the rows to keep"
    )

    @model_validator(mode="after")
    def _learns_something(self) -> ParquetReader:
        if self.label is None and self.caption is None:
            raise ValueError("neither caption nor label: there is nothing to learn from")
        if self.label is None and (self.label_name or self.classes):
            raise ValueError("label_name and classes say what labels mean: give `label` as well")
        return self


class TableReader(FileReader):
    """A CSV or TSV of image paths; key: a column, else the image's path as the table has it."""

    kind: Literal["table"] = "table"
    image: Column = Field("path", description="the image's path, below `root`")
    root: Annotated[str | None, PATH, NOT_SEMANTIC] = Field(
        None, description="the folder that the images' paths start from; none: the table's own"
    )
    columns: tuple[Column, ...] = Field((), description="names, for a table without a header")
    delimiter: str | None = Field(
        None, min_length=1, max_length=1, description="none: a comma, in .tsv files a tab"
    )
    quoting: bool | None = Field(
        None, description="fields in quotes, as RFC 4180 has them; none: yes, in .tsv files no"
    )
    caption: Column | None = None
    label: Column | None = Field(None, description="integers with `classes`, or names")
    classes: ClassNames = Field((), description="names in label order")
    key: Column | None = None

    @model_validator(mode="after")
    def _learns_something(self) -> TableReader:
        if self.label is None and self.caption is None:
            raise ValueError("neither caption nor label: there is nothing to learn from")
        return self


AnyReader = (
    DigitsReader
    | ImageFolderReader
    | IlsvrcTarReader
    | WebDatasetReader
    | ParquetReader
    | TableReader
)

Reader = Annotated[AnyReader, Field(discriminator="kind")]
"""Every reader an experiment file can name, told apart by `kind`."""


def _share_or_source(value: Any) -> str:
    return "tagged-share" if isinstance(value, (int, float, str)) else "tagged-reader"


ShareOrSource = Annotated[
    Annotated[float, Field(ge=0, le=1), Tag("tagged-share")]
    | Annotated[Reader, Tag("tagged-reader")],
    Discriminator(_share_or_source),
]


class Parts(Spec):
    """Where a corpus's parts come from: shares of `reader`'s rows by key, or readers of their own.

    A row's part is a function of its key alone. The shares sum to 1.
    """

    train: float = Field(0.60, ge=0, le=1, description="0: a corpus to be tested on alone")
    validation: ShareOrSource = 0.15
    test: ShareOrSource = 0.25

    @model_validator(mode="after")
    def _whole(self) -> Parts:
        total = sum(self.shares)
        if abs(total - 1) > 1e-9:
            named = [n for n in ("train", "validation", "test") if n not in self.sources]
            raise ValueError(f"{' and '.join(named)} must sum to 1, not {total:g}")
        return self

    @property
    def shares(self) -> tuple[float, float, float]:
        """Of train, validation and test in `reader`'s rows; 0 where a part has its own reader."""
        validation, test = (v if isinstance(v, float) else 0.0 for v in self._others)
        return self.train, validation, test

    @property
    def sources(self) -> dict[str, AnyReader]:
        """The parts that have a reader of their own."""
        named = zip(("validation", "test"), self._others, strict=True)
        return {name: value for name, value in named if not isinstance(value, float)}

    @property
    def _others(self) -> tuple[float | AnyReader, float | AnyReader]:
        return self.validation, self.test


class Corpus(Spec):
    """A source of keyed images with labels, captions or both, cut into parts and shards."""

    name: Slug
    reader: Reader
    parts: Parts = Parts()
    seed: int = Field(0, ge=0, description="decides each key's part and place in the shuffle")
    shuffle: Literal["global", "none"] = Field("global", description="none: in the source's order")
    rows_per_shard: int = Field(512, ge=1, description="bears on the training order: semantic")
    shard_mb: float | None = Field(
        None, gt=0, description="size at which a shard ends, instead of `rows_per_shard`"
    )
    verify: Literal["headers", "full"] = Field("headers", description="full: decode every image")
    max_pixels: int = Field(
        89_478_485, ge=1, description="width x height above which an image is refused unread"
    )
    max_bad_share: Annotated[float, NOT_SEMANTIC] = Field(
        0.001, ge=0, le=1, description="share of quarantined rows above which the build fails"
    )
