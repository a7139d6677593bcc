"""Figures beyond accuracy are what their definitions say."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, strategies as st

from trainer.scores.classification import (
    average_precision,
    average_precisions,
    calibration,
    calibration_error,
    confusions,
    per_class,
)
from trainer.scores.predictions import summary


def predictions(labels: list[list[int]], guesses: list[list[int]]) -> pa.Table:
    return pa.table(
        {
            "labels": pa.array(labels, pa.list_(pa.int32())),
            "prediction": pa.array([guess[0] for guess in guesses], pa.int32()),
            "correct": [guess[0] in given for given, guess in zip(labels, guesses, strict=True)],
            "guesses": pa.array(guesses, pa.list_(pa.int32())),
        }
    )


def test_each_class_counts_its_own_pictures() -> None:
    found = per_class(predictions([[0], [0], [1], [0, 2], []], [[0], [1], [1], [2], [0]]), ["a", "b", "c", "d"])
    rows = found.to_pylist()
    assert [(row["name"], row["num_test"], row["num_correct"]) for row in rows] == [
        ("a", 3, 2), ("b", 1, 1), ("c", 1, 1), ("d", 0, 0),
    ]  # fmt: skip
    assert rows[0]["low"] < rows[0]["accuracy"] < rows[0]["high"]
    assert rows[3]["accuracy"] is None


def test_what_is_confused_comes_with_the_most_frequent_first() -> None:
    found = confusions(predictions([[0], [0], [1], [1], [], [2, 0]], [[1], [1], [0], [1], [0], [1]]), ["a", "b", "c"])
    assert [(row["name"], row["prediction_name"], row["count"]) for row in found.to_pylist()] == [
        ("a", "b", 2), ("b", "a", 1), ("c", "b", 1),
    ]  # fmt: skip


def test_top_5_counts_labels_among_the_guesses_of_large_models() -> None:
    rows = predictions([[7], [1], [0], []], [[0, 1, 2, 3, 7], [1, 2, 3, 4, 5], [1, 2, 3, 4, 5], [0, 1, 2, 3, 4]])
    found = summary(rows)
    assert found["top5_accuracy"] == pytest.approx(2 / 3)
    assert found["top5_low"] < 2 / 3 < found["top5_high"]
    assert "top5_accuracy" not in summary(predictions([[0]], [[0, 1, 2]]))


def test_calibration_compares_confidence_with_accuracy() -> None:
    confidences = np.array([0.95, 0.95, 0.95, 0.95, 0.1, 0.1])
    correct = np.array([True, True, True, False, False, False])
    bins = calibration(confidences, correct, num_bins=10)
    assert [(row["num_test"], row["accuracy"]) for row in bins.to_pylist()] == [(2, 0.0), (4, 0.75)]
    assert bins["low"].to_pylist() == pytest.approx([0.0, 0.9])  # an edge belongs to the bin below it
    assert calibration_error(bins) == pytest.approx((2 * 0.1 + 4 * 0.2) / 6)
    assert calibration_error(calibration(np.empty(0), np.empty(0, bool))) == 0.0


def test_average_precision_of_known_cases() -> None:
    relevant = np.array([True, False, True, False])
    assert average_precision(np.array([0.9, 0.8, 0.7, 0.1]), relevant) == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision(np.array([4.0, 1.0, 3.0, 2.0]), relevant) == 1.0
    assert average_precision(np.zeros(4), relevant) == 0.5  # one threshold takes all
    assert np.isnan(average_precision(np.zeros(4), np.zeros(4, bool)))


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=30), st.randoms())
def test_average_precision_does_not_depend_on_the_order_of_pictures(
    items: list[tuple[int, bool]], random: object
) -> None:
    def of(listed: list[tuple[int, bool]]) -> float:
        return average_precision(np.array([score for score, _ in listed], float), np.array([hit for _, hit in listed]))

    shuffled = list(items)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert of(shuffled) == pytest.approx(of(items), nan_ok=True)


def test_macro_and_micro_average_precision() -> None:
    scores = np.array([[0.9, 0.2, 0.5], [0.8, 0.7, 0.4], [0.1, 0.6, 0.3]])
    targets = np.array([[True, False, False], [False, True, False], [True, True, False]])
    each, micro = average_precisions(scores, targets)
    assert each[:2].tolist() == pytest.approx([(1 + 2 / 3) / 2, 1.0])
    assert np.isnan(each[2])
    assert micro == pytest.approx((1 + 2 / 3 + 3 / 4 + 4 / 9) / 4)
