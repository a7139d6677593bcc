"""Past damaged checkpoints to the newest sound one."""

import logging
from collections.abc import Callable

from torch import Tensor

from pipeline.base.errors import CorruptShard
from pipeline.base.records import json_bytes
from pipeline.store.base import Store
from trainer.checkpoint.record import CheckpointRecord, read_record, record_key, steps
from trainer.checkpoint.sharded import load
from trainer.step.ranks import World, broadcast, gather

logger = logging.getLogger(__name__)

DAMAGED = "damaged"  # folder of the records of damaged checkpoints


def load_newest(
    store: Store, world: World, state_of: Callable[[CheckpointRecord], dict[str, Tensor]], *, set_aside: bool = False
) -> CheckpointRecord | None:
    """Fill tensors from the newest checkpoint that is sound; every rank must call.

    Args:
        store: The run's store.
        world: This rank.
        state_of: From a checkpoint's record to the tensors to fill.
        set_aside: Whether the record of a damaged one goes to `damaged/`, so that its step can be saved again; its
            files stay. For whoever owns the run.

    Returns:
        The record of what was loaded, or None where there is no checkpoint.

    Raises:
        CorruptShard: There are checkpoints, and none of them is sound.
    """
    found = broadcast(world, steps(store) if world.is_first else None)
    problems: list[str] = []
    for step in reversed(found):
        try:
            record = read_record(store, step)
            load(store, world, record, state_of(record))
        except CorruptShard as error:
            problems.append(str(error))
            gather(world, step)  # every rank has read the record
            if world.is_first:
                logger.warning("the checkpoint of step %d is damaged (%s)", step, error)
                if set_aside:
                    _set_aside(store, step, str(error))
            broadcast(world, step)  # no rank goes on before that is done
            continue
        if problems and world.is_first:
            logger.warning("%s: going on from the checkpoint of step %d, the newest sound one", store.url, step)
        return record
    if problems:
        raise CorruptShard(
            f"none of the {len(found)} checkpoints of {store.url} is sound: {problems[0]}; restore the files from a "
            f"backup, or start again in another folder"
        )
    return None


def _set_aside(store: Store, step: int, problem: str) -> None:
    """Move the record of a damaged checkpoint, so that it is one no longer."""
    body = store.read(record_key(step))
    name = f"{DAMAGED}/{step:09d}"
    number = sum(1 for _ in store.list(name))
    store.create(f"{name}-{number}.json", json_bytes({"problem": problem, "record": body.decode(errors="replace")}))
    store.delete(record_key(step))
