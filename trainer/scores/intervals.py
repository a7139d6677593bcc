"""Intervals for accuracies."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.base.seeds import rng

_Z95 = 1.959963984540054  # two-sided 95 %
# Student's t at 97.5 % for 1, 2, ... degrees of freedom [any table of it]; beyond them the normal's is 3 % less.
_T95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
    2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042, 2.040, 2.037,
    2.035, 2.032, 2.030, 2.028, 2.026, 2.024, 2.023, 2.021,
)  # fmt: skip
_NUM_RESAMPLES = 2000


def wilson_interval(num_correct: float, num_samples: float) -> tuple[float, float]:
    """Return the 95 % Wilson interval of a proportion, of counts or their mean; (0, 1) without samples."""
    if num_samples == 0:
        return 0.0, 1.0
    share = num_correct / num_samples
    spread = _Z95**2 / num_samples
    centre = (share + spread / 2) / (1 + spread)
    half = _Z95 * math.sqrt(share * (1 - share) / num_samples + spread / (4 * num_samples)) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % interval of the mean of a few independent values by Student's t, cut to 0..1 as for accuracies.

    Raises:
        ValueError: There are fewer than two values.
    """
    if len(values) < 2:
        raise ValueError(f"an interval needs two values or more, not {len(values)}")
    degrees = len(values) - 1
    quantile = _T95[degrees - 1] if degrees <= len(_T95) else _Z95
    half = quantile * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    mean = float(np.mean(values))
    return max(0.0, mean - half), min(1.0, mean + half)


def interval_of_runs(runs: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Return the 95 % interval of the mean accuracy of runs: at each end the wider of two.

    One is Student's t over the runs; the other the Wilson interval of their mean counts, since all are tested on the
    same pictures: runs that agree are no surer than these allow.

    Args:
        runs: One or more, with `accuracy`, `num_correct` and `num_test`.
    """
    low, high = wilson_interval(*(fmean(run[name] for run in runs) for name in ("num_correct", "num_test")))
    if len(runs) > 1:
        low_of_runs, high_of_runs = mean_interval([run["accuracy"] for run in runs])
        low, high = min(low, low_of_runs), max(high, high_of_runs)
    return low, high


def paired_bootstrap(
    correct: npt.NDArray[np.bool_], kept: npt.NDArray[np.bool_], seed: int = 0
) -> tuple[float, float, float]:
    """Compare the accuracy on the kept samples with that on all, resampling both together.

    Args:
        correct: Whether each sample was classified correctly, shape (samples,).
        kept: Which samples remain, shape (samples,); at least one.
        seed: Key of the resampling.

    Returns:
        Difference kept minus all, and its 95 % percentile interval.
    """
    difference = float(correct[kept].mean() - correct.mean())
    generator = rng(seed, "paired bootstrap")
    draws = np.empty(_NUM_RESAMPLES)
    for index in range(_NUM_RESAMPLES):
        picked = generator.integers(0, len(correct), len(correct))
        kept_picked = picked[kept[picked]]
        draws[index] = correct[kept_picked].mean() - correct[picked].mean() if len(kept_picked) else np.nan
    low, high = np.nanpercentile(draws, [2.5, 97.5])
    return difference, float(low), float(high)
