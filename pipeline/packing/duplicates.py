"""Rows whose pictures have the same bytes: all but the first in plan order are left out, and listed.

Two passes: the workers read every picture and store its digest, shard by shard of a first plan; then digests are
compared, with those of the dataset's earlier plans before them, a sixteenth at a time, so that 300 M of them need 1 GB
of memory and 5 GB of scratch.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.base.errors import BadImage, ConfigError, Conflict, NotFound
from pipeline.dataset.schema import DIGEST_BYTES, image_digest
from pipeline.packing.commit import open_plan, read_plan, shard_rows
from pipeline.packing.external_sort import scratch_errors
from pipeline.packing.fetch import fetch
from pipeline.packing.label_conflicts import find_conflicts, hash_labels, store_conflicts
from pipeline.packing.make_plan import Planned, store_plan
from pipeline.packing.plan import Plan, plan_digest
from pipeline.packing.write_plan import PlanWriter
from pipeline.store.base import Store, exists, put
from pipeline.work.pools import Pool, report_done
from pipeline.work.schedule import Attempt, Count, run_calls

_NUM_PASSES = 16
_READ_THREADS = 16
_NO_DIGEST = bytes(DIGEST_BYTES)  # of a row that cannot be read; the next run tries again
_Positions = np.ndarray[Any, np.dtype[np.int64]]


def leave_out_duplicates(
    store: Store,
    planned: Planned,
    scratch: Path,
    pool: Pool,
    *,
    earlier: Sequence[str] = (),
    on_images: Callable[[int], None] = lambda count: None,
) -> Planned:
    """Return the plan without the rows whose image bytes an earlier row has.

    Args:
        store: The destination; keeps the digests, so that an interrupted pass goes on.
        planned: The plan of all rows.
        scratch: Existing folder for the new plan's files.
        pool: Where pictures are read.
        earlier: Ids of the plans that the dataset holds; rows with one of their pictures are left out, too.
        on_images: Called with the number of pictures since the last call.

    Raises:
        ConfigError: The digests of an earlier plan are gone.
        StorageError: As the destination or the sources.
    """
    earlier_plans = _full_plans(store, earlier)
    # Only the plan without duplicates answers the request.
    plan = store_plan(store, replace(planned, plan=planned.plan.model_copy(update={"request": None})))
    tasks = [(store.url, plan.plan_id, number) for number in range(plan.num_shards)]
    num_unread = 0
    seen = Count(pool, plan.num_samples, lambda count, num_bytes: on_images(count))
    for (_, _, number), count in run_calls(pool, _digest_shard, tasks, on_wait=seen.poll):
        num_unread += count
        seen.add(plan.num_rows(number))
    compared = [*earlier_plans, plan]
    starts = np.cumsum([0, *(each.num_samples for each in compared)])
    digests = _all_digests(store, compared, scratch)
    _retry_unread(store, earlier_plans, digests, pool)
    dropped, kept_instead = _later_copies(digests, int(starts[-2]))
    labels = np.concatenate(
        [
            hash_labels(shard_rows(store, each, n)["labels"].combine_chunks())
            for each in compared
            for n in range(each.num_shards)
        ]
    )
    conflicts = find_conflicts(digests, labels, int(starts[-2]), _NO_DIGEST)
    place = np.searchsorted(starts, kept_instead, "right") - 1
    kept_plans = pa.array([each.plan_id for each in compared]).take(pa.array(place))
    kept_rows = pa.array(kept_instead - starts[place])
    writer = PlanWriter(scratch, plan.config, planned.probe)
    listed = []
    first = 0
    for number in range(plan.num_shards):
        rows = shard_rows(store, plan, number)
        mask = np.ones(rows.num_rows, bool)
        here = slice(*np.searchsorted(dropped, [first, first + rows.num_rows]))
        mask[dropped[here] - first] = False
        writer.add(rows.filter(pa.array(mask)))
        copies = rows.filter(pa.array(~mask))
        listed.append(
            copies.append_column("same_as_plan", kept_plans[here]).append_column("same_as_row", kept_rows[here])
        )
        first += rows.num_rows
    writer.close()
    path = scratch / "duplicates.parquet"
    pq.write_table(pa.concat_tables(listed), path, compression="zstd", write_statistics=False)
    slim = plan.model_copy(
        update={
            "request": planned.plan.request,
            "slimmed_from": plan.plan_id,
            "num_samples": writer.num_rows,
            "num_duplicates": len(dropped),
            "num_unread": num_unread,
            "num_bytes": writer.num_bytes,
            "shard_ends": tuple(writer.shard_ends),
        }
    )
    slim = slim.model_copy(update={"plan_id": plan_digest(slim, writer.digests)})
    store_conflicts(store, slim.plan_id, conflicts, partial(_about, store, compared))
    return replace(planned, plan=slim, parts=tuple(writer.paths), duplicates=path)


def _about(store: Store, plans: Sequence[Plan], position: int) -> tuple[str, Sequence[int]]:
    """Return name and labels of a row; `position` counts through all plans."""
    for plan in plans:
        if position < plan.num_samples:
            number = int(np.searchsorted(plan.shard_ends, position, "right"))
            start = plan.shard_ends[number - 1] if number else 0
            row = shard_rows(store, plan, number).slice(position - start, 1).to_pylist()[0]
            return row["source"], row["labels"]
        position -= plan.num_samples
    raise AssertionError


def _digests_key(plan_id: str, number: int) -> str:
    return f"plans/{plan_id}/digests/{number:06d}.bin"


def _digest_shard(attempt: Attempt[tuple[str, str, int]]) -> int:
    """Store the digests of a shard's rows and return how many could not be read; an earlier run's are tried again."""
    url, plan_id, number = attempt.call
    store, plan = open_plan(url, plan_id)
    key = _digests_key(plan_id, number)
    rows = shard_rows(store, plan, number)
    digests = _split(store.read(key)) if exists(store, key) else [_NO_DIGEST] * rows.num_rows
    unread = [row for row, digest in enumerate(digests) if digest == _NO_DIGEST]
    fetched = fetch(
        rows.take(pa.array(unread, pa.int64())), plan.bases, plan.image_columns, plan.config.image.max_bytes
    )
    for row, (_, data) in zip(unread, fetched, strict=True):
        if not isinstance(data, BadImage):
            digests[row] = image_digest(data)
        report_done(1)
    try:
        put(store, key, b"".join(digests))
    except Conflict:  # a second attempt at this shard read the same images
        digests = _split(store.read(key))
    return digests.count(_NO_DIGEST)


def _split(body: bytes) -> list[bytes]:
    return [body[start : start + DIGEST_BYTES] for start in range(0, len(body), DIGEST_BYTES)]


def _full_plans(store: Store, plan_ids: Sequence[str]) -> list[Plan]:
    """Return the plans of all rows from which these leave out duplicates, and plans of retried rows as they are."""
    slim = (read_plan(store, plan_id) for plan_id in plan_ids)
    try:
        return [read_plan(store, plan.slimmed_from) if plan.slimmed_from else plan for plan in slim]
    except NotFound as error:
        raise ConfigError(
            f"{store.url} has no digests of its pictures any more, so new ones cannot be compared with them ({error}); "
            f"restore plans/, or pack old and new sources into another destination"
        ) from error


def _all_digests(store: Store, plans: Sequence[Plan], scratch: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return the digests of all rows in plan order, shape (rows, 16), from a file that is mapped and not held."""

    def read(shard: tuple[Plan, int]) -> bytes:
        try:
            return store.read(_digests_key(shard[0].plan_id, shard[1]))
        except NotFound:  # of retried rows, until they are compared for the first time
            return _NO_DIGEST * shard[0].num_rows(shard[1])

    path = scratch / "digests.bin"
    shards = ((plan, number) for plan in plans for number in range(plan.num_shards))
    with scratch_errors(scratch), path.open("wb") as file, ThreadPoolExecutor(_READ_THREADS) as threads:
        for body in threads.map(read, shards):
            file.write(body)
    return np.memmap(path, np.uint8, "r+", shape=(sum(plan.num_samples for plan in plans), DIGEST_BYTES))


def _retry_unread(
    store: Store, plans: Sequence[Plan], digests: np.ndarray[Any, np.dtype[np.uint8]], pool: Pool
) -> None:
    """Read the images again that could not be read when these plans were made, and put what is found in its place.

    Args:
        store: Holds the plans and their digests.
        plans: Earlier ones.
        digests: Of their rows first, shape (rows, 16).
        pool: Where images are read.
    """
    first, tasks, places = 0, [], {}
    for plan in plans:
        for number in range(plan.num_shards):
            last = first + plan.num_rows(number)
            if not digests[first:last].any(axis=1).all():
                tasks.append((store.url, plan.plan_id, number))
                places[plan.plan_id, number] = slice(first, last)
            first = last
    for (_, plan_id, number), _ in run_calls(pool, _digest_shard, tasks):
        body = store.read(_digests_key(plan_id, number))
        digests[places[plan_id, number]] = np.frombuffer(body, np.uint8).reshape(-1, DIGEST_BYTES)


def _later_copies(digests: np.ndarray[Any, np.dtype[np.uint8]], start: int) -> tuple[_Positions, _Positions]:
    """Return the rows to leave out, ascending and counted from `start`, and for each the position that is kept instead.

    Args:
        digests: Shape (rows, 16).
        start: Rows before it are packed already.
    """
    dropped, kept = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for number in range(_NUM_PASSES):
        positions = np.flatnonzero(digests[:, 0] % _NUM_PASSES == number)
        mine = np.ascontiguousarray(digests[positions]).view(f"S{DIGEST_BYTES}")[:, 0]
        # `unique` is stable: the first of equal digests is the one with the lowest position.
        _, firsts, inverse = np.unique(mine, return_index=True, return_inverse=True)
        first_positions = positions[firsts][inverse]
        later = (first_positions != positions) & (positions >= start) & (mine != _NO_DIGEST)
        dropped.append(positions[later] - start)
        kept.append(first_positions[later])
    order = np.argsort(np.concatenate(dropped))
    return np.concatenate(dropped)[order], np.concatenate(kept)[order]
