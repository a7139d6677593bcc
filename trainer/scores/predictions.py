"""The predictions of a model on a test set, and their accuracy."""

from typing import Any

import numpy as np
import pyarrow as pa

from trainer.scores.intervals import wilson_interval

PREDICTION_SCHEMA = pa.schema(
    [
        ("shard", pa.int32()),
        ("row", pa.int32()),
        ("labels", pa.list_(pa.int32())),
        ("prediction", pa.int32()),
        ("probability", pa.float32()),
        ("correct", pa.bool_()),
    ]
)


def summary(predictions: pa.Table) -> dict[str, Any]:
    """Return accuracy, its 95 % Wilson interval and the counts behind it."""
    num_correct = int(np.sum(predictions["correct"].to_numpy()))
    low, high = wilson_interval(num_correct, predictions.num_rows)
    return {
        "accuracy": num_correct / max(1, predictions.num_rows),
        "low": low,
        "high": high,
        "num_correct": num_correct,
        "num_test": predictions.num_rows,
    }
