"""Collectives between the ranks of a run."""

import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from trainer.step.ranks import World, limit_collectives

_LATE_SECONDS = 5.0


def _rank(rank: int, folder: str) -> None:
    """Rank 1 is late for three collectives; rank 0 waits for it as long as it may, in each process group."""
    dist.init_process_group("gloo", f"file://{folder}/ranks", rank=rank, world_size=2)
    world = World(rank, 2, torch.device("cpu"))
    shards = init_device_mesh("cpu", (1, 2), mesh_dim_names=("replicas", "shards"))["shards"].get_group()
    limit_collectives(world, _LATE_SECONDS / 10)
    limit_collectives(world, _LATE_SECONDS * 10)  # the last word counts
    time.sleep(_LATE_SECONDS * rank)
    dist.all_reduce(torch.ones(1))
    limit_collectives(world, _LATE_SECONDS / 10)
    if rank == 0:
        for group in (shards, None):
            with pytest.raises(RuntimeError, match=r"(?i)time"):
                dist.all_reduce(torch.ones(1), group=group)
        Path(folder, "ended").touch()
    while not Path(folder, "ended").exists():
        time.sleep(0.1)


def test_a_collective_waits_for_a_late_rank_as_long_as_the_phase_allows(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_rank, (str(tmp_path),), nprocs=2)
    assert (tmp_path / "ended").exists()
