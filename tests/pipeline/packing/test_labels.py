"""Labels of any sources get one numbering that names agree with, whatever the order they come in."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, strategies as st

from pipeline.base.errors import ConfigError
from pipeline.packing.labels import Labels
from pipeline.packing.sources.rows import Source

NAMES = st.lists(st.lists(st.sampled_from(["ant", "bee", "cat", "dog", "eel"]), max_size=3), max_size=8)
FIRST = st.lists(st.sampled_from(["dog", "ant", "owl"]), unique=True).map(tuple)


def source_of(url: str, classes: tuple[str, ...] | None = None) -> Source:
    return Source(url, lambda parallel_map: iter(()), classes)


def names(lists: list[list[str]]) -> pa.Array:
    return pa.array(lists, pa.list_(pa.string()))


def numbers(lists: list[list[int]]) -> pa.Array:
    return pa.array(lists, pa.list_(pa.int32()))


def numbered(
    *parts: tuple[Source, pa.Array], first_classes: tuple[str, ...] = ()
) -> tuple[Sequence[str], list[list[list[int]]]]:
    """Return the class names, and the numbers of the labels of each part."""
    labels = Labels([source for source, _ in parts], first_classes)
    taken = [labels.taken(lists, source) for source, lists in parts]
    labels.check()
    found: list[Any] = [labels.numbered(lists) for lists in taken]
    assert all(lists.type == pa.list_(pa.int32()) for lists in found)
    return labels.class_names(), [lists.to_pylist() for lists in found]


@given(st.lists(NAMES, min_size=1, max_size=3), FIRST)
def test_every_name_has_the_number_of_its_place_among_the_class_names(
    parts: list[list[list[str]]], first: tuple[str, ...]
) -> None:
    given_parts = [(source_of(f"/{number}"), names(part)) for number, part in enumerate(parts)]
    classes, found = numbered(*given_parts, first_classes=first)
    assert [[[classes[label] for label in row] for row in part] for part in found] == parts
    assert classes[: len(first)] == first  # labels that a dataset has keep their numbers
    assert list(classes[len(first) :]) == sorted({name for part in parts for row in part for name in row} - {*first})


@given(st.lists(NAMES, min_size=2, max_size=3), FIRST)
def test_the_numbering_does_not_depend_on_which_source_is_read_first(
    parts: list[list[list[str]]], first: tuple[str, ...]
) -> None:
    given_parts = [(source_of(f"/{number}"), names(part)) for number, part in enumerate(parts)]
    classes, found = numbered(*given_parts, first_classes=first)
    assert numbered(*given_parts[::-1], first_classes=first) == (classes, found[::-1])


def test_numbers_without_names_stay_as_they_are() -> None:
    lists = [[3], [], [0, 7]]
    assert numbered((source_of("/a"), numbers(lists)), (source_of("/b"), numbers([[5]]))) == ((), [lists, [[5]]])


def test_one_list_of_names_numbers_all_sources_whether_they_have_names_or_numbers() -> None:
    classes = ("zebra", "ant", "bee")
    by_name, by_number = source_of("/a", classes), source_of("/b", classes)
    found = numbered((by_name, names([["bee"], ["zebra", "ant"]])), (by_number, numbers([[2], [0]])))
    assert found == (classes, [[[2], [0, 1]], [[2], [0]]])


def test_sources_with_lists_of_their_own_agree_by_name() -> None:
    found = numbered(
        (source_of("/a", ("cat", "ant")), numbers([[0], [1]])),
        (source_of("/b", ("bee", "cat")), numbers([[0], [1]])),
        (source_of("/c"), names([["ant"]])),
    )
    assert found == (("ant", "bee", "cat"), [[[2], [0]], [[1], [2]], [[0]]])


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([("/a", ("ant",), names([["bee"]]))], "/a: class 'bee' is not in the class list"),
        ([("/a", ("ant", "bee"), numbers([[2]]))], "/a: label 2 is beyond the 2 names"),
        ([("/a", None, names([["ant"]])), ("/b", None, numbers([[0]]))], "row 1 has 'ant', row 1 has '0'"),
        ([("/a", None, numbers([[0]])), ("/b", None, names([["ant"]]))], "row 1 has 'ant', row 1 has '0'"),
        ([("/a", ("ant",), numbers([[0]])), ("/b", None, numbers([[0]]))], "those of /a are names, those of /b are"),
        ([("/a", None, names([["0"], ["1"], ["1O"]]))], "row 3 has '1O', row 1 has '0'"),
        ([("/a", None, names([["ant"], ["nan"]]))], "row 2: label 'nan' is neither"),
        ([("/a", None, names([["1"], ["01"]]))], "row 2 has '01', row 1 has '1'"),
        ([("/a", None, names([["1"], ["-1"]]))], "row 2: label -1 is not a class number"),
        ([("/a", None, names([["1"], ["0.5"]]))], "row 2: label '0.5' is neither"),
    ],
)
def test_labels_that_do_not_fit_are_refused_with_their_source(
    parts: list[tuple[str, tuple[str, ...] | None, pa.Array]], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        numbered(*((source_of(url, classes), lists) for url, classes, lists in parts))


def test_a_source_without_a_label_fits_names_and_numbers() -> None:
    nothing = (source_of("/none"), numbers([[], []]))
    assert numbered(nothing, (source_of("/a"), names([["ant"]]))) == (("ant",), [[[], []], [[0]]])
    assert numbered((source_of("/a"), numbers([[4]])), nothing) == ((), [[[4]], [[], []]])


@pytest.mark.parametrize(
    ("texts", "classes", "expected"),
    [
        (["10", "2", "0"], (), [10, 2, 0]),
        (["10.0", "2", "0.0"], (), [10, 2, 0]),
        (["010", "002", "001"], ("001", "002", "010"), [2, 1, 0]),
        (["NA", "DE"], ("DE", "NA"), [1, 0]),
    ],
)
def test_text_is_a_number_only_where_all_of_it_is(
    texts: list[str], classes: tuple[str, ...], expected: list[int]
) -> None:
    found = numbered((source_of("/a"), names([[text] for text in texts])))
    assert found == (classes, [[[label] for label in expected]])


def test_class_folders_called_as_numbers_are_names() -> None:
    source = Source("/a", lambda parallel_map: iter(()), are_names=True)
    assert numbered((source, names([["10"], ["2"]]))) == (("10", "2"), [[[0], [1]]])
