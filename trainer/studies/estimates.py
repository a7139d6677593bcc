"""What several runs together say of an accuracy."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from trainer.scores.intervals import mean_interval, wilson_interval

Results = Mapping[str, Mapping[str, Any]]  # rows by name of their run
Replicates = Sequence[Sequence[str]]  # names of runs: each replicate is one run, or one on each task


class Estimate(NamedTuple):
    """A figure with its 95 % interval.

    Attributes:
        value: The figure, such as an accuracy from 0 to 1.
        low: Lower end of the interval.
        high: Upper end of the interval.
        num_replicates: From how many it comes.
    """

    value: float
    low: float
    high: float
    num_replicates: int


def estimate(replicates: Replicates, results: Results) -> Estimate | None:
    """Return the mean accuracy over replicates, each of which is the mean over its runs; None where none is complete.

    The interval is Student's t over replicates. Of a single one it comes from the Wilson intervals of its runs, whose
    distances from the accuracies add up as those of independent figures do (Zou and Donner 2008, doi:10.1002/sim.3095).

    Args:
        replicates: Those of which a run has no result do not count.
        results: With `accuracy`, `num_correct` and `num_test`.
    """
    complete = [[results[name] for name in names] for names in replicates if all(name in results for name in names)]
    if not complete:
        return None
    means = [fmean(row["accuracy"] for row in rows) for rows in complete]
    if len(means) > 1:
        return Estimate(fmean(means), *mean_interval(means), len(means))
    rows = complete[0]
    intervals = [wilson_interval(row["num_correct"], row["num_test"]) for row in rows]
    below = math.hypot(*(row["accuracy"] - low for row, (low, _) in zip(rows, intervals, strict=True))) / len(rows)
    above = math.hypot(*(high - row["accuracy"] for row, (_, high) in zip(rows, intervals, strict=True))) / len(rows)
    return Estimate(means[0], means[0] - below, means[0] + above, 1)


def effect_of_leaving_out(wholes: Sequence[Mapping[str, Any]], rests: Sequence[Mapping[str, Any]]) -> Estimate:
    """Return by how much an accuracy changes when test pictures are left out, as a mean over replicates.

    Kept and left-out pictures are apart, so their accuracies are independent; the change is their difference times the
    share that was left out. Without any left out it is exactly 0. All replicates are tested on the same pictures, so
    the interval is as wide as that of a single one with the mean of their counts.

    Args:
        wholes: Counts `num_correct` and `num_test` of all pictures, a row for each replicate.
        rests: Counts of the pictures that remain, in the same order.
    """
    num_test, num_kept = wholes[0]["num_test"], rests[0]["num_test"]
    num_out = num_test - num_kept
    if not num_out:
        return Estimate(0.0, 0.0, 0.0, len(wholes))
    correct_kept = fmean(row["num_correct"] for row in rests)
    correct_out = fmean(row["num_correct"] for row in wholes) - correct_kept
    share, one, other = num_out / num_test, correct_kept / num_kept, correct_out / num_out
    one_low, one_high = wilson_interval(correct_kept, num_kept)
    other_low, other_high = wilson_interval(correct_out, num_out)
    value = one - other
    low = value - math.hypot(one - one_low, other_high - other)
    high = value + math.hypot(one_high - one, other - other_low)
    return Estimate(share * value, share * low, share * high, len(wholes))
