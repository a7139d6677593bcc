"""All that a run folder tells of its run, read again and again without reading an object twice."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

from pipeline.base.errors import NotFound
from pipeline.store.base import Entry, Store
from trainer.checkpoint.record import FOLDER, is_record_key
from trainer.run.evaluations import read_evaluations
from trainer.run.events import attempts, read_events, read_failures, start_times
from trainer.run.goodput import TimeClasses, time_classes
from trainer.run.history import Change, read_changes, read_config
from trainer.run.metrics import MetricsReader, Row, kept_rows

_NUM_THREADS = 16  # of requests for objects that are new


@dataclass(frozen=True)
class RunFacts:
    """What a run folder holds, but for weights.

    Attributes:
        url: Of the run.
        config: As it was started, as JSON has it.
        changes: Of the configuration, by step.
        attempts: Starts of the run.
        all_rows: Metrics, those of lost steps too.
        evaluations: Held-out figures and probes, by step.
        events: What else happened, by time.
        failures: What ranks ended with, by time.
        starts: When groups of workers started, in seconds since 1970.
        checkpoints: Step and time of each checkpoint that is there.
    """

    url: str
    config: dict[str, Any]
    changes: list[Change]
    attempts: list[dict[str, Any]]
    all_rows: list[Row]
    evaluations: list[dict[str, Any]]
    events: list[dict[str, Any]]
    failures: list[dict[str, Any]]
    starts: list[float]
    checkpoints: list[tuple[int, float]]

    @cached_property
    def rows(self) -> list[Row]:
        """Metrics of the steps that were kept."""
        return kept_rows(self.all_rows)

    def times(self, until: float | None = None) -> TimeClasses:
        """Return where the time went; with `until`, what follows the last sign of life counts as down."""
        failed = [failure["time"] for failure in self.failures]
        return time_classes(self.attempts, self.all_rows, failed, self.starts, until)

    @cached_property
    def began(self) -> float | None:
        """When the first start began, in seconds since 1970; None where nothing tells."""
        times = [each["time"] for each in self.attempts if "time" in each]
        return min([*times, *self.starts], default=None) if times else None

    @cached_property
    def last_sign(self) -> float | None:
        """When the run last wrote down anything, in seconds since 1970; None where nothing tells."""
        found = [each.get("time") for each in (*self.all_rows[-1:], *self.attempts, *self.events, *self.failures)]
        return max([each for each in (*found, *self.starts) if each], default=None)


class RunReader:
    """Reads a run folder."""

    def __init__(self, store: Store) -> None:
        """Read from the folder of a run."""
        self._store = cast("Store", _Remembered(store))
        self._metrics = MetricsReader(store)

    def read(self) -> RunFacts:
        """Return what the folder holds now.

        Raises:
            NotFound: It holds no run; names the models of a sweep.
        """
        store = self._store
        try:
            config = read_config(store)
        except NotFound:
            models = sorted({entry.key.split("/")[1] for entry in store.list("models/")})
            if not models:
                raise
            raise NotFound(f"{store.url} holds models/ with {', '.join(models)}: give one of them") from None
        checkpoints = [entry for entry in store.list(f"{FOLDER}/") if is_record_key(entry.key)]
        return RunFacts(
            url=store.url,
            config=config,
            changes=read_changes(store),
            attempts=attempts(store),
            all_rows=self._metrics.all_rows(),
            evaluations=read_evaluations(store),
            events=read_events(store),
            failures=read_failures(store),
            starts=start_times(store),
            checkpoints=[(int(entry.key[-14:-5]), entry.modified) for entry in checkpoints],
        )


class _Remembered:
    """The reading part of a store that keeps small objects in memory, and fetches those of a listing side by side."""

    def __init__(self, store: Store) -> None:
        self._store, self.url = store, store.url
        self._bodies: dict[str, tuple[float, bytes]] = {}

    def list(self, prefix: str) -> Iterator[Entry]:
        entries = list(self._store.list(prefix))
        if not prefix.startswith((FOLDER, "models")):
            news = [entry for entry in entries if self._bodies.get(entry.key, (-1.0,))[0] != entry.modified]
            with ThreadPoolExecutor(_NUM_THREADS) as threads:
                bodies = threads.map(lambda entry: self._store.read(entry.key), news)
                self._bodies |= {entry.key: (entry.modified, body) for entry, body in zip(news, bodies, strict=True)}
        return iter(entries)

    def read(self, key: str) -> bytes:
        return self._bodies[key][1] if key in self._bodies else self._store.read(key)
