"""How well frozen features serve a task: ridge regression on a few pictures a class, as big_vision measures it.

The procedure and its constants are those of `evaluators/fewshot_lsr.py` of big_vision, so that accuracies can be
compared with published ones. Everything is computed in float64 on the CPU.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

# [big_vision evaluators/fewshot_lsr.py, configs/common_fewshot.py]
PROBE_SHOTS = (1, 5, 10, 25)
PROBE_SEEDS = (0, 1, 2)
PROBE_L2 = 2.0**10
_BIAS_FEATURE = 100.0  # so large that the penalty hardly touches the bias
_STD_FLOOR = 1e-5
_ROWS_AT_ONCE = 4096  # test pictures in float64 at a time: 256 MiB at 8,192 features; a choice


def few_shot_accuracies(
    train_features: npt.NDArray[np.floating],
    train_labels: npt.NDArray[np.integer],
    test_features: npt.NDArray[np.floating],
    test_labels: npt.NDArray[np.integer],
    shots: Sequence[int] = PROBE_SHOTS,
    seeds: Sequence[int] = PROBE_SEEDS,
    l2: float = PROBE_L2,
) -> dict[int, list[float]]:
    """Return the test accuracy of a linear classifier on `shots` pictures of each class, by shots, one for each seed.

    The subsets of a seed are nested: 5 shots hold the picture of 1 shot. A class with fewer pictures than shots gives
    all it has, as in the source.

    Args:
        train_features: Pre-logits of the pictures to choose from, shape (train pictures, features).
        train_labels: Their classes, from 0, shape (train pictures,).
        test_features: Pre-logits of the test pictures, shape (test pictures, features).
        test_labels: Their classes, shape (test pictures,).
        shots: Pictures a class, each at least 1.
        seeds: Keys of the choice of pictures.
        l2: Weight of the penalty, above 0.

    Raises:
        ValueError: Shapes that do not fit, no pictures, a label below 0, shots below 1, a penalty of 0 or less, or
            features that are not finite.
    """
    train, test = np.asarray(train_features), np.asarray(test_features)
    labels, truth = np.asarray(train_labels), np.asarray(test_labels)
    _check(train, labels, "training")
    _check(test, truth, "test")
    if train.shape[1] != test.shape[1]:
        raise ValueError(f"training features have {train.shape[1]} columns and test features {test.shape[1]}")
    if l2 <= 0 or min(shots, default=1) < 1:
        raise ValueError(f"shots {list(shots)} must be 1 or more, and l2 {l2} above 0")
    accuracies: dict[int, list[float]] = {count: [] for count in shots}
    for seed in seeds:
        members = _shuffled_members(labels, seed)
        for count, of_seeds in accuracies.items():
            chosen = np.concatenate([rows[:count] for rows in members])
            guesses = _guesses(train[chosen], labels[chosen], test, len(members), l2)
            of_seeds.append(float(np.mean(guesses == truth)))
    return accuracies


def _check(features: npt.NDArray[np.floating], labels: npt.NDArray[np.integer], what: str) -> None:
    if features.ndim != 2 or labels.shape != features.shape[:1] or not len(labels):
        raise ValueError(f"{what} features of shape {features.shape} do not fit labels of shape {labels.shape}")
    if labels.min() < 0:
        raise ValueError(f"a {what} label is {labels.min()}; leave pictures without a label out")
    if not np.isfinite(features).all():
        raise ValueError(f"{what} features hold values that are not finite")


def _shuffled_members(labels: npt.NDArray[np.integer], seed: int) -> list[npt.NDArray[np.int64]]:
    """Return the rows of each class in the order in which a seed of big_vision takes them."""
    generator = np.random.default_rng(seed)
    return [generator.permutation(np.flatnonzero(labels == label)) for label in range(int(labels.max()) + 1)]


def _guesses(
    support: npt.NDArray[np.floating],
    labels: npt.NDArray[np.integer],
    test: npt.NDArray[np.floating],
    num_classes: int,
    l2: float,
) -> npt.NDArray[np.int64]:
    """Return the class of each test picture by a ridge regression on the support."""
    # A feature that is constant in the support has weight 0; left out, its rounding errors are not divided by 1e-5.
    varies = support.min(axis=0) < support.max(axis=0)
    known = support[:, varies].astype(np.float64)
    mean, std = known.mean(axis=0), known.std(axis=0) + _STD_FLOOR
    weights = _ridge(_with_bias((known - mean) / std), 2.0 * np.eye(num_classes)[labels] - 1.0, l2)
    parts = [test[start : start + _ROWS_AT_ONCE, varies] for start in range(0, len(test), _ROWS_AT_ONCE)]
    return np.concatenate([np.argmax(_with_bias((part - mean) / std) @ weights, axis=1) for part in parts])


def _with_bias(features: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.pad(features, ((0, 0), (0, 1)), constant_values=_BIAS_FEATURE)


def _ridge(features: npt.NDArray[np.float64], targets: npt.NDArray[np.float64], l2: float) -> npt.NDArray[np.float64]:
    """Return W of (X'X + l2 I) W = X'Y, from the smaller of X'X and XX'; shape (features, classes)."""
    num_rows, num_features = features.shape
    if num_rows >= num_features:
        penalised, right = features.T @ features + l2 * np.eye(num_features), features.T @ targets
        return np.linalg.solve(penalised, right).astype(np.float64, copy=False)
    return features.T @ np.linalg.solve(features @ features.T + l2 * np.eye(num_rows), targets)
