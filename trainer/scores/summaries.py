"""Accuracies of many runs, summed up by what they have in common."""

from collections.abc import Mapping, Sequence
from statistics import fmean, median, stdev
from typing import Any

from trainer.scores.intervals import interval_of_runs


def summarise(results: Sequence[Mapping[str, Any]], by: Sequence[str]) -> list[dict[str, Any]]:
    """Return a row for each group of runs: how many, median, mean and standard deviation, and a 95 % interval.

    The interval is that of `interval_of_runs`.

    Args:
        results: With `accuracy`, `num_correct` and `num_test`.
        by: Fields that the runs of a group share; groups come in the order of their first runs.
    """
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for result in results:
        groups.setdefault(tuple(result[name] for name in by), []).append(result)
    rows = []
    for key, members in groups.items():
        accuracies = [member["accuracy"] for member in members]
        low, high = interval_of_runs(members)
        rows.append(
            dict(zip(by, key, strict=True))
            | {
                "num_runs": len(members),
                "median": median(accuracies),
                "mean": fmean(accuracies),
                "std": stdev(accuracies) if len(members) > 1 else None,
                "low": low,
                "high": high,
            }
        )
    return rows
