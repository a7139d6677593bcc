"""The configuration of a run over its life: as it began, and what was changed on the way; without torch.

`run.json` holds the first configuration, each object below `changes/` what was changed at a step. Settings that decide
how a run is computed may differ from start to start; those that decide what it computes are kept from the first
checkpoint on, unless a change is asked for by name.
"""

import json
import math
import posixpath
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

from pipeline.base.errors import ConfigError, NotFound, ResumeMismatch
from pipeline.base.parsing import parse_json, parse_record
from pipeline.base.records import Record
from pipeline.store.base import Store
from pipeline.store.url import open_store
from trainer.checkpoint.record import is_record_key, steps

CONFIG_KEY = "run.json"
# They decide how fast and where a run is computed, to rounding the same; or how many runs a sweep has.
FREE = frozenset(
    [
        "out", "loader", "loader_log", "microbatch_size", "recomputes", "compiled", "sharded", "ranks_per_replica",
        "checkpoint_every_steps", "keep_every_steps", "log_every_steps", "keep_checkpoints", "evaluate_every_steps",
        "max_skipped_steps", "probes", "shots", "num_subsets",
    ]
)  # fmt: skip
# With another one of these a run reads other samples: a new order begins at the step of the change.
_OF_THE_ORDER = frozenset(
    [
        "data", "data_version", "weight", "mix", "exclude", "held_out", "held_out.num_samples", "held_out.seed", "seed",
        "num_lanes", "window_blocks", "recipe.batch_size",
    ]
)  # fmt: skip
_FIXED = frozenset(["out", "model", "init", "init_step", "branch", "recipe.optimizer"])
_CHANGES = "changes/"
R = TypeVar("R", bound=Record)


class Change(Record):
    """Settings that were changed while a run was under way.

    Attributes:
        step: Optimizer steps done when the change took effect.
        epochs_done: Passes over the data by then.
        time: When it was asked for, in seconds since 1970.
        before: The values until then, by dotted name.
        after: The values from then on.
    """

    step: int
    epochs_done: float
    time: float
    before: dict[str, Any]
    after: dict[str, Any]

    @property
    def begins_order(self) -> bool:
        """Whether a new order of samples begins with it."""
        return any(name in _OF_THE_ORDER for name in self.after)


def read_changes(store: Store, until: float = math.inf) -> list[Change]:
    """Return the changes of a run up to a step, in order."""
    changes = [
        parse_record(Change, store.read(entry.key), f"{store.url}/{entry.key}") for entry in store.list(_CHANGES)
    ]
    return [change for change in changes if change.step <= until]


def order_change(store: Store, until: float = math.inf) -> Change | None:
    """Return the change with which the order of samples at a step began; None where it is the first order."""
    orders = [change for change in read_changes(store, until) if change.begins_order]
    return orders[-1] if orders else None


def read_config(store: Store) -> dict[str, Any]:
    """Return the configuration a run was started with.

    Raises:
        NotFound: There is no run.
    """
    try:
        body = store.read(CONFIG_KEY)
    except NotFound as error:
        raise NotFound(f"{store.url} holds no run; give the OUT of a `trainer` command") from error
    return parse_json(body, f"{store.url}/{CONFIG_KEY}", dict)


def config_of_model(store: Store) -> dict[str, Any]:
    """Return the configuration of a run, or of the sweep that a fine-tuned model is of; empty where there is none."""
    sweep, models = posixpath.split(posixpath.dirname(store.url.rstrip("/")))
    for each in (store, *([open_store(sweep)] if models == "models" else [])):
        try:
            return read_config(each)
        except NotFound:
            continue
    return {}


def current_config(store: Store, config_type: type[R], until: float = math.inf) -> R | None:
    """Return the configuration with which a run goes on: the first one with all changes; None where there is no run.

    With `until`, that of a step. Fields that its release did not have are filled in with their defaults.

    Raises:
        ConfigError: The folder is another command's.
    """
    try:
        body = store.read(CONFIG_KEY)
    except NotFound:
        return None
    values = parse_json(body, f"{store.url}/{CONFIG_KEY}", dict)
    for change in read_changes(store, until):
        for name, value in change.after.items():
            _put(values, name, value)
    try:
        return config_type.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(
            f"{store.url} holds something else ({CONFIG_KEY}: {where}: {first['msg']}); give another OUT"
        ) from error


def learned_config(store: Store, config_type: type[R]) -> R | None:
    """Return the configuration with which a run goes on that has learned something; None where there is no such run."""
    return current_config(store, config_type) if has_learned(store) else None


def settle(store: Store, config: R) -> R:
    """Return the configuration to go on with: this one, or that of the run that is there, if it is the same.

    Nothing is fixed before the first checkpoint or result: a run that failed before it may be started otherwise.

    Raises:
        ResumeMismatch: The run has learned with other settings; names those that differ.
        ConfigError: The folder is another command's.
    """
    now = current_config(store, type(config))
    if now is None or not has_learned(store):
        if now != config:
            store.delete(CONFIG_KEY)
            store.create(CONFIG_KEY, config.to_json())
        return config
    first = type(config).model_validate_json(store.read(CONFIG_KEY))
    given, kept, began = (dict(_leaves(each)) for each in (config, now, first))
    different = [
        name
        for name in sorted(given.keys() | kept.keys())
        if name.partition(".")[0] not in FREE and given.get(name) not in (kept.get(name), began.get(name))
    ]
    if different:
        differences = "; ".join(f"{name} was {kept.get(name)!r}, is {given.get(name)!r}" for name in different)
        advice = f"change the run from here on with --change {different[0]}={json.dumps(given.get(different[0]))}"
        fixed = any(_is_fixed(name) for name in different)
        raise ResumeMismatch(
            f"{store.url} was started with other settings: {differences}; use them or another OUT"
            + ("" if fixed else f", or {advice}")
        )
    free = {name: getattr(config, name) for name in FREE if name in type(config).model_fields}
    return now.model_copy(update=free)


def changed(
    store: Store,
    config: R,
    changes: Mapping[str, Any],
    epochs_done: float,
    check: Callable[[R], None] = lambda config: None,
) -> R:
    """Record changes of a run that has learned, and return the configuration with them.

    Args:
        store: The run's folder.
        config: Its present configuration.
        changes: New values by dotted name.
        epochs_done: Passes over the data so far.
        check: Refuses a configuration that could not run, before anything is recorded.

    Raises:
        ConfigError: A value cannot be changed, or is none.
    """
    new = with_changes(config, changes)
    check(new)
    after = _differences(config, new)
    if after:
        step, values = steps(store)[-1], json.loads(config.to_json())
        change = Change(
            step=step,
            epochs_done=epochs_done,
            time=time.time(),
            before={name: _value(values, name) for name in after},
            after=after,
        )
        number = sum(1 for _ in store.list(_CHANGES))
        store.create(f"{_CHANGES}{number:04d}-{step:09d}.json", change.to_json())
    return new


def with_changes(config: R, changes: Mapping[str, Any]) -> R:
    """Return the configuration of a run with changes, recording nothing.

    Raises:
        ConfigError: A value cannot be changed, or is none.
    """
    values = json.loads(config.to_json())
    for name, value in changes.items():
        _put(values, name, value)
    try:
        new = type(config).model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(f"--change {where}: {first['msg']} (got {first['input']!r})") from error
    fixed = sorted(filter(_is_fixed, _differences(config, new)))
    if fixed:
        raise ConfigError(f"--change {fixed[0]}: a run keeps its {fixed[0]}; start another one with another OUT")
    return new


def _is_fixed(name: str) -> bool:
    return name in _FIXED or name.partition(".")[0] in _FIXED


def has_learned(store: Store) -> bool:
    """Return whether a run has a checkpoint or a result."""
    if steps(store) or any(True for _ in store.list("results/")):
        return True
    return any(is_record_key(entry.key) for entry in store.list("models/"))


def _leaves(config: Record) -> Iterator[tuple[str, Any]]:
    """Yield every value of a configuration by dotted name, as JSON has it."""

    def walk(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
        for name, value in values.items():
            if isinstance(value, dict):
                yield from walk(value, f"{prefix}{name}.")
            else:
                yield f"{prefix}{name}", value

    return walk(json.loads(config.to_json()), "")


def _differences(old: Record, new: Record) -> dict[str, Any]:
    """Return the values by dotted name that are others, or new; a record that is gone is None by its own name."""
    before = dict(_leaves(old))
    return {name: value for name, value in _leaves(new) if name not in before or before[name] != value}


def _value(values: Any, name: str) -> Any:
    """Return the value at a dotted name, which may be a whole record; None where there is none."""
    for part in name.split("."):
        values = values.get(part) if isinstance(values, dict) else None
    return values


def _put(values: dict[str, Any], name: str, value: Any) -> None:
    *path, last = name.split(".")
    for part in path:
        if not isinstance(values.get(part), dict):  # a record that was not there
            values[part] = {}
        values = values[part]
    values[last] = value
