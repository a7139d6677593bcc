"""From two datasets to all their pairs: join, hub cap, verification, choice among competing matches."""

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from cluster.audit.base.sets import Sides, check_comparable, check_tar
from cluster.audit.base.stored_tasks import AuditJob
from cluster.audit.base.tables import ADDRESS_COLUMNS, SHARD_STATE_SCHEMA, UNCHECKED_SCHEMA, AuditConfig, Found
from cluster.audit.result.best_match import keep_best_matches
from cluster.audit.search.join_tasks import join_shards
from cluster.audit.search.matches import cap_matches
from cluster.audit.verify.verify_tasks import verify_matches
from pipeline.dataset.dataset import Dataset


def find_pairs(config: AuditConfig, sides: Sides, job: AuditJob) -> Found:
    """Find every pair of an audit and compare its pictures.

    Raises:
        ConfigError: The descriptor versions differ.
        NotFound: A shard is missing.
        CorruptShard: A shard changed since it was fingerprinted.
        BitError: Storage failed.
    """
    upstream, downstream = sides.upstream, sides.downstream
    check_comparable(upstream, downstream)
    for shard in range(len(downstream.shards)):
        check_tar(downstream, shard)
    matches, shards, unreadable = join_shards(config, sides, job)
    kept, hubs, num_candidates = cap_matches(matches, config.most_matches, config.radius, is_within=sides.is_within)
    pairs, more = verify_matches(kept, config.radius, sides, job)
    pairs = pairs.sort_by([(name, "ascending") for name in ADDRESS_COLUMNS])
    unchecked = [*_rejects("downstream", downstream), *_rejects("upstream", upstream), *_quarantined(shards),
                 *unreadable, *more]  # fmt: skip
    return Found(
        pairs=keep_best_matches(pairs, is_within=sides.is_within).append_column("own_evidence", pairs["evidence"]),
        hubs=hubs,
        shards=pa.Table.from_pylist(shards, schema=SHARD_STATE_SCHEMA),
        unchecked=pa.Table.from_pylist(unchecked, schema=UNCHECKED_SCHEMA),
        num_candidates=num_candidates,
    )


def _rejects(side: str, dataset: Dataset) -> Iterator[dict[str, Any]]:
    for row in dataset.rejects.select(["source", "reason", "detail"]).to_pylist():
        yield {"side": side, "shard": None, "row": None, "num_samples": 1} | row


def _quarantined(shards: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for row in shards:
        if row["state"] == "quarantined":
            yield {"side": "upstream", "shard": row["shard"], "row": None, "source": row["path"],
                   "num_samples": row["num_samples"], "reason": "quarantined", "detail": row["detail"]}  # fmt: skip
