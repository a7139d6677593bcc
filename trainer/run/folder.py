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

from pipeline.base.errors import Conflict
from pipeline.base.records import Record
from pipeline.store.base import Store, commit
from trainer.run.history import settle
from trainer.step.ranks import World, broadcast, gather

R = TypeVar("R", bound=Record)


def settled_config(store: Store, world: World, config: R) -> R:
    """Return the configuration to go on with, the same on every rank; every rank must call.

    Raises:
        ResumeMismatch: The run has learned with other settings; names those that differ.
        ConfigError: The folder is another command's.
    """
    settled = broadcast(world, settle(store, config).to_json() if world.is_first else None)
    return type(config).model_validate_json(settled)


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
