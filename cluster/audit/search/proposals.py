"""Pairs by vector within one set: a pair is a candidate when either of its pictures proposes it, as stored tasks.

Whether a picture stands out for another one depends on that one's other neighbours: the crop that stands out for its
original may be one of many alike to the crop. What a picture proposes takes its neighbours in the whole set, so all
proposals come first, and the join of a shard takes those that its pictures made or were named in.
"""

from dataclasses import dataclass
from functools import lru_cache, partial

import pyarrow as pa
import pyarrow.compute as pc

from cluster.audit.base.sets import Pinned, content_digest, open_pinned
from cluster.audit.base.stored_tasks import AuditJob, Quarantined, key_of, load_or_compute, stored_results
from cluster.audit.base.tables import ADDRESS_COLUMNS
from cluster.audit.search.embedding.embedding import (
    COSINE_SCHEMA,
    EMBEDDING_VERSION,
    ViewVectors,
    each_once,
    view_candidates,
)
from cluster.audit.search.embedding.models import Nearness
from cluster.audit.search.features import DownFeatures, FeatureTable, down_vectors, stored_vectors
from cluster.audit.search.join import JOIN_VERSION
from pipeline.dataset.tables import read_table
from pipeline.store.url import open_store

_TURNED = (*ADDRESS_COLUMNS[2:], *ADDRESS_COLUMNS[:2])


@dataclass(frozen=True)
class Proposals:
    """Where all proposals are stored.

    Attributes:
        work: URL of the work folder.
        keys: Of the proposals.
    """

    work: str
    keys: tuple[str, ...]


@dataclass(frozen=True)
class ProposalTask:
    """What the pictures of one shard propose, or those of a part of it.

    Attributes:
        own: Their vectors.
        down: Of the whole set.
    """

    side: Pinned
    own: FeatureTable
    down: DownFeatures
    nearness: Nearness
    result_key: str

    def __str__(self) -> str:
        return f"proposals of pictures {self.own.first_row} and on of shard {self.own.shard} of {self.side.url}"


def compute_proposals(
    side: Pinned, down: DownFeatures, nearness: Nearness, job: AuditJob
) -> tuple[Proposals, dict[int, str]]:
    """Compute the proposals that are missing; return where they are, and the reason of each quarantined shard."""
    dataset = open_pinned(side)
    shared = (content_digest(dataset), down.vectors, nearness.model_dump(), EMBEDDING_VERSION, JOIN_VERSION)
    tasks = [ProposalTask(side, own, down, nearness, key_of("proposed", own, *shared)) for own in down.vectors]
    quarantined = {}
    with job.reporting.progress("comparing vectors", dataset.version.num_samples, "pictures") as advance:
        for task, result in stored_results(job, propose, tasks, lambda task: advance(task.own.num_rows, 0)):
            if isinstance(result, Quarantined):
                quarantined[task.own.shard] = result.reason
    keys = tuple(task.result_key for task in tasks if task.own.shard not in quarantined)
    return Proposals(job.work.url, keys), quarantined


def propose(task: ProposalTask) -> pa.Table:
    """Return the pairs that the pictures of a task propose, a table of COSINE_SCHEMA with them upstream."""
    return load_or_compute(open_store(task.down.work), task.result_key, partial(_near, task))


def _near(task: ProposalTask) -> pa.Table:
    own = ViewVectors.of(stored_vectors(task.down.work, task.own))
    return view_candidates(own, down_vectors(task.down), task.nearness, is_within=True)


def proposed_either_way(proposals: Proposals, shard: int) -> pa.Table:
    """Return the pairs that a picture of the shard proposed, or another one with it, as `closed` does.

    The picture of the shard is upstream.
    """
    pairs = _both_ways(proposals)
    return pairs.filter(pc.equal(pairs["up_shard"], shard))


@lru_cache(maxsize=1)
def _both_ways(proposals: Proposals) -> pa.Table:
    """Return the proposals of all shards from either picture, once per process."""
    work = open_store(proposals.work)
    return closed(pa.concat_tables([COSINE_SCHEMA.empty_table(), *(read_table(work, key) for key in proposals.keys)]))


def closed(pairs: pa.Table) -> pa.Table:
    """Return pairs of one set from both of their pictures, at the larger cosine, sorted by addresses."""
    turned = pairs.select([*_TURNED, "cosine"]).rename_columns(COSINE_SCHEMA.names)
    return each_once(pa.concat_tables([pairs, turned]))
