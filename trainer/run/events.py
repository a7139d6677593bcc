"""What happened to a run, in its folder: its starts, and whatever else somebody will want to know; without torch."""

import json
import re
import time
from typing import Any

from pipeline.base.parsing import parse_json
from pipeline.store.base import Store

_EVENTS, _ATTEMPTS, _FAILURES = "events/", "attempts/", "failures/"
_FAILURE = re.compile(r"/\d+-\d+\.json$")


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
    return [parse_json(store.read(entry.key), f"{store.url}/{entry.key}", dict) for entry in store.list(_EVENTS)]


def attempts(store: Store) -> list[dict[str, Any]]:
    """Return all starts of a run, by first step, and of one step by time."""
    starts = [parse_json(store.read(entry.key), f"{store.url}/{entry.key}", dict) for entry in store.list(_ATTEMPTS)]
    return sorted(starts, key=lambda start: (start["first_step"], start.get("time", 0.0)))


def read_failures(store: Store) -> list[dict[str, Any]]:
    """Return what ranks ended with, in order of time: dictionaries with time, rank, message and final."""
    entries = [entry for entry in store.list(_FAILURES) if _FAILURE.search(entry.key)]
    found = [
        parse_json(store.read(entry.key), f"{store.url}/{entry.key}", dict) | {"time": _time_of(entry.key)}
        for entry in entries
    ]
    return sorted(found, key=lambda failure: failure["time"])


def start_times(store: Store) -> list[float]:
    """Return when groups of workers started, in order, in seconds since 1970; nothing where Ray started none."""
    return sorted(_time_of(entry.key) for entry in store.list(_FAILURES) if "/starts/" in entry.key)


def _time_of(key: str) -> float:
    """Return the time in the name of an object: of its beginning, in nanoseconds."""
    return int(key.rpartition("/")[2].partition("-")[0].removesuffix(".json")) / 1e9
