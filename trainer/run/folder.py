"""What a run keeps beside its checkpoints: its configuration, its starts, its metrics."""

import hashlib
import json
import os
import platform
import socket
import uuid
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from pydantic import ValidationError

from pipeline.base.errors import Conflict, NotFound, ResumeMismatch
from pipeline.base.records import Record
from pipeline.store.base import Store, commit
from trainer.step.ranks import World, broadcast, gather

_CONFIG_KEY = "run.json"
_MAY_CHANGE = {"loader", "loader_log"}  # decide how fast batches come and what is logged of it, not what is in them
R = TypeVar("R", bound=Record)


def require_same_config(store: Store, world: World, config: R) -> R:
    """Write the configuration on the first start, and on a later one makes sure it is the same.

    Raises:
        ResumeMismatch: The run was started with another configuration; names the fields.
    """
    if world.is_first and not store.create(_CONFIG_KEY, config.to_json()):
        before, now = _with_defaults(store, type(config)), json.loads(config.to_json())
        changed = [name for name in now if name not in _MAY_CHANGE and now[name] != before.get(name)]
        if changed:
            differences = "; ".join(f"{name} was {before.get(name)!r}, is {now[name]!r}" for name in changed)
            raise ResumeMismatch(f"{store.url} was started with other settings: {differences}; use them or another OUT")
    broadcast(world, None)
    return config


def _with_defaults(store: Store, config_type: type[Record]) -> dict[str, Any]:
    """Return the stored configuration, with today's defaults for the fields that its release did not have."""
    stored = store.read(_CONFIG_KEY)
    try:
        filled: dict[str, Any] = json.loads(config_type.model_validate_json(stored).to_json())
    except ValidationError:  # another kind of run: the comparison names its fields
        filled = json.loads(stored)
    return filled


def read_config(store: Store) -> dict[str, Any]:
    """Return the configuration a run was started with.

    Raises:
        NotFound: There is no run.
    """
    try:
        config: dict[str, Any] = json.loads(store.read(_CONFIG_KEY))
    except NotFound as error:
        raise NotFound(f"{store.url} holds no run; give the OUT of a `trainer` command") from error
    return config


def begin_attempt(store: Store, world: World, step: int) -> str:
    """Record where every rank of this start runs; return the attempt's name, the same on every rank."""
    attempt = broadcast(world, uuid.uuid4().hex[:8] if world.is_first else None)
    places = gather(world, _place(world))
    if world.is_first:
        body = json.dumps({"attempt": attempt, "first_step": step, "ranks": places}, indent=1)
        store.create(f"attempts/{step:09d}-{attempt}.json", body.encode())
    return attempt


def _place(world: World) -> dict[str, Any]:
    return {
        "rank": world.rank,
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "node": _ray_node(),
        "device": str(world.device),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _ray_node() -> str:
    import ray  # noqa: PLC0415 - a second; runs without Ray pay nothing but this

    return ray.util.get_node_ip_address() if ray.is_initialized() else ""


def attempts(store: Store) -> list[dict[str, Any]]:
    """Return all starts of a run, by first step."""
    return [json.loads(store.read(entry.key)) for entry in store.list("attempts/")]


def write_metrics(store: Store, rows: Sequence[dict[str, Any]]) -> None:
    """Store metric rows as one object named by its first step; a repeated stretch keeps what was there first."""
    if rows:
        body = "".join(json.dumps(row) + "\n" for row in rows)
        store.create(f"metrics/{rows[0]['step']:09d}.jsonl", body.encode())


def write_quarantine(store: Store, step: int, rank: int, rows: Sequence[dict[str, Any]]) -> None:
    """Store the samples that a rank had to replace before step `step`; none is lost if a stretch is repeated."""
    if not rows:
        return
    body = "".join(json.dumps(row) + "\n" for row in rows).encode()
    name = f"quarantine/{step:09d}-rank{rank}"
    try:
        commit(store, f"{name}.jsonl", body)
    except Conflict:  # written by a start with another number of ranks, which read other samples
        commit(store, f"{name}-{hashlib.sha256(body).hexdigest()[:8]}.jsonl", body)


def read_metrics(store: Store) -> list[dict[str, Any]]:
    """Return all metric rows by step; of a step measured twice, the first."""
    rows: dict[int, dict[str, Any]] = {}
    for entry in store.list("metrics/"):
        for line in store.read(entry.key).decode().splitlines():
            row = json.loads(line)
            rows.setdefault(row["step"], row)
    return [rows[step] for step in sorted(rows)]
