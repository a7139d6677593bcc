"""Intervals for accuracies."""

import math

import numpy as np
import numpy.typing as npt

from pipeline.base.seeds import rng

_Z95 = 1.959963984540054  # two-sided 95 %
_NUM_RESAMPLES = 2000


def wilson_interval(num_correct: int, num_samples: int) -> tuple[float, float]:
    """Return the 95 % Wilson interval of a proportion; (0, 1) without samples."""
    if num_samples == 0:
        return 0.0, 1.0
    share = num_correct / num_samples
    spread = _Z95**2 / num_samples
    centre = (share + spread / 2) / (1 + spread)
    half = _Z95 * math.sqrt(share * (1 - share) / num_samples + spread / (4 * num_samples)) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


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
