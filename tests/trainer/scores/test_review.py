"""Verdicts on mistakes give the accuracy that they imply, with intervals that hold it."""

import json

import numpy as np
import pytest

from pipeline.base.errors import ConfigError
from trainer.scores.review import VERDICTS, corrected_accuracy, drawn_for_review, parse_verdicts


def test_verdicts_on_all_mistakes_count_them() -> None:
    verdicts = ["model wrong"] * 5 + ["model right"] * 3 + ["label wrong"] * 2 + ["ambiguous"] * 10
    found = corrected_accuracy(80, 100, verdicts)
    assert found["labelled_accuracy"] == 0.8
    assert found["accuracy"] == pytest.approx(83 / 98)
    assert found["lenient_accuracy"] == pytest.approx(93 / 98)
    assert found["accuracy_low"] == pytest.approx(found["accuracy"]) == pytest.approx(found["accuracy_high"])
    assert found["verdicts"] == {"model wrong": 5, "model right": 3, "label wrong": 2, "ambiguous": 10}


def test_the_interval_of_a_sample_holds_the_accuracy_of_all_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    all_verdicts = generator.choice(VERDICTS, 400, p=[0.5, 0.2, 0.1, 0.2])
    truth = corrected_accuracy(600, 1000, all_verdicts.tolist())["accuracy"]
    hits = 0
    for seed in range(100):
        found = corrected_accuracy(600, 1000, generator.choice(all_verdicts, 60, replace=False).tolist(), seed)
        hits += found["accuracy_low"] <= truth <= found["accuracy_high"]
    assert 88 <= hits <= 100


def test_equal_verdicts_on_a_few_leave_room_for_others() -> None:
    found = corrected_accuracy(365, 2446, ["model wrong"] * 10)
    assert found["accuracy"] == pytest.approx(365 / 2446)
    assert found["accuracy_low"] == found["accuracy"] < found["accuracy_high"] - 0.02


def test_more_verdicts_narrow_the_interval() -> None:
    few, many = (corrected_accuracy(900, 1000, ["model right", "model wrong"] * count) for count in (5, 40))
    assert few["accuracy"] == many["accuracy"] == pytest.approx(0.95)
    assert many["accuracy_high"] - many["accuracy_low"] < few["accuracy_high"] - few["accuracy_low"]


def test_the_same_mistakes_are_drawn_again() -> None:
    names = [f"picture {number}" for number in range(50)]
    drawn = drawn_for_review(names, 10)
    assert drawn == drawn_for_review(names[::-1], 10)
    assert len(set(drawn)) == 10
    assert drawn_for_review(names, 20)[:10] == drawn
    assert sorted(drawn_for_review(names, 100)) == sorted(names)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"no json", "holds no verdicts"),
        (b'{"verdict": {}}', "holds no verdicts"),
        (json.dumps({"verdicts": {"a.jpg": "maybe"}}).encode(), "a.jpg has the verdict 'maybe'; it must be one of"),
    ],
)
def test_a_file_without_verdicts_is_refused(body: bytes, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_verdicts(body, "verdicts.json")


def test_labels_that_are_all_wrong_leave_nothing_to_be_right_on() -> None:
    with pytest.raises(ConfigError, match="the labels of all pictures are wrong"):
        corrected_accuracy(0, 3, ["label wrong"] * 3)


def test_no_verdict_and_too_many_are_refused() -> None:
    with pytest.raises(ConfigError, match="0 verdicts on 2 mistakes"):
        corrected_accuracy(8, 10, [])
    with pytest.raises(ConfigError, match="3 verdicts on 2 mistakes"):
        corrected_accuracy(8, 10, ["ambiguous"] * 3)
