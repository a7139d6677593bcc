"""Labels of a column become lists of numbers or names, and a bad one is named with its row."""

from typing import Any

import pyarrow as pa
import pytest

from pipeline.base.errors import ConfigError
from pipeline.packing.sources.label_lists import label_lists


@pytest.mark.parametrize(
    ("column", "classes", "expected"),
    [
        (pa.array([3, None, 0]), (), [[3], [], [0]]),
        (pa.array([[1, 2], None, []]), (), [[1, 2], [], []]),
        (pa.array(["b", "", None]), (), [["b"], [], []]),
        (pa.array(["b", "", "a"]), ("a", "b"), [[1], [], [0]]),
        (pa.array([["a", "b"], []], pa.large_list(pa.large_string())), ("a", "b"), [[0, 1], []]),
        (pa.chunked_array([[1], [0]]), ("a", "b"), [[1], [0]]),
        (pa.nulls(2), (), [[], []]),
        (pa.array([0.0, None, float("nan"), 2.0]), (), [[0], [], [], [2]]),
        (pa.array([True, False]), (), [["True"], ["False"]]),
        (pa.array(["b", "a", "b"]).dictionary_encode(), (), [["b"], ["a"], ["b"]]),
        (pa.array(["1", "0.0", "b"]), ("a", "b"), [[1], [0], [1]]),
    ],
)
def test_labels_are_lists_in_the_order_of_the_rows(column: Any, classes: tuple[str, ...], expected: list[Any]) -> None:
    assert label_lists(column, classes, "t.csv", 0).to_pylist() == expected


@pytest.mark.parametrize(
    ("column", "classes", "message"),
    [
        (pa.array([[0], [1, -1]]), (), "t.csv, row 12: label -1 is not a class number"),
        (pa.array([0, 2]), ("a", "b"), "t.csv, row 12: label 2 is not a class number from 0 to 1"),
        (pa.array(["a", "c"]), ("a", "b"), "t.csv, row 12: class 'c' is not in the class list"),
        (pa.array([1.0, 0.5]), (), "t.csv, row 12: label 0.5 is not a whole number"),
        (pa.array([["a"], ["b", ""]]), (), "t.csv, row 12: a list of labels holds an empty one"),
        (pa.array([18262], pa.date32()), (), r"t.csv: labels .* found date32\[day\]. Write them as text"),
    ],
)
def test_a_bad_label_is_named_with_its_row(column: pa.Array, classes: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        label_lists(column, classes, "t.csv", first_row=10)
