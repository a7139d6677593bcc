"""When Ray may start a run again, and when the run says why it cannot succeed."""

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from pipeline.base.errors import BitError, ConfigError, Fenced, NonFinite, ServiceError, Unreachable
from pipeline.store.url import open_store
from trainer.run.starts import (
    begins_in_vain,
    failure_text,
    final_failure,
    has_saved_since,
    write_failure,
    write_start,
)
from trainer.step.ranks import World


@pytest.mark.parametrize(
    ("error", "kind"),
    [(ConfigError("17 lanes"), ServiceError), (Fenced("17 lanes"), ServiceError), (NonFinite("17 lanes"), NonFinite)],
)
def test_an_error_that_would_come_again_is_final_at_once(
    tmp_path: Path, error: Exception, kind: type[BitError]
) -> None:
    store = open_store(str(tmp_path))
    write_failure(store, "abc", 0, RuntimeError("Connection reset by peer"))
    assert final_failure(store, "abc") is None
    write_failure(store, "abc", 1, error)
    found = final_failure(store, "abc")
    assert (type(found), str(found)) == (kind, "17 lanes")
    assert final_failure(store, "another") is None


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (Unreachable("no answer from S3"), "ended with no answer from S3"),
        (RuntimeError("out of memory"), "ended with RuntimeError: out of memory"),
        (SystemExit("torch.distributed.checkpoint's own is no Exception either"), "ended with SystemExit"),
        (None, "ended with a worker that was killed"),
    ],
)
def test_five_starts_without_progress_are_enough_whatever_ended_them(
    tmp_path: Path, error: BaseException | None, said: str
) -> None:
    store = open_store(str(tmp_path))
    for start in range(6):
        assert final_failure(store, "abc") is None, start
        write_start(store, "abc")
        if error:
            for rank in (0, 1):
                write_failure(store, "abc", rank, error)
    message = str(final_failure(store, "abc"))
    assert "5 starts in a row reached no new checkpoint" in message
    assert said in message


@pytest.mark.parametrize(
    "finished",
    ["checkpoints/{:09d}.json", "results/{:04d}.json", "models/a/checkpoints/{:09d}.json",
     "predictions/part-{:06d}.parquet", "embeddings/part-{:06d}.parquet"],
)  # fmt: skip
def test_starts_that_each_finish_something_never_end_a_launch(tmp_path: Path, finished: str) -> None:
    store = open_store(str(tmp_path))
    for start in range(12):
        write_start(store, "abc")
        assert final_failure(store, "abc") is None
        store.create(finished.format(start), b"{}")


def _begin(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", f"file://{folder}/ranks", rank=rank, world_size=2)
    world = World(rank, 2, torch.device("cpu"))
    # The second rank looks before the first one has written anything.
    store = open_store(f"{folder}/run" if world.is_first else f"{folder}/nothing-yet")
    assert [begins_in_vain(world, store, "abc") for _ in range(6)] == [False] * 5 + [True]
    dist.destroy_process_group()


def test_all_ranks_find_together_that_a_start_is_in_vain(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_begin, (str(tmp_path),), nprocs=2)


def _lose_a_rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", f"file://{folder}/ranks", rank=rank, world_size=2)
    dist.barrier()
    if rank:
        os._exit(0)  # the point: it says nothing to the other one
    try:
        for _ in range(100):
            dist.all_reduce(torch.zeros(1))
    except RuntimeError as error:
        Path(folder, "text").write_text(failure_text(error))
    os._exit(0)


def test_a_rank_that_lost_another_one_says_so_in_words(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_lose_a_rank, (str(tmp_path),), nprocs=2)
    first, *rest = (tmp_path / "text").read_text().splitlines()
    assert first == "lost the connection to another rank: it was killed, or its node is gone"
    assert rest[0].startswith("RuntimeError: ")  # the library's own words, for whoever asks further
    assert failure_text(RuntimeError("out of memory")) == "RuntimeError: out of memory"
    assert failure_text(Unreachable("Connection reset by peer")) == "Connection reset by peer"


@pytest.mark.parametrize(
    ("new", "is_saved"),
    [
        ([], False),
        (["checkpoints/000000039.json"], False),  # was under way when the save was asked for
        (["checkpoints/000000039.json", "checkpoints/000000040.json"], True),
        (["models/a/checkpoints/000000041.json"], True),
        (["results/0003.json"], True),
        (["predictions/part-000003.parquet"], True),
    ],
)
def test_a_group_is_resized_only_after_a_save_of_the_step_it_has_reached(new: list[str], is_saved: bool) -> None:
    before = ["checkpoints/000000030.json", "checkpoints/000000050.json"]  # what was there does not count
    assert has_saved_since(before, [*before, *new], step=40) == is_saved
