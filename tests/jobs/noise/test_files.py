"""The files that a noise names: valid contents, and one sentence for invalid ones."""

import gzip
import hashlib
import json
import pickle
from datetime import date
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import csv
from pydantic import TypeAdapter

from jobs.contract import StageError
from jobs.noise import files
from jobs.noise.classes import Classes
from jobs.noise.source import Source, digested, source_of
from jobs.noise.spec import Noise

CLASSES = Classes(("cat", "dog", "oak", "7"))
TWO = Classes(("cat", "dog"))
KEYS = pa.array(["a", "b", "c"])


def source(path: Path, sha256: str | None = None) -> Source:
    return Source(str(path), sha256)


def noise(**fields: object) -> Noise:
    adapter: TypeAdapter[Noise] = TypeAdapter(Noise)
    return adapter.validate_python({"name": "n", "levels": [5], **fields})


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("g.csv", "class,group\ncat,animal\ndog,animal\noak,tree\n7,number\n"),
        ("g.csv", "\ufeffgroup,class\r\nanimal,0\r\nanimal,1\r\ntree,2\r\nnumber,7\r\n"),
        ("g.json", json.dumps({"cat": "animal", "dog": "animal", "oak": "tree", "7": 7})),
    ],
)
def test_a_grouping_is_read_by_class_name_or_number(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    group_of = files.grouping(source(tmp_path / name), CLASSES)
    assert group_of.tolist() == [0, 0, 1, 2]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "g.csv",
            "class,group\ncat,a\ndog,a\noak,b\n",
            "no group to 1 of 4 classes (the first: '7",
        ),
        ("g.csv", "class,group\ncat,a\ncat,b\n", "names class 'cat' twice"),
        ("g.csv", "class,group\ncta,a\n", "did you mean 'cat'?"),
        ("g.csv", "class,group\ncat,a\ndog\noak, \n7,b\n", "no group to 2 of 4 classes"),
        ("g.csv", "class,group\ncat,a\ndog,\noak,\n7,b\n", "(the first: 'dog')"),
        ("g.json", '{"cat": "a", "dog": null, "oak": "", "7": "b"}', "no group to 2 of 4 classes"),
        ("g.json", '{"cat": "a", "dog": "a", "cat": "b"}', "names class 'cat' twice"),
        ("g.csv", "class,group\n²,a\n", "names a class '²' that the corpus does not have"),
        ("g.csv", "name,parent\ncat,a\n", "give a CSV with the columns class and group"),
        ("g.json", "[1, 2]", "is not a grouping"),
        ("g.json", "[" * 100_000, "is not a grouping"),
        ("g.csv", "class,group\ntabby, cat,a\n", "row 2 has 3 fields, and the first 2"),
        ("g.csv", "class,group,group\ncat,a,b\n", "2 columns are called group"),
        ("g.csv", "class;group\ncat;a\n", "0 columns are called class; it has ['class;group']"),
        ("g.csv", "class,group\ncat,a\ndog,A \n", "the groups 'A ' and 'a' differ only in blanks"),
        ("g.json", "{", "is not a grouping"),
    ],
)
def test_a_bad_grouping_is_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(StageError) as caught:
        files.grouping(source(tmp_path / name), CLASSES)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_matrix_is_the_same_from_npy_csv_and_parquet(tmp_path: Path) -> None:
    wanted = np.array([[0.9, 0.1], [0.25, 0.75]])
    np.save(tmp_path / "m.npy", wanted)
    np.savetxt(tmp_path / "m.csv", wanted, delimiter=",")
    pq.write_table(pa.table({"x": wanted[:, 0], "y": wanted[:, 1]}), tmp_path / "m.parquet")
    for name in ("m.npy", "m.csv", "m.parquet"):
        assert files.matrix(source(tmp_path / name), TWO).tolist() == wanted.tolist()


@pytest.mark.parametrize(
    "columns",
    [
        {"dog": [0.9, 0.1], "cat": [0.1, 0.9]},
        {"x": ["0.9", "0.1"], "y": ["0.1", "0.9"]},
        {"x": [True, False], "y": [False, True]},
    ],
)
def test_columns_of_other_types_or_classes_in_another_order_are_no_matrix(
    tmp_path: Path, columns: dict[str, list[object]]
) -> None:
    pq.write_table(pa.table(columns), tmp_path / "m.parquet")
    named = r"column 0 \(from 0\) is called 'dog', and class 0 of the corpus 'cat'; order"
    with pytest.raises(StageError, match=f"is not a matrix of numbers|{named}"):
        files.matrix(source(tmp_path / "m.parquet"), TWO)


@pytest.mark.parametrize("values", [[[1, 2j]], [["0.9", "0.1"]], [[True, False]]])
def test_an_array_of_another_type_is_no_matrix(tmp_path: Path, values: list[list[object]]) -> None:
    np.save(tmp_path / "m.npy", np.array(values))
    with pytest.raises(StageError, match="its values are of the type"):
        files.matrix(source(tmp_path / "m.npy"), TWO)


def test_a_matrix_that_claims_to_be_huge_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "m.npy", np.zeros((1, 1)))
    data = (tmp_path / "m.npy").read_bytes()
    for shape in (b"(999999999, 99999)", b"(1, "):
        grown = data.replace(b"(1, 1), }".ljust(len(shape) + 3), shape + b", }")
        assert shape in grown
        (tmp_path / "m.npy").write_bytes(grown)
        with pytest.raises(StageError, match="is not a matrix of numbers"):
            files.matrix(source(tmp_path / "m.npy"), TWO)


def test_a_pickled_matrix_is_never_opened(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (exec, (f"open({str(tmp_path / 'sprung')!r}, 'w')",))

    np.save(tmp_path / "m.npy", np.array([Trap()], object), allow_pickle=True)
    (tmp_path / "n.npy").write_bytes(pickle.dumps(Trap()))
    for name in ("m.npy", "n.npy"):
        with pytest.raises(StageError, match="is not a matrix of numbers"):
            files.matrix(source(tmp_path / name), TWO)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_labels_are_looked_up_by_key_from_numbers_or_names(tmp_path: Path, suffix: str) -> None:
    table = pa.table(
        {"id": ["c", "x", "a", "b"], "n": [2, 0, 3, 1], "named": ["oak", "cat", "7", "dog"]}
    )
    path = tmp_path / f"t.{suffix}"
    if suffix == "csv":
        csv.write_csv(table, path)
    else:
        pq.write_table(table, path)
    for column in ("n", "named"):
        found = files.labels_by_key(source(path), "id", column, KEYS, CLASSES)
        assert found.tolist() == [3, 1, 2]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"key": ["a", "b"], "v": [1, 2]}, "no 'v' to 1 of 3 training rows (the first: key 'c')"),
        ({"key": ["a", "b", "c"], "v": [1, None, 2]}, "(the first: key 'b')"),
        ({"key": ["a", "b", "c", "a"], "v": [1, 1, 1, 1]}, "gives a key twice"),
        ({"key": ["a", "b", "c"], "w": [1, 1, 1]}, "has no column 'v'; it has key, w"),
        (
            {"key": ["a", "b", "c", None], "v": [1, 1, 1, 1]},
            "1 of 4 rows have no value in column 'k",
        ),
        ({"key": [["a"], ["b"], ["c"]], "v": [1, 1, 1]}, "'key' holds list<"),
        ({"key": ["a", "b", "c"], "v": ["cat", "cta", "dog"]}, "did you mean 'cat'?"),
        ({"key": ["a", "b", "c"], "v": [1, 2, 4]}, "column 'v' names a class 4 that the corpus"),
        ({"key": ["a", "b", "c"], "v": [0.5, 1.0, 2.0]}, "names a class '0.5' that the corpus"),
        ({"key": ["a", "b", "c"], "v": [[0], [1], [2]]}, "not one number or text; name another"),
        ({"key": ["a", "b", "c"], "v": [True, False, True]}, "column 'v' holds bool in a row"),
        ({"key": [True, False, None], "v": [1, 1, 2]}, "column 'key' holds bool in a row"),
        ({"key": [date(2026, 1, 1)] * 3, "v": [1, 1, 2]}, "column 'key' holds date32"),
    ],
)
def test_a_table_that_does_not_fit_the_keys_is_refused(
    tmp_path: Path, columns: dict[str, list[object]], message: str
) -> None:
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    with pytest.raises(StageError) as caught:
        files.labels_by_key(source(tmp_path / "t.parquet"), "key", "v", KEYS, CLASSES)
    assert message in str(caught.value)


def test_integers_are_names_if_the_classes_have_such_names(tmp_path: Path) -> None:
    keys = [f"k{number:02d}" for number in range(12)]
    classes = Classes(tuple(sorted(map(str, range(12)))))  # 0, 1, 10, 11, 2, ...
    clean = [classes.names.index(str(number)) for number in range(12)]
    for values in (range(12), [float(number) for number in range(12)], map(str, range(12))):
        pq.write_table(pa.table({"key": keys, "v": list(values)}), tmp_path / "t.parquet")
        csv.write_csv(pq.read_table(tmp_path / "t.parquet"), tmp_path / "t.csv")
        for name in ("t.parquet", "t.csv"):
            found = files.labels_by_key(
                source(tmp_path / name), "key", "v", pa.array(keys), classes
            )
            assert found.tolist() == clean
    others = Classes(tuple(sorted(map(str, range(1, 13)))))
    with pytest.raises(StageError, match="use names for all"):
        files.labels_by_key(source(tmp_path / "t.parquet"), "key", "v", pa.array(keys), others)


def test_a_categorical_column_is_its_values(tmp_path: Path) -> None:
    table = pa.table({"key": ["c", "a", "b"], "v": ["oak", "cat", "dog"], "n": [2, 0, 1]})
    encoded = pa.table({name: table[name].dictionary_encode() for name in table.column_names})
    pq.write_table(encoded, tmp_path / "t.parquet")
    assert pa.types.is_dictionary(pq.read_schema(tmp_path / "t.parquet").field("v").type)
    for column in ("v", "n"):
        found = files.labels_by_key(source(tmp_path / "t.parquet"), "key", column, KEYS, CLASSES)
        assert found.tolist() == [0, 1, 2]


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz"])
def test_the_keys_of_a_csv_are_text(tmp_path: Path, name: str) -> None:
    text = b"key,v,of\n000010021,1,x\n10021,0,y\n1e3,2,x\n"
    (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    keys = pa.array(["10021", "000010021", "1e3"], pa.large_string())
    labels = files.labels_by_key(source(tmp_path / name), "key", "v", keys, CLASSES)
    assert labels.tolist() == [0, 1, 2]
    clusters = files.clusters_by_key(source(tmp_path / name), "key", "of", keys)
    assert clusters[1] == clusters[2] != clusters[0]
    digest = hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
    assert source(tmp_path / name).digest() == digest


def test_an_empty_cell_of_a_csv_is_a_missing_label_or_cluster(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("key,v\na,cat\nb,\nc,dog\n")
    with pytest.raises(StageError, match=r"gives no 'v' to 1 of 3 .* key 'b'"):
        files.labels_by_key(source(tmp_path / "t.csv"), "key", "v", KEYS, CLASSES)
    with pytest.raises(StageError, match=r"gives no 'v' to 1 of 3 .* key 'b'"):
        files.clusters_by_key(source(tmp_path / "t.csv"), "key", "v", KEYS)


def damaged_parquet() -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"key": ["a", "b", "c"], "v": [0, 1, 2]}), sink)
    data = bytearray(sink.getvalue().to_pybytes())
    length = int.from_bytes(data[-8:-4], "little")
    data[-8 - length : -8] = b"\xff" * length  # the footer; the magic bytes stay intact
    return bytes(data)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("t.parquet", b"no parquet", "is not a readable Parquet file (Parquet magic bytes"),
        ("t.parquet", damaged_parquet(), "is not a readable Parquet file (Couldn't deserial"),
        ("t.csv", b"key,v\na,1\nb,1,1\n", "is not a readable CSV file (CSV parse error"),
        ("t.csv", b"key,v,v\na,1,1\n", "t.csv has two columns 'v'; give each its own name"),
        ("t.csv", b"", "is not a readable CSV file (Empty CSV file)"),
        ("t.csv.gz", b"key,v\na,1\n", "is not a readable CSV file ("),
        ("t.csv", "key,v\na,chêne\n".encode("latin-1"), "column 'v' holds text that is not in UT"),
        ("t.csv", "key,v\nà,chene\n".encode("latin-1"), "column 'key' holds text that is not in"),
        ("t.csv", "clé,v\na,chene\n".encode("latin-1"), "is not a readable CSV file ("),
    ],
)
def test_a_file_that_is_not_a_table_is_refused(
    tmp_path: Path, name: str, data: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(StageError) as labels:
        files.labels_by_key(source(tmp_path / name), "key", "v", KEYS, CLASSES)
    with pytest.raises(StageError) as clusters:
        files.clusters_by_key(source(tmp_path / name), "key", "v", KEYS)
    for caught in (labels, clusters):
        assert str(tmp_path / name) in str(caught.value)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_matrix_in_a_damaged_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.parquet").write_bytes(damaged_parquet())
    with pytest.raises(StageError, match="is not a matrix of numbers"):
        files.matrix(source(tmp_path / "m.parquet"), TWO)


def test_clusters_that_are_lists_are_refused(tmp_path: Path) -> None:
    table = pa.table({"key": ["a", "b", "c"], "v": [[0, 1], [1], [2]]})
    pq.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(StageError, match=r"t.parquet: column 'v' holds list<.*name another column"):
        files.clusters_by_key(source(tmp_path / "t.parquet"), "key", "v", KEYS)


@pytest.mark.parametrize("kind", [pa.list_(pa.float32()), pa.list_(pa.float64(), 4)])
def test_probabilities_come_for_the_requested_keys_in_any_batches(
    tmp_path: Path, kind: pa.DataType
) -> None:
    keys = [f"k{i}" for i in range(9000)]
    values = np.random.default_rng(0).dirichlet(np.ones(4), 9000)
    table = pa.table({"key": keys, "p": pa.array(values.tolist(), kind)})
    pq.write_table(table, tmp_path / "p.parquet")
    requested = pa.array(keys[8999:10:-2])
    found = np.zeros((len(requested), 4))
    blocks = list(files.probabilities_by_key(source(tmp_path / "p.parquet"), "key", "p", requested))
    for rows, given in blocks:
        found[rows] = given
    assert len(blocks) == 3
    assert np.abs(found - values[8999:10:-2]).max() < 1e-7


def test_probability_lists_of_unequal_length_are_refused(tmp_path: Path) -> None:
    table = pa.table({"key": ["a", "b"], "p": [[0.5, 0.5], [0.2, 0.3, 0.5]]})
    pq.write_table(table, tmp_path / "p.parquet")
    with pytest.raises(StageError, match="differ in length"):
        list(files.probabilities_by_key(source(tmp_path / "p.parquet"), "key", "p", KEYS))


@pytest.mark.parametrize("values", [[0.5, 0.2], ["a", "b"], [["0.5", "0.5"], ["1", "0"]]])
def test_probabilities_that_are_not_lists_of_numbers_are_refused(
    tmp_path: Path, values: list[object]
) -> None:
    pq.write_table(pa.table({"key": ["a", "b"], "p": values}), tmp_path / "p.parquet")
    message = (
        r"p.parquet: column 'p' holds .* not a list of class probabilities; name another column"
    )
    with pytest.raises(StageError, match=message):
        list(files.probabilities_by_key(source(tmp_path / "p.parquet"), "key", "p", KEYS))


def test_probabilities_must_be_parquet(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("key,p\na,0.5 0.5\n")
    with pytest.raises(
        StageError, match=r"p.csv is not a readable Parquet file .*; .* correct noise.file"
    ):
        list(files.probabilities_by_key(source(tmp_path / "p.csv"), "key", "p", KEYS))


def test_a_small_file_is_digested_by_its_content_and_never_by_its_path(tmp_path: Path) -> None:
    made = []
    for folder in ("one", "other"):
        (tmp_path / folder).mkdir()
        path = tmp_path / folder / "g.csv"
        path.write_text("class,group\n")
        made.append(digested(noise(kind="groups", file=str(path))))
    assert made[0].semantic() == made[1].semantic()
    sha256 = hashlib.sha256(b"class,group\n").hexdigest()
    assert made[0].semantic()["sha256"] == sha256
    path.write_text("class,group\ncat,a\n")
    with pytest.raises(StageError, match=r"but noise\.sha256 is"):
        digested(made[1])
    with pytest.raises(StageError, match="cannot be read"):
        digested(noise(kind="groups", file=str(tmp_path / "absent.csv")))


def test_a_large_table_is_checked_only_against_a_given_digest(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    path.write_bytes(b"many rows")
    spec = digested(noise(kind="given", file=str(path), column="v"))
    assert spec.semantic()["sha256"] is None
    assert source_of(spec).digest() == hashlib.sha256(b"many rows").hexdigest()
    named = noise(kind="given", file=str(path), column="v", sha256="0" * 64)
    with pytest.raises(StageError, match=r"but noise\.sha256 is"):
        source_of(named).digest()


def test_class_names_take_precedence_over_numbers() -> None:
    assert files.class_numbers(["7", 2, "dog"], CLASSES) == (3, 2, 1)
    with pytest.raises(StageError, match="a class 4 that the corpus does not have"):
        files.class_numbers([4], CLASSES)
    with pytest.raises(StageError, match="class 'dog' twice"):
        files.class_numbers(["dog", 1], CLASSES)


@pytest.mark.parametrize("group", [["animal"], {"a": 1}, True, 1.5, float("nan")])
def test_a_group_of_another_type_than_text_is_refused(tmp_path: Path, group: object) -> None:
    content = {"cat": group, "dog": group, "oak": "tree", "7": "number"}
    (tmp_path / "g.json").write_text(json.dumps(content))
    with pytest.raises(StageError, match="is neither text nor a whole number"):
        files.grouping(source(tmp_path / "g.json"), CLASSES)


def test_nan_is_a_missing_label_or_cluster(tmp_path: Path) -> None:
    """pandas turns integers with gaps into floats with NaN."""
    table = pa.table({"key": ["a", "b", "c"], "value": [1.0, float("nan"), 0.0]})
    pq.write_table(table, tmp_path / "t.parquet")
    given = source(tmp_path / "t.parquet")
    with pytest.raises(StageError, match=r"no 'value' to 1 of 3 training rows .* key 'b'"):
        files.clusters_by_key(given, "key", "value", KEYS)
    with pytest.raises(StageError, match=r"no 'value' to 1 of 3 training rows"):
        files.labels_by_key(given, "key", "value", KEYS, CLASSES)


@pytest.mark.parametrize("values", [[True, False, True], [1.5, 0.0, 2.0]])
def test_noisy_labels_of_another_type_are_refused(tmp_path: Path, values: list[object]) -> None:
    pq.write_table(pa.table({"key": ["a", "b", "c"], "value": values}), tmp_path / "t.parquet")
    with pytest.raises(StageError, match=r"names a class|holds bool"):
        files.labels_by_key(source(tmp_path / "t.parquet"), "key", "value", KEYS, CLASSES)


def test_numbers_of_any_length_and_decimals_are_read(tmp_path: Path) -> None:
    """Python reads no number of more than 4,300 digits, and NumPy no decimals."""
    (tmp_path / "g.csv").write_text(f"class,group\ncat,a\ndog,a\noak,b\n{'7' * 5000},b\n")
    with pytest.raises(StageError, match="that the corpus does not have"):
        files.grouping(source(tmp_path / "g.csv"), CLASSES)
    table = pa.table({"key": ["a", "b", "c"], "p": [[Decimal("0.25"), Decimal("0.75")]] * 3})
    pq.write_table(table, tmp_path / "p.parquet")
    ((_, found),) = files.probabilities_by_key(source(tmp_path / "p.parquet"), "key", "p", KEYS)
    assert found.dtype == np.float64
    assert found.tolist() == [[0.25, 0.75]] * 3
