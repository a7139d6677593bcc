"""What happened to a run, in its folder: its starts, and whatever else somebody will want to know; without torch."""

import json
import time
from typing import Any

from pipeline.store.base import Store

_EVENTS, _ATTEMPTS = "events/", "attempts/"


def write_event(store: Store, kind: str, step: int, **details: Any) -> None:
    """Record that something happened now.

    Args:
        store: The run's folder.
        kind: What, in one word: skipped, stalled, resized, stopping or damaged.
        step: Steps done by then.
        details: What else is known of it, as JSON has it.
    """
    at = time.time_ns()
    while not store.create(f"{_EVENTS}{at}-{kind}.json", _body(kind, at, step, details)):
        at += 1  # another rank's, of the same instant


def _body(kind: str, at: int, step: int, details: dict[str, Any]) -> bytes:
    return json.dumps({"kind": kind, "time": round(at / 1e9, 3), "step": step, **details}).encode()


def read_events(store: Store) -> list[dict[str, Any]]:
    """Return what happened to a run, in order of time: dictionaries with kind, time, step and details."""
    return [json.loads(store.read(entry.key)) for entry in store.list(_EVENTS)]


def attempts(store: Store) -> list[dict[str, Any]]:
    """Return all starts of a run, by first step, and of one step by time."""
    starts = [json.loads(store.read(entry.key)) for entry in store.list(_ATTEMPTS)]
    return sorted(starts, key=lambda start: (start["first_step"], start.get("time", 0.0)))
