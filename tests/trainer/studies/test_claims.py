"""Verdicts follow from intervals alone, and never from points."""

from statistics import fmean

import pytest
from hypothesis import given, strategies as st

from trainer.scores.intervals import mean_interval, wilson_interval
from trainer.studies.claims import Cell, Claim, Contrast, Verdict, better
from trainer.studies.estimates import Estimate, effect_of_leaving_out, estimate

A, B = ("task", "a"), ("task", "b")


def around(value: float, half: float) -> Estimate:
    return Estimate(value, value - half, value + half, 5)


unit = st.floats(0, 1)
estimates = st.builds(around, unit, st.floats(0, 0.5))


@given(estimates, estimates)
def test_a_comparison_holds_just_where_intervals_do_not_overlap_and_its_reverse_then_fails(
    one: Estimate, other: Estimate
) -> None:
    cells = {A: one, B: other}
    verdict, reverse = better(A, B).judge(cells), better(B, A).judge(cells)
    assert (verdict is Verdict.HOLDS) == (one.low - other.high > 0)
    assert (verdict is Verdict.HOLDS) == (reverse is Verdict.FAILS)
    assert (verdict is Verdict.OPEN) == (reverse is Verdict.OPEN)


def test_a_gain_is_compared_with_a_gain() -> None:
    cells: dict[Cell, Estimate] = {("big", "L"): around(0.9, 0.01), ("big", "S"): around(0.6, 0.01)}
    cells |= {("small", "L"): around(0.7, 0.01), ("small", "S"): around(0.65, 0.01)}
    gain = Contrast((("big", "L"), ("small", "S")), (("big", "S"), ("small", "L")))
    found = gain.measured(cells)
    assert found is not None
    assert found.value == pytest.approx(0.25)
    assert (found.low, found.high) == (pytest.approx(0.21), pytest.approx(0.29))
    assert gain.judge(cells) is Verdict.HOLDS
    assert gain.judge({A: around(0.5, 0.1)}) is Verdict.OPEN  # not measured


@pytest.mark.parametrize(
    ("found", "verdict"),
    [(around(0.0, 0.005), Verdict.HOLDS), (around(0.03, 0.01), Verdict.FAILS), (around(0.0, 0.02), Verdict.OPEN)],
)
def test_equal_means_that_the_whole_interval_lies_near_0(found: Estimate, verdict: Verdict) -> None:
    assert Contrast((A,), within=0.01).judge({A: found}) == verdict


@pytest.mark.parametrize(
    ("found", "verdict"),
    [(around(0.3, 0.1), Verdict.HOLDS), (around(0.0, 0.005), Verdict.HOLDS), (around(0.0, 0.02), Verdict.OPEN),
     (around(-0.03, 0.01), Verdict.FAILS)],
)  # fmt: skip
def test_no_gain_is_a_lead_of_the_other_side_below_what_counts(found: Estimate, verdict: Verdict) -> None:
    contrast = Contrast((A,), above=-0.01)
    assert contrast.judge({A: found}) == verdict
    assert str(contrast).endswith(" - 1 points")


@given(st.lists(st.sampled_from([0.1, 0.0, -0.1]), min_size=1, max_size=6), st.integers(1, 6))
def test_a_claim_on_some_of_several_is_open_as_long_as_the_open_ones_decide(gaps: list[float], needed: int) -> None:
    cells: dict[Cell, Estimate] = {}
    for number, gap in enumerate(gaps):
        cells |= {(str(number), "a"): around(0.5 + gap, 0.01), (str(number), "b"): around(0.5, 0.01)}
    claim = Claim("", [better((str(number), "a"), (str(number), "b")) for number in range(len(gaps))], needed)
    num_held, num_open, needed = gaps.count(0.1), gaps.count(0.0), min(needed, len(gaps))
    expected = Verdict.HOLDS if num_held >= needed else Verdict.FAILS if num_held + num_open < needed else Verdict.OPEN
    assert claim.judge(cells) is expected


def row(num_correct: int, num_test: int) -> dict[str, float]:
    return {"accuracy": num_correct / num_test, "num_correct": num_correct, "num_test": num_test}


def test_intervals_come_from_replicates_or_from_the_pictures_of_a_single_one() -> None:
    results = {"a0": row(5, 10), "a1": row(7, 10), "b0": row(9, 10), "b1": row(8, 10)}
    several = estimate([("a0", "b0"), ("a1", "b1")], results)  # two replicates of the mean over two tasks
    assert several == Estimate(0.725, *mean_interval([0.7, 0.75]), 2)
    assert estimate([("a0",), ("missing",)], results) == pytest.approx((0.5, *wilson_interval(5, 10), 1))
    mean_of_two = estimate([("a0", "b0")], results)
    assert mean_of_two is not None
    assert mean_of_two.high - mean_of_two.low < 0.75 * (wilson_interval(5, 10)[1] - wilson_interval(5, 10)[0])
    assert estimate([("missing",)], results) is None


def test_replicates_that_agree_are_no_surer_than_their_test_pictures_allow() -> None:
    results = {"a0": row(12, 24), "a1": row(12, 24), "b0": row(13, 24), "b1": row(13, 24)}
    found = {name: estimate([(f"{name}0",), (f"{name}1",)], results) for name in "ab"}
    for name, num_correct in (("a", 12), ("b", 13)):
        assert found[name] == pytest.approx((num_correct / 24, *wilson_interval(num_correct, 24), 2))
    cells = {("task", name): each for name, each in found.items() if each}
    assert better(("task", "b"), ("task", "a")).judge(cells) is Verdict.OPEN


@given(st.integers(1, 500), st.integers(1, 4), st.data())
def test_the_effect_of_leaving_out_is_the_mean_change_of_the_accuracy(
    num_test: int, num_replicates: int, data: st.DataObject
) -> None:
    num_kept = data.draw(st.integers(1, num_test))
    rests, wholes = [], []
    for _ in range(num_replicates):
        correct_kept = data.draw(st.integers(0, num_kept))
        rests.append(row(correct_kept, num_kept))
        wholes.append(row(correct_kept + data.draw(st.integers(0, num_test - num_kept)), num_test))
    found = effect_of_leaving_out(wholes, rests)
    changes = [rest["accuracy"] - whole["accuracy"] for whole, rest in zip(wholes, rests, strict=True)]
    assert found.value == pytest.approx(fmean(changes), abs=1e-12)
    assert found.low <= found.value <= found.high
    assert (found.low == found.high == 0) == (num_kept == num_test)
    assert found.num_replicates == num_replicates
