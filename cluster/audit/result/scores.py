"""Accuracy on the full and on the deduplicated test set, as in the paper's Table 7, with intervals."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from cluster.audit.base.tables import Evidence
from pipeline.base.errors import ConfigError, CorruptShard
from pipeline.dataset.tables import from_parquet
from pipeline.store.any_url import read_file
from trainer.scores.intervals import paired_bootstrap, wilson_interval
from trainer.scores.predictions import PREDICTION_SCHEMA


@dataclass(frozen=True)
class Cut:
    """What counts as a duplicate in one row of the accuracy table.

    Attributes:
        name: As shown in reports.
        most_bits: Largest distance that counts; None for any.
        evidence: Classes that count.
    """

    name: str
    most_bits: int | None
    evidence: frozenset[str]

    def counts(self, picture: Mapping[str, Any]) -> bool:
        """Return whether a row of tables.STATE_SCHEMA is a duplicate by this cut."""
        return (
            picture["state"] == "duplicate"
            and picture["evidence"] in self.evidence
            and (self.most_bits is None or picture["distance"] <= self.most_bits)
        )


def radii(radius: int) -> list[int]:
    """Return the three thresholds at which accuracy is reported: half, three quarters and all of the radius."""
    return sorted({radius // 2, radius * 3 // 4, radius})


def cuts(radius: int) -> list[Cut]:
    """Return the rows of the accuracy table: by class of evidence, each with all surer classes, and by distance."""
    classes = [str(kind) for kind in Evidence if kind.is_duplicate]
    by_class = [Cut(classes[0], None, frozenset(classes[:1]))]
    by_class += [
        Cut(f"or {classes[last]}", None, frozenset(classes[: last + 1])) for last in range(1, len(classes) - 1)
    ]
    by_bits = [Cut(f"≤ {bits} bits", bits, frozenset(classes)) for bits in radii(radius)]
    return [*by_class, *by_bits, Cut("all duplicates", None, frozenset(classes))]


def read_predictions(url: str) -> pa.Table:
    """Read a model's predictions.

    Raises:
        NotFound: There is no such file.
        ConfigError: The file is not a table that `trainer` wrote.
    """
    body = read_file(url)
    try:
        table = from_parquet(body, url)
    except CorruptShard as error:
        raise ConfigError(f"--predictions {error}, or give predictions of `trainer`") from error
    missing = [name for name in PREDICTION_SCHEMA.names if name not in table.column_names]
    if missing:
        raise ConfigError(f"--predictions {url} lacks {', '.join(missing)}; give predictions that `trainer` wrote")
    return table


def score(predictions: pa.Table, downstream: pa.Table, cut: Cut) -> dict[str, Any]:
    """Compare the accuracy with and without duplicates.

    Args:
        predictions: Table of trainer.scores.predictions.PREDICTION_SCHEMA for the whole test set.
        downstream: AuditTables.downstream.
        cut: Which duplicates count.

    Returns:
        Accuracies, 0..1, with 95 % intervals: on the full set, without duplicates and on the duplicates by Wilson, the
        difference of the first two by paired bootstrap.

    Raises:
        ConfigError: The predictions are not those of this test set.
    """
    correct_of = {
        (row["shard"], row["row"]): row["correct"]
        for row in predictions.select(["shard", "row", "correct"]).to_pylist()
    }
    rows = downstream.select(["shard", "row", "state", "distance", "evidence"]).to_pylist()
    missing = [row for row in rows if (row["shard"], row["row"]) not in correct_of]
    if missing or len(correct_of) != len(rows):
        raise ConfigError(
            f"the predictions cover {len(correct_of)} pictures, the test set has {len(rows)}, {len(missing)} without a "
            f"prediction; evaluate the model on the audited dataset, without --exclude"
        )
    correct = np.array([correct_of[row["shard"], row["row"]] for row in rows], bool)
    kept = np.array([not cut.counts(row) for row in rows], bool)
    difference, low, high = paired_bootstrap(correct, kept) if kept.any() else (0.0, 0.0, 0.0)
    return {
        "cut": cut.name,
        "full": _accuracy(correct),
        "dedup": _accuracy(correct[kept]),
        "duplicates": _accuracy(correct[~kept]),
        "difference": difference,
        "difference_low": low,
        "difference_high": high,
    }


def _accuracy(correct: Any) -> dict[str, Any]:
    num_correct, num_samples = int(correct.sum()), len(correct)
    low, high = wilson_interval(num_correct, num_samples)
    accuracy = num_correct / num_samples if num_samples else None
    return {
        "accuracy": accuracy,
        "low": low,
        "high": high,
        "num_correct": num_correct,
        "num_samples": num_samples,
    }
