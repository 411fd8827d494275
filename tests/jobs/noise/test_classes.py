"""A class is named by its name, id or number; an ambiguous name is refused."""

import pytest

from jobs.contract import StageError
from jobs.noise.classes import Classes

BIRDS = Classes(("tench", "crane", "hen", "crane"), ("n01", "n02", "n03", "n04"))
NUMERIC = Classes(("0", "1", "10", "2"))  # sorted as text, like the labels of a table


def test_a_class_is_named_by_its_name_its_id_or_its_number() -> None:
    assert BIRDS.numbers(["hen", "n01", 3], "here") == (2, 0, 3)
    assert BIRDS.numbers_of(["hen", "n01", "3"], "here") == (2, 0, 3)


@pytest.mark.parametrize("name", ["hen", "n04"])
def test_an_id_that_equals_the_name_is_the_same_class(name: str) -> None:
    classes = Classes(("tench", "hen", "n04"), ("tench", "hen", "n04"))
    assert classes.numbers([name], "here") == classes.numbers_of([name], "here")


def test_a_name_of_two_classes_is_refused_with_their_ids() -> None:
    message = (
        r"^here names a class 'crane', which may be class 1 \(id 'n02'\) or class 3 \(id 'n04'\)"
    )
    for read in (BIRDS.numbers, BIRDS.numbers_of):
        with pytest.raises(StageError, match=message + "; give its id, or else its number$"):
            read(["hen", "crane"], "here")
    with pytest.raises(StageError, match="'a', which may be class 0 or class 1; give its id"):
        Classes(("a", "a")).numbers(["a"], "here")


def test_the_id_of_one_class_that_is_the_name_of_another_is_refused() -> None:
    crossed = Classes(("north", "south"), ("south", "north"))
    with pytest.raises(StageError, match=r"'south', which may be class 0 .* or class 1"):
        crossed.numbers(["south"], "here")


@pytest.mark.parametrize("name", ["n05", "4", "-1", "²", "1.5", "", "nan"])
def test_an_unknown_class_is_refused_in_a_sentence(name: str) -> None:
    with pytest.raises(StageError, match=r"^here names a class .* that the corpus does not have"):
        BIRDS.numbers_of([name], "here")


def test_names_that_look_like_numbers_are_names() -> None:
    assert NUMERIC.numbers_of(["2", "10", "0", "1"], "here") == (3, 2, 0, 1)
    assert NUMERIC.numbers_of(["2.0", "10.0", "00", "1"], "here") == (3, 2, 0, 1)
    assert Classes(("01", "02", "03")).numbers_of(["1", "3"], "here") == (0, 2)


def test_numbers_among_names_that_could_be_numbers_are_refused() -> None:
    from_one = Classes(("1", "10", "2", "3"))
    with pytest.raises(StageError, match=r"number \('0'\) and another by a name .* \('1'\)"):
        from_one.numbers_of(["0", "1", "2", "3"], "here")
    # A name that is a number is no problem when it is out of range as a number.
    assert Classes(("cat", "dog", "7")).numbers_of(["0", "7", "1"], "here") == (0, 2, 1)


def test_a_number_that_is_the_name_of_another_class_is_refused() -> None:
    assert NUMERIC.numbers([0, 1], "here") == (0, 1)  # the classes called 0 and 1
    with pytest.raises(StageError, match=r"names 2, which may be the class called '2' or class 2"):
        NUMERIC.numbers([2], "here")
    with pytest.raises(StageError, match="give the name, in quotes"):
        Classes(("a", "b"), ("1", "0")).numbers([1], "here")
    assert NUMERIC.numbers(["2", "10"], "here") == (3, 2)
