"""The linear probe is big_vision's: its choice of pictures, its features and its ridge regression."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from trainer.scores.linear_probe import PROBE_L2, few_shot_accuracies

Array = npt.NDArray[Any]


def _clusters(num_per_class: int, num_features: int, num_classes: int, seed: int = 0) -> tuple[Array, Array]:
    """Return features around a centre for each class, with overlap, and their classes, shuffled."""
    centres = np.random.default_rng(99).normal(0, 1, (num_classes, num_features))
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.repeat(np.arange(num_classes), num_per_class))
    spread = generator.normal(0, num_features**0.5, (len(labels), num_features))
    return np.maximum(centres[labels] + spread, 0).astype(np.float32), labels


def _of_big_vision(train: Array, labels: Array, test: Array, truth: Array, shots: int, seed: int, l2: float) -> float:
    """Return an accuracy by the steps of big_vision's evaluator, by eigenvectors as there."""
    generator = np.random.default_rng(seed)
    members = [generator.permutation(np.where(labels == label)[0]) for label in range(labels.max() + 1)]
    chosen = np.concatenate([rows[:shots] for rows in members])
    x, y = train[chosen].astype(np.float64), 2.0 * np.eye(len(members))[labels[chosen]] - 1
    mean, std = x.mean(0, keepdims=True), x.std(0, keepdims=True) + 1e-5
    x, x_test = (np.pad((part - mean) / std, ((0, 0), (0, 1)), constant_values=100.0) for part in (x, test))
    if x.shape[0] >= x.shape[1]:
        eigenvalues, q = np.linalg.eigh(x.T @ x)
        lhs, rhs = q, q.T @ (x.T @ y)
    else:
        eigenvalues, q = np.linalg.eigh(x @ x.T)
        lhs, rhs = x.T @ q, q.T @ y
    weights = lhs @ (rhs / (eigenvalues + l2)[:, None])
    return float(np.mean(np.argmax(x_test @ weights, axis=1) == truth))


@pytest.mark.parametrize("l2", [PROBE_L2, 1.0])
@pytest.mark.parametrize("num_features", [6, 300])  # fewer and more than pictures
def test_accuracies_are_those_of_big_vision(num_features: int, l2: float) -> None:
    (train, labels), (test, truth) = _clusters(40, num_features, 4), _clusters(500, num_features, 4, seed=1)
    found = few_shot_accuracies(train, labels, test, truth, shots=[1, 5, 25], seeds=[0, 1, 2], l2=l2)
    expected = {
        shots: [_of_big_vision(train, labels, test, truth, shots, seed, l2) for seed in (0, 1, 2)]
        for shots in (1, 5, 25)
    }
    assert found == expected
    assert 0.25 < np.mean(found[25]) < 1  # neither chance nor certain, so that the equality says something


def test_a_feature_that_is_constant_in_the_pictures_chosen_has_no_say() -> None:
    (train, labels), (test, truth) = _clusters(10, 20, 3), _clusters(100, 20, 3, seed=1)
    dead, alive = np.full((len(train), 1), 0.1, np.float32), np.random.default_rng(2).normal(0, 1e3, (len(test), 1))
    with_dead = few_shot_accuracies(np.hstack([train, dead]), labels, np.hstack([test, alive]), truth, shots=[5])
    assert with_dead == few_shot_accuracies(train, labels, test, truth, shots=[5])


def test_a_class_with_fewer_pictures_than_shots_gives_all_it_has() -> None:
    train, labels = _clusters(5, 8, 3)
    assert few_shot_accuracies(train, labels, train, labels, shots=[5, 100], seeds=[0])[100] == pytest.approx(
        few_shot_accuracies(train, labels, train, labels, shots=[5], seeds=[0])[5]
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_labels": np.array([0, 1])}, "do not fit"),
        ({"test_labels": np.full(15, -1)}, "label is -1"),
        ({"test_features": np.zeros((15, 7))}, "8 columns and test features 7"),
        ({"train_features": np.full((15, 8), np.nan)}, "not finite"),
        ({"shots": [0]}, "1 or more"),
        ({"l2": 0.0}, "above 0"),
    ],
)
def test_what_has_no_probe_is_refused(change: dict[str, Any], message: str) -> None:
    features, labels = _clusters(5, 8, 3)
    asked = {"train_features": features, "train_labels": labels, "test_features": features, "test_labels": labels}
    with pytest.raises(ValueError, match=message):
        few_shot_accuracies(**(asked | change))
