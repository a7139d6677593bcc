"""How good a classifier is beyond its accuracy: by class, by confusion, by confidence, and with several labels."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from trainer.scores.intervals import wilson_interval

CALIBRATION_BINS = 15  # [Guo et al. 2017, section 5]

PER_CLASS_SCHEMA = pa.schema(
    [
        ("label", pa.int32()),
        ("name", pa.string()),
        ("num_test", pa.int64()),
        ("num_correct", pa.int64()),
        ("accuracy", pa.float64()),
        ("low", pa.float64()),
        ("high", pa.float64()),
        ("average_precision", pa.float64()),  # null without scores of all classes, or without a picture
    ]
)
CONFUSION_SCHEMA = pa.schema(
    [("label", pa.int32()), ("name", pa.string()), ("prediction", pa.int32()), ("prediction_name", pa.string()),
     ("count", pa.int64())]
)  # fmt: skip
CALIBRATION_SCHEMA = pa.schema(
    [("low", pa.float64()), ("high", pa.float64()), ("num_test", pa.int64()), ("confidence", pa.float64()),
     ("accuracy", pa.float64())]
)  # fmt: skip


def per_class(
    predictions: pa.Table, classes: Sequence[str], precisions: npt.NDArray[np.float64] | None = None
) -> pa.Table:
    """Return for each class how many of its pictures are classified correctly, with 95 % Wilson intervals.

    A picture with several labels counts for each of them; it is correct if the prediction is any of them.

    Args:
        predictions: Table of PREDICTION_SCHEMA.
        classes: Names by label.
        precisions: Average precision of each class, where it was measured; NaN where a class has no picture.
    """
    given = predictions["labels"].combine_chunks()
    labels = given.flatten().to_numpy()
    correct = np.repeat(predictions["correct"].to_numpy(), given.value_lengths().to_numpy())
    num_test = np.bincount(labels, minlength=len(classes))
    num_correct = np.bincount(labels, weights=correct, minlength=len(classes)).astype(np.int64)
    rows = []
    for label, (name, count, right) in enumerate(zip(classes, num_test.tolist(), num_correct.tolist(), strict=True)):
        low, high = wilson_interval(right, count)
        precision = None if precisions is None or np.isnan(precisions[label]) else float(precisions[label])
        accuracy = right / count if count else None
        rows.append(
            {"label": label, "name": name, "num_test": count, "num_correct": right, "accuracy": accuracy, "low": low,
             "high": high, "average_precision": precision}
        )  # fmt: skip
    return pa.Table.from_pylist(rows, schema=PER_CLASS_SCHEMA)


def confusions(predictions: pa.Table, classes: Sequence[str]) -> pa.Table:
    """Return how often each class is taken for each other one, the most frequent first; only what occurs is listed.

    A picture with several labels, none of which is predicted, counts by its first one.
    """
    wrong = predictions.filter(pa.compute.invert(predictions["correct"]))
    pairs = Counter(
        (labels[0], guess)
        for labels, guess in zip(wrong["labels"].to_pylist(), wrong["prediction"].to_pylist(), strict=True)
        if labels
    )
    rows = [
        {"label": label, "name": classes[label], "prediction": guess, "prediction_name": classes[guess], "count": count}
        for (label, guess), count in sorted(pairs.items(), key=lambda item: (-item[1], item[0]))
    ]
    return pa.Table.from_pylist(rows, schema=CONFUSION_SCHEMA)


def calibration(
    confidences: npt.NDArray[np.floating], correct: npt.NDArray[np.bool_], num_bins: int = CALIBRATION_BINS
) -> pa.Table:
    """Return confidence and accuracy of pictures by bins of equal width of the confidence; empty bins are left out.

    Args:
        confidences: Probability of each prediction, shape (pictures,), 0 to 1.
        correct: Whether each prediction is right, shape (pictures,).
        num_bins: From 0 to 1; an edge belongs to the bin below it.
    """
    bins = np.clip(np.ceil(confidences * num_bins).astype(np.int64) - 1, 0, num_bins - 1)
    rows = []
    for number in np.unique(bins).tolist():
        inside = bins == number
        rows.append(
            {"low": number / num_bins, "high": (number + 1) / num_bins, "num_test": int(inside.sum()),
             "confidence": float(confidences[inside].mean()), "accuracy": float(correct[inside].mean())}
        )  # fmt: skip
    return pa.Table.from_pylist(rows, schema=CALIBRATION_SCHEMA)


def calibration_error(bins: pa.Table) -> float:
    """Return the expected calibration error: the mean distance of confidence and accuracy over pictures; 0 for none."""
    counts, confidence, accuracy = (bins[name].to_numpy() for name in ("num_test", "confidence", "accuracy"))
    return float(np.sum(counts * np.abs(confidence - accuracy)) / max(1, counts.sum()))


def average_precision(scores: npt.NDArray[np.floating], is_relevant: npt.NDArray[np.bool_]) -> float:
    """Return the area below the steps of precision over recall; NaN where nothing is relevant.

    Equal scores are taken together, so that the order of pictures has no influence.

    Args:
        scores: Shape (items,); higher is more relevant.
        is_relevant: Shape (items,).
    """
    num_relevant = int(is_relevant.sum())
    if not num_relevant:
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    ends = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), len(ranked) - 1)
    hits = np.cumsum(is_relevant[order])[ends]
    return float(np.sum(np.diff(hits, prepend=0) * hits / (ends + 1)) / num_relevant)


def average_precisions(
    scores: npt.NDArray[np.floating], targets: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.float64], float]:
    """Return the average precision of each class, and that of all pairs of picture and class together (micro).

    The mean over classes that have a picture is the macro average.

    Args:
        scores: Shape (pictures, classes).
        targets: Which labels each picture has, shape (pictures, classes).
    """
    each = [average_precision(scores[:, label], targets[:, label]) for label in range(scores.shape[1])]
    return np.array(each), average_precision(scores.reshape(-1), targets.reshape(-1))
