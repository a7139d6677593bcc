"""The join: each upstream shard against all downstream codes and digests, as a task with a stored result.

The join of a shard depends on the shard, the downstream fingerprints and the settings, and on nothing else: only a
changed shard is joined again, and a new test set costs a join but no decoding.
"""

import itertools
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
import pyarrow as pa

from cluster.audit.base.sets import Pinned, Sides, check_tar, content_digest, samples_of
from cluster.audit.base.stored_tasks import (
    AuditJob,
    Quarantined,
    compiled_digest,
    key_of,
    load_or_compute,
    parts_of,
    shard_results,
)
from cluster.audit.base.tables import (
    CANDIDATE_SCHEMA,
    AuditConfig,
    Evidence,
)
from cluster.audit.search.crops import num_crops
from cluster.audit.search.embedding.embedding import EMBEDDING_VERSION, ViewVectors, view_candidates
from cluster.audit.search.embedding.models import Nearness
from cluster.audit.search.features import (
    INSETS,
    DownFeatures,
    FeatureTable,
    describe_sides,
    down_vectors,
    embedder_of,
    numbered,
    stored_insets,
    stored_vectors,
)
from cluster.audit.search.join import (
    CROPS_COLUMN,
    JOIN_VERSION,
    VARIANTS_COLUMN,
    DownstreamIndex,
    candidates,
    closest,
    codes_of,
    index_crops,
    index_downstream,
    index_wholes,
    is_itself,
)
from cluster.audit.search.matches import DOWN_ADDRESS, MATCH_SCHEMA, merged_matches, shard_matches
from cluster.audit.search.proposals import Proposals, compute_proposals, proposed_either_way
from pipeline.dataset.schema import PIXELS_COLUMN
from pipeline.dataset.tables import read_table
from pipeline.image.fingerprint import DESCRIPTOR_VERSION, dihedral_codes
from pipeline.store.url import open_store

_VECTOR_SCHEMA = pa.schema([*CANDIDATE_SCHEMA, pa.field("cosine", pa.float32())])
# On one core (`benchmarks/audit_cost.py`): crops compared with one code, and pictures of 500 px read for their insets.
_CROPS_PER_SECOND, _INSETS_PER_SECOND = 3.8e9, 130
_PICTURES_PER_INDEX = 1024  # 1.2 M codes, 84 MB; a choice
_TIE_BYTES = 8  # of a digest
_PAIRS_PER_STEP = 1 << 16  # whose eight turned codes are in memory, 16 MiB; a choice


@dataclass(frozen=True)
class JoinTask:
    """One upstream shard, or a part of it, against all downstream codes.

    Attributes:
        insets: Codes of the insets of its pictures; empty where these are not asked for.
        vectors: Their own vectors; empty without an embedding.
        nearness: Which pairs are candidates by vector; None without an embedding.
        proposals: Where these pairs are stored within one set; None between two sets, and without an embedding.
        rows: Pictures of the shard that are compared.
        parts: Tasks whose matches make up those of the shard; none where it is joined at once.
    """

    sides: Sides
    shard: int
    radius: int
    most_matches: int
    down: DownFeatures
    insets: tuple[FeatureTable, ...]
    vectors: tuple[FeatureTable, ...]
    nearness: Nearness | None
    proposals: Proposals | None
    result_key: str
    rows: range
    parts: tuple["JoinTask", ...] = ()

    def __str__(self) -> str:
        return f"join of pictures {self.rows.start} to {self.rows.stop} of shard {self.shard} of {self.sides.up.url}"


@lru_cache(maxsize=1)
def codes_index(side: Pinned, radius: int, down: DownFeatures) -> DownstreamIndex:
    """Build the index of the downstream codes and their variants, once per process."""
    table = samples_of(side).select(["shard", "row", "code"])
    if down.variants:
        work = open_store(down.work)
        parts = [read_table(work, each.key)[VARIANTS_COLUMN] for each in down.variants]
        chunks = [chunk for part in parts for chunk in part.chunks]
        table = table.append_column(VARIANTS_COLUMN, pa.chunked_array(chunks))
    return index_downstream(table, radius)


@lru_cache(maxsize=1)
def wholes_index(side: Pinned, radius: int) -> DownstreamIndex:
    """Build the index of the downstream pictures as they are, once per process."""
    return index_wholes(samples_of(side), radius)


def crop_indexes(down: DownFeatures, radius: int) -> Iterator[DownstreamIndex]:
    """Build the indexes of the crops of the downstream pictures one after the other: all at once may be gigabytes."""
    work = open_store(down.work)
    for each in down.crops:
        table = numbered(each.shard, read_table(work, each.key).select([CROPS_COLUMN]), each.first_row)
        for start in range(0, table.num_rows, _PICTURES_PER_INDEX):
            yield index_crops(table.slice(start, _PICTURES_PER_INDEX), radius)


@lru_cache(maxsize=2)
def _places(side: Pinned, column: str) -> dict[bytes, list[int]]:
    """Return the places of each digest among the samples."""
    places: dict[bytes, list[int]] = defaultdict(list)
    for place, digest in enumerate(samples_of(side)[column].to_pylist()):
        places[digest].append(place)
    return places


def join_shards(
    config: AuditConfig, sides: Sides, job: AuditJob
) -> tuple[pa.Table, list[dict[str, Any]], list[dict[str, Any]]]:
    """Join every upstream shard.

    Returns:
        All matches with `up_shard` in front, the state of every upstream shard, and rows of UNCHECKED_SCHEMA for
        pictures that could not be read for an embedding.
    """
    _tell_cost(config, sides, job)
    down, quarantined, own, unreadable = describe_sides(config, sides, job)
    nearness = embedder_of(config.embedding).nearness if config.embedding else None
    proposals = None
    if nearness and sides.is_within:
        proposals, failed = compute_proposals(sides.up, down, nearness, job)
        quarantined |= failed
    tasks, rows = [], []
    for row in sides.upstream.shards:
        rows.append({name: row[name] for name in ("shard", "path", "blake3", "num_samples")})
        if row["shard"] in quarantined:
            rows[-1] |= {"state": "quarantined", "num_candidates": 0, "detail": quarantined[row["shard"]]}
            continue
        insets, vectors = (tuple(own[kind, row["shard"]]) for kind in (INSETS, config.embedding))
        place = row["shard"] if sides.is_within else 0  # within a set, pictures are no matches of themselves
        shared = ("joined", row["blake3"], row["sidecar_sha256"], place, content_digest(sides.downstream),
                  config.radius, config.most_matches, sides.is_within, down.variants, down.crops, down.vectors,
                  [each.key for each in (*vectors, *insets)], nearness and nearness.model_dump(),
                  proposals and proposals.keys, JOIN_VERSION, EMBEDDING_VERSION, DESCRIPTOR_VERSION,
                  compiled_digest())  # fmt: skip
        whole = JoinTask(
            sides, row["shard"], config.radius, config.most_matches, down, insets, vectors, nearness, proposals,
            key_of(*shared), range(row["num_samples"]),
        )  # fmt: skip
        parts = parts_of(row["num_samples"], len(sides.upstream.shards))
        tasks.append(replace(whole, parts=tuple(_part(whole, rows, shared) for rows in parts)))
    matches = {}
    with job.reporting.progress("joining", sum(len(task.rows) for task in tasks), "pictures") as advance:
        for task, result in shard_results(job, join_shard, tasks, advance):
            if isinstance(result, Quarantined):
                rows[task.shard] |= {"state": "quarantined", "num_candidates": 0, "detail": result.reason}
                continue
            matches[task.shard] = result
            firsts = result.group_by(list(DOWN_ADDRESS)).aggregate([("num_matches", "max")])
            num_candidates = pa.compute.sum(firsts["num_matches_max"], min_count=0).as_py()
            rows[task.shard] |= {"state": "joined", "num_candidates": num_candidates, "detail": ""}
    tables = [
        matches[shard].add_column(0, "up_shard", pa.array(np.full(matches[shard].num_rows, shard, np.int32)))
        for shard in sorted(matches)
    ]
    empty = pa.schema([CANDIDATE_SCHEMA.field("up_shard"), *MATCH_SCHEMA]).empty_table()
    return pa.concat_tables([empty, *tables]), rows, unreadable


def _part(whole: JoinTask, rows: range, shared: tuple[Any, ...]) -> JoinTask:
    """Return the task on some pictures of a shard; the key of its result is made of these parts and the rows."""
    insets, vectors = (
        tuple(each for each in tables if each.first_row in rows) for tables in (whole.insets, whole.vectors)
    )
    return replace(whole, rows=rows, insets=insets, vectors=vectors, result_key=key_of(*shared, rows.start, rows.stop))


def _tell_cost(config: AuditConfig, sides: Sides, job: AuditJob) -> None:
    """Say what crops and insets take, if that is long."""
    num_up, num_down = (side.version.num_samples for side in (sides.upstream, sides.downstream))
    crop_hours = num_up * num_down * num_crops() / _CROPS_PER_SECOND / 3600
    if config.crops and crop_hours > 1:
        job.reporting.say(
            f"comparing {num_up:,} pictures with {num_crops():,} crops of each of {num_down:,} takes about "
            f"{crop_hours:,.0f} core hours; --no-crops leaves that out, and misses crops and shifted frames"
        )
    inset_hours = num_up / _INSETS_PER_SECOND / 3600
    if config.insets and inset_hours > 1:
        job.reporting.say(
            f"reading {num_up:,} upstream pictures for their insets takes about {inset_hours:,.0f} core hours, once; "
            f"--no-insets leaves that out, and misses parts of collages and screenshots"
        )


def candidates_by_code(
    samples: pa.Table, insets: pa.Table | None, side: Pinned, radius: int, down: DownFeatures
) -> pa.Table:
    """Return the candidates by any code of a downstream picture, as `join.candidates`.

    Args:
        samples: Upstream pictures: shard, row, code.
        insets: Their insets, of which a picture may have several; None where these are not asked for.
        side: The downstream pictures.
        radius: Largest distance, inclusive, in bits.
        down: Their features.
    """
    indexes = itertools.chain([codes_index(side, radius, down)], crop_indexes(down, radius))
    found = (candidates(samples, index, radius) for index in indexes)
    by_inset = [] if insets is None else [candidates(insets, wholes_index(side, radius), radius)]
    return closest(itertools.chain(found, by_inset))


def join_shard(task: JoinTask) -> pa.Table:
    """Return the closest matches of the pictures of a task, a table of MATCH_SCHEMA."""
    return load_or_compute(open_store(task.down.work), task.result_key, partial(_matches, task))


def _matches(task: JoinTask) -> pa.Table:
    if task.parts:
        return merged_matches([join_shard(part) for part in task.parts], task.most_matches, task.radius)
    upstream, down_samples = task.sides.upstream, samples_of(task.sides.down)
    check_tar(upstream, task.shard)
    samples = upstream.samples(task.shard)
    codes = numbered(task.shard, _own(task, samples).select(["code"]), task.rows.start)
    insets = None
    if task.insets:
        insets = pa.concat_tables([stored_insets(task.down.work, each) for each in task.insets])
    by_code = candidates_by_code(codes, insets, task.sides.down, task.radius, task.down)
    by_vector = _by_vector(task, samples, down_samples)
    known = _equal_digests(task, samples, down_samples)
    if task.sides.is_within:
        by_code = by_code.filter(pa.array(~is_itself(by_code)))
    ties = [int.from_bytes(digest[:_TIE_BYTES], signed=True) for digest in samples["digest"].to_pylist()]
    return shard_matches(by_code, by_vector, known, ties, task.most_matches)


def _own(task: JoinTask, table: pa.Table) -> pa.Table:
    """Return the rows of the task of a table of its shard."""
    return table.slice(task.rows.start, len(task.rows))


def _by_vector(task: JoinTask, samples: pa.Table, down_samples: pa.Table) -> pa.Table:
    """Return the pairs with close vectors, as shard_matches takes them."""
    if task.nearness is None:
        return _VECTOR_SCHEMA.empty_table()
    if task.proposals:
        pairs = proposed_either_way(task.proposals, task.shard)
        rows = pairs["up_row"].to_numpy()
        pairs = pairs.filter(pa.array((task.rows.start <= rows) & (rows < task.rows.stop)))
    else:
        own = ViewVectors.joined([ViewVectors.of(stored_vectors(task.down.work, each)) for each in task.vectors])
        pairs = view_candidates(own, down_vectors(task.down), task.nearness)
    places = {
        address: place
        for place, address in enumerate(
            zip(down_samples["shard"].to_pylist(), down_samples["row"].to_pylist(), strict=True)
        )
    }
    found = pairs.to_pylist()
    up_codes, down_codes = codes_of(samples), codes_of(down_samples)
    for start in range(0, len(found), _PAIRS_PER_STEP):
        step = found[start : start + _PAIRS_PER_STEP]
        turned = dihedral_codes(down_codes[[places[row["down_shard"], row["down_row"]] for row in step]])
        bits = np.bitwise_count(turned ^ up_codes[[row["up_row"] for row in step]]).sum(axis=2, dtype=np.int64)
        for row, distances in zip(step, bits.T, strict=True):
            row |= {"distance": int(distances.min()), "element": int(distances.argmin())}
    return pa.Table.from_pylist(found, schema=_VECTOR_SCHEMA)


def _equal_digests(task: JoinTask, samples: pa.Table, down_samples: pa.Table) -> dict[tuple[int, int, int], str]:
    """Return the pairs of equal bytes or pixels with their evidence; no number of look-alikes may crowd them out.

    Within one set each copy is paired with the first one only, from either of them.
    """
    found: dict[tuple[int, int, int], str] = {}
    for column, evidence in (("digest", Evidence.SAME_BYTES), (PIXELS_COLUMN, Evidence.SAME_PIXELS)):
        if column not in samples.column_names or column not in down_samples.column_names:
            continue
        places = _places(task.sides.down, column)
        for up_row, digest in enumerate(_own(task, samples)[column].to_pylist(), task.rows.start):
            copies = [
                (down_samples["shard"][place].as_py(), down_samples["row"][place].as_py())
                for place in places.get(digest, ())
            ]
            if task.sides.is_within and copies:
                own = (task.shard, up_row)
                copies = copies[1:] if copies[0] == own else copies[:1]
            for copy in copies:
                found.setdefault((up_row, *copy), str(evidence))
    return found
