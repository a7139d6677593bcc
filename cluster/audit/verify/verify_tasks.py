"""The verification: the pictures of every candidate pair are read and compared, as tasks with stored results."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import pyarrow as pa

from cluster.audit.base.sets import Pinned, Sides, content_digest, open_pinned, read_picture
from cluster.audit.base.stored_tasks import (
    AuditJob,
    Quarantined,
    compiled_digest,
    key_of,
    load_or_compute,
    stored_results,
)
from cluster.audit.base.tables import CANDIDATE_SCHEMA, PAIR_SCHEMA, UNREADABLE, unreadable_row
from cluster.audit.verify.evidence import EVIDENCE_VERSION, verify_pair
from cluster.audit.verify.prepare import Prepared
from pipeline.base.errors import BadImage
from pipeline.dataset.dataset import Address, Dataset
from pipeline.image.decode import decode
from pipeline.store.url import open_store

_PAIRS_PER_TASK = 256  # 1 s for tiny pictures and 5 s for large ones; storing a result may take 0.1 s
_NUM_PREPARED = 256  # pictures in memory, 0.2 to 0.4 MB each
_COMPARED_SCHEMA = pa.schema([*list(PAIR_SCHEMA)[1:], pa.field("side", pa.string()), pa.field("detail", pa.string())])


@dataclass(frozen=True)
class VerifyTask:
    """Some candidates of one upstream shard.

    Attributes:
        pairs: (up_row, down_shard, down_row, distance, element) of each.
        radius: Pairs up to this distance are of the hash search; an embedding proposed the others.
        work: URL of the work folder.
    """

    sides: Sides
    shard: int
    pairs: tuple[tuple[int, int, int, int, int], ...]
    radius: int
    work: str
    result_key: str

    def __str__(self) -> str:
        return f"verification of {len(self.pairs)} pairs of shard {self.shard} of {self.sides.up.url}"


def verify_matches(
    matches: pa.Table, radius: int, sides: Sides, job: AuditJob
) -> tuple[pa.Table, list[dict[str, Any]]]:
    """Compare the pictures of all matches that digests do not prove.

    Args:
        matches: As matches.cap_matches returns them.
        radius: Of the hash search.
        sides: Both sets.
        job: Where the tasks run.

    Returns:
        All pairs with their evidence, a table of PAIR_SCHEMA, and rows of UNCHECKED_SCHEMA for pictures that could not
        be compared.
    """
    rows = matches.to_pylist()
    pairs = [_proven_pair(row, sides) for row in rows if row["known"]]
    tasks = list(_verify_tasks([row for row in rows if not row["known"]], radius, sides, job))
    unreadable = []
    with job.reporting.progress("verifying", sum(len(task.pairs) for task in tasks), "pairs") as advance:
        results = stored_results(job, verify_pairs, tasks, lambda task: advance(len(task.pairs), 0))
        for task, result in sorted(results, key=lambda done: (done[0].shard, done[0].pairs)):
            if isinstance(result, Quarantined):
                unreadable += [unreadable_row("downstream", pair[1], pair[2], result.reason) for pair in task.pairs]
                continue
            for row in result.to_pylist():
                side, detail = row.pop("side"), row.pop("detail")
                if row["evidence"] == UNREADABLE:
                    unreadable.append(unreadable_row("downstream", row["down_shard"], row["down_row"], detail))
                    if side == "upstream":
                        unreadable.append(unreadable_row("upstream", task.shard, row["up_row"], detail))
                else:
                    pairs.append({"up_shard": task.shard} | row)
    return pa.Table.from_pylist(pairs, schema=PAIR_SCHEMA), unreadable


def _proven_pair(row: dict[str, Any], sides: Sides) -> dict[str, Any]:
    quality = sides.downstream.sample(Address(row["down_shard"], row["down_row"]))["quality"]
    named = {name: row[name] for name in CANDIDATE_SCHEMA.names}
    return named | {"quality": quality, "correlation": 1.0, "evidence": row["known"]}


def _verify_tasks(rows: Sequence[dict[str, Any]], radius: int, sides: Sides, job: AuditJob) -> Iterator[VerifyTask]:
    shared = (content_digest(sides.downstream), EVIDENCE_VERSION, compiled_digest(), radius)
    by_shard: dict[int, list[tuple[int, int, int, int, int]]] = defaultdict(list)
    for row in rows:
        pair = (row["up_row"], row["down_shard"], row["down_row"], row["distance"], row["element"])
        by_shard[row["up_shard"]].append(pair)
    for shard, pairs in sorted(by_shard.items()):
        pairs.sort()
        for start in range(0, len(pairs), _PAIRS_PER_TASK):
            part = tuple(pairs[start : start + _PAIRS_PER_TASK])
            key = key_of("verified", sides.upstream.shards[shard]["blake3"], part, *shared)
            yield VerifyTask(sides, shard, part, radius, job.work.url, key)


def verify_pairs(task: VerifyTask) -> pa.Table:
    """Compare the pictures of the pairs; return a table of _COMPARED_SCHEMA."""
    return load_or_compute(open_store(task.work), task.result_key, partial(_compare_pairs, task))


def _compare_pairs(task: VerifyTask) -> pa.Table:
    upstream, downstream = task.sides.upstream, task.sides.downstream
    rows = []
    for up_row, down_shard, down_row, distance, element in task.pairs:
        up, down = Address(task.shard, up_row), Address(down_shard, down_row)
        quality = min(_quality(upstream, up), _quality(downstream, down))
        row = {"up_row": up_row, "down_shard": down_shard, "down_row": down_row, "distance": distance,
               "element": element, "quality": quality}  # fmt: skip
        rows.append(row | _compare(task.sides, up, down, quality, distance if distance <= task.radius else None))
    return pa.Table.from_pylist(rows, schema=_COMPARED_SCHEMA)


def _quality(dataset: Dataset, place: Address) -> int:
    quality: int = dataset.samples(place.shard)["quality"][place.row].as_py()
    return quality


@lru_cache(maxsize=_NUM_PREPARED)
def _prepared(side: Pinned, place: Address) -> tuple[bytes, Prepared] | str:
    """Read and prepare a picture, once for pairs in a row; return its bytes, too, or why it is unreadable."""
    data = read_picture(open_pinned(side), place)
    try:
        return data, Prepared(decode(data))
    except BadImage as error:
        return str(error)


def _compare(sides: Sides, up: Address, down: Address, quality: int, distance: int | None) -> dict[str, Any]:
    one, other = _prepared(sides.up, up), _prepared(sides.down, down)
    if isinstance(one, str) or isinstance(other, str):
        side, detail = ("upstream", one) if isinstance(one, str) else ("downstream", other)
        return {"correlation": None, "evidence": UNREADABLE, "side": side, "detail": detail}
    found = verify_pair(one[0], other[0], one[1], other[1], quality, distance=distance)
    columns = {"correlation": found.correlation, "evidence": str(found.evidence), "side": None, "detail": None}
    return columns | ({"element": found.alignment.element} if found.alignment else {})
