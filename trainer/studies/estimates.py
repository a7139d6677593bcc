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

    The interval is the wider, at each end, of two: Student's t over replicates, and that of the test pictures, which
    all replicates share. The latter comes from the Wilson intervals of mean counts, whose distances from the accuracies
    add up over runs as those of independent figures do (Zou and Donner 2008, doi:10.1002/sim.3095).

    Args:
        replicates: Those of which a run has no result do not count.
        results: With `accuracy`, `num_correct` and `num_test`.
    """
    complete = [[results[name] for name in names] for names in replicates if all(name in results for name in names)]
    if not complete:
        return None
    means = [fmean(row["accuracy"] for row in rows) for rows in complete]
    value = fmean(means)
    below, above = zip(*(_distances_to_ends(rows) for rows in zip(*complete, strict=True)), strict=True)
    low, high = value - math.hypot(*below) / len(below), value + math.hypot(*above) / len(above)
    if len(means) > 1:
        low_of_runs, high_of_runs = mean_interval(means)
        low, high = min(low, low_of_runs), max(high, high_of_runs)
    return Estimate(value, low, high, len(means))


def _distances_to_ends(rows: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Return how far the ends of the Wilson interval are from the mean accuracy of runs tested on the same pictures."""
    accuracy = fmean(row["accuracy"] for row in rows)
    low, high = wilson_interval(fmean(row["num_correct"] for row in rows), rows[0]["num_test"])
    return accuracy - low, high - accuracy


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
