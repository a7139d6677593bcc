"""What a run keeps beside its checkpoints: its configuration, its starts, the samples that it replaced."""

import hashlib
import importlib.metadata
import json
import os
import platform
import re
import socket
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import torch

from pipeline.base.errors import Conflict
from pipeline.base.records import Record, json_bytes
from pipeline.store.base import Store, commit
from pipeline.work.on_ray import is_on_ray
from trainer.run.history import settle
from trainer.run.starts import WHEEL_VARIABLE
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
    """Record when, with which code and where every rank of this start runs.

    Returns:
        The attempt's name, the same on every rank.
    """
    attempt = broadcast(world, uuid.uuid4().hex[:8] if world.is_first else None)
    places = gather(world, _place(world))
    if world.is_first:
        began = {"attempt": attempt, "first_step": step, "time": time.time(), "packages": _packages(), "code": _code()}
        began |= {"num_ranks": world.num_ranks, "ranks": places}
        store.create(f"attempts/{step:09d}-{attempt}.json", json_bytes(began))
    return attempt


def _code() -> dict[str, str | None]:
    """Return the release, and the digest of the wheel where the code was submitted with the job."""
    return {"version": importlib.metadata.version("bit-pretrain"), "wheel_sha256": os.environ.get(WHEEL_VARIABLE)}


def _packages() -> dict[str, str | None]:
    """Return the versions of what the run computes with, and of the GPUs' driver where there is one."""
    versions = {name: importlib.metadata.version(name) for name in ("bit-pretrain", "torch", "ray", "numpy")}
    return {**versions, "cuda": torch.version.cuda, "driver": _driver()}


def _driver() -> str | None:
    """Return the version of NVIDIA's kernel module, such as 580.65.06."""
    with suppress(OSError):
        found = re.search(r"\d+\.[\d.]+", Path("/proc/driver/nvidia/version").read_text(encoding="utf-8"))
        return found[0] if found else None
    return None


def _place(world: World) -> dict[str, Any]:
    return {
        "rank": world.rank,
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "node": _ray_node(),
        "device": str(world.device),
        "gpu": torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else None,
        "threads": torch.get_num_threads(),
        "code": str(Path(__file__).parents[1]),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _ray_node() -> str:
    if not is_on_ray():
        return ""
    import ray  # noqa: PLC0415 - a second that runs without Ray need not pay

    return str(ray.util.get_node_ip_address())


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
