"""The predictions of a model on a test set, and their accuracy."""

from typing import Any

import numpy as np
import pyarrow as pa

from trainer.scores.intervals import wilson_interval

# What an audit needs of them. Labels and predictions are numbered as the model numbers its classes.
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
NUM_GUESSES = 5  # the most probable classes that are listed
# What is written: the same with names, for people.
NAMED_PREDICTION_SCHEMA = pa.schema(
    [
        *PREDICTION_SCHEMA,
        ("key", pa.string()),
        ("source", pa.string()),
        ("label_names", pa.list_(pa.string())),
        ("prediction_name", pa.string()),
        ("guesses", pa.list_(pa.int32())),
        ("guess_names", pa.list_(pa.string())),
        ("guess_probabilities", pa.list_(pa.float32())),
    ]
)


SCORES_FIELD = pa.field("scores", pa.list_(pa.float32()))  # probability of each class; of sets with several labels


def summary(predictions: pa.Table) -> dict[str, Any]:
    """Return accuracy, its 95 % Wilson interval and the counts behind it; pictures without a label are not counted.

    Of models with as many classes as guesses, or more, also the share of pictures with a label among them (top-5).
    """
    has_label = pa.compute.list_value_length(predictions["labels"]).to_numpy() > 0
    num_test = int(np.sum(has_label))
    num_correct = int(np.sum(predictions["correct"].to_numpy()[has_label]))
    low, high = wilson_interval(num_correct, num_test)
    counts = {"num_correct": num_correct, "num_test": num_test}
    if num_test < predictions.num_rows:
        counts["num_unlabelled"] = predictions.num_rows - num_test
    return {"accuracy": num_correct / max(1, num_test), "low": low, "high": high, **counts, **_top5(predictions)}


def _top5(predictions: pa.Table) -> dict[str, float]:
    if "guesses" not in predictions.column_names:
        return {}
    pairs = zip(predictions["labels"].to_pylist(), predictions["guesses"].to_pylist(), strict=True)
    hits = [not set(guesses).isdisjoint(labels) for labels, guesses in pairs if labels and len(guesses) == NUM_GUESSES]
    if not hits:
        return {}
    low, high = wilson_interval(sum(hits), len(hits))
    return {"top5_accuracy": sum(hits) / len(hits), "top5_low": low, "top5_high": high}
