"""The measurements of a run while it trained, and its best checkpoint by them; without torch."""

from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pipeline.base.errors import NotFound
from pipeline.base.parsing import parse_json
from pipeline.base.records import json_bytes
from pipeline.store.base import Store
from pipeline.store.url import absolute_url, open_store
from trainer.checkpoint.record import steps

_FOLDER = "evaluations/"
_READERS = 16  # at once; a choice


def write_evaluation(store: Store, row: dict[str, Any]) -> None:
    """Store what was measured after `row["step"]` steps; a measurement of a state that was lost is replaced."""
    key = f"{_FOLDER}{row['step']:09d}.json"
    if not store.create(key, json_bytes(row)):
        store.delete(key)
        store.create(key, json_bytes(row))


def read_evaluations(store: Store) -> list[dict[str, Any]]:
    """Return all measurements of a run, by step."""

    def read(key: str) -> dict[str, Any]:
        return parse_json(store.read(key), f"{store.url}/{key}", dict)

    with ThreadPoolExecutor(_READERS) as threads:  # BiT-L has 2,930
        return list(threads.map(read, [entry.key for entry in store.list(_FOLDER)]))


def best_of(evaluations: Sequence[dict[str, Any]], among: Collection[int]) -> int | None:
    """Return the step with the highest held-out accuracy, the earliest of several; None where none was measured.

    Args:
        evaluations: Measurements.
        among: Steps that count, such as those with a checkpoint.
    """
    measured = [
        (row["held_out"]["accuracy"], -row["step"]) for row in evaluations if "held_out" in row and row["step"] in among
    ]
    return -max(measured)[1] if measured else None


def best_step(store: Store) -> int:
    """Return the step of a run's best checkpoint by held-out accuracy.

    Raises:
        NotFound: No checkpoint of it was measured.
    """
    step = best_of(read_evaluations(store), steps(store))
    if step is None:
        raise NotFound(
            f"{store.url} has no checkpoint with a held-out accuracy, so none is the best; train with --held-out, or "
            f"give a step: RUN@STEP"
        )
    return step


def run_and_step(text: str) -> tuple[str, int | None]:
    """Return the URL and the step of RUN, RUN@STEP or RUN@best.

    Raises:
        NotFound: The best one is asked for, and none was measured.
    """
    place, at, step = text.rpartition("@")
    if at and step.isdigit():
        return absolute_url(place), int(step)
    if at and step == "best":
        return absolute_url(place), best_step(open_store(absolute_url(place)))
    return absolute_url(text), None
