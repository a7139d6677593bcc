"""The audit from two datasets to its tables: all pairs, the states of the pictures, canaries."""

from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from cluster.audit import canaries as canary_source
from cluster.audit import join, verify
from cluster.audit.canaries import Canary, plant
from cluster.audit.join import candidates
from cluster.audit.search import find_pairs
from cluster.audit.sets import Sides, content_digest, index_of, pinned
from cluster.audit.stored import AuditJob, code_digest, key_of, remembered
from cluster.audit.tables import AuditConfig, AuditTables, split_refused, states, unchecked_addresses
from cluster.audit.verify import verify_pair
from pipeline.dataset import Address
from pipeline.fingerprint import fingerprint
from pipeline.image import decode

_CANARY_SHARD = -1
_CANARY_SCHEMA = pa.schema(
    [("transform", pa.string()), ("down_shard", pa.int32()), ("down_row", pa.int32()), ("found", pa.bool_()),
     ("distance", pa.int16()), ("correlation", pa.float32())]
)  # fmt: skip


def sides_of(config: AuditConfig) -> Sides:
    """Pins the versions of both sets. Raises BitError as pipeline.foreign.open_any."""
    return Sides(pinned(config.upstream), pinned(config.downstream))


def audit(config: AuditConfig, sides: Sides, job: AuditJob) -> AuditTables:
    """Finds the near-duplicates between two datasets; run again after any death, it goes on.

    Args:
        config: See AuditConfig.
        sides: As `sides_of` gives them.
        job: Where it works.

    Raises:
        BitError: As search.find_pairs.
    """
    found = find_pairs(config, sides, job)
    pairs, refused = split_refused(found.pairs)
    untold = unchecked_addresses(found.unchecked, "downstream")
    untold |= set(zip(found.hubs["shard"].to_pylist(), found.hubs["row"].to_pylist(), strict=True))
    job.reporting.say("searching for planted canaries")
    key = key_of("canaries", content_digest(sides.downstream), config.radius, config.canaries_each, config.seed,
                 code_digest(canary_source, join, verify))  # fmt: skip
    return AuditTables(
        found=found,
        pairs=pairs,
        refused=refused,
        downstream=states(index_of(sides.down), pairs, untold),
        canaries=remembered(job.work, key, partial(_measure_canaries, sides, config)),
    )


def _measure_canaries(sides: Sides, config: AuditConfig) -> pa.Table:
    """Sends the canaries through the join and the verification of any upstream picture; they have no rivals."""
    downstream, index = sides.downstream, index_of(sides.down)
    canaries = plant(downstream, config.canaries_each, config.seed)
    prints = [fingerprint(decode(canary.image)) for canary in canaries]
    rows = np.arange(len(canaries), dtype=np.int32)
    codes = pa.array([code for code, _ in prints], pa.binary(32))
    planted = pa.table(
        [pa.array(np.full(len(rows), _CANARY_SHARD, np.int32)), pa.array(rows), codes], names=["shard", "row", "code"]
    )
    measured: dict[int, dict[str, Any]] = {}
    for pair in candidates(planted, index.select(["shard", "row", "code"]), config.radius).to_pylist():
        number, origin = pair["up_row"], Address(pair["down_shard"], pair["down_row"])
        if origin == canaries[number].origin:
            original = downstream.read_image(origin)
            quality = min(prints[number][1], downstream.sample(origin)["quality"])
            measured[number] = _verdict(canaries[number], original, pair, quality)
    missed = {"found": False, "distance": None, "correlation": None}
    table = [
        {"transform": canary.transform, "down_shard": canary.origin.shard, "down_row": canary.origin.row}
        | measured.get(number, missed)
        for number, canary in enumerate(canaries)
    ]
    return pa.Table.from_pylist(table, schema=_CANARY_SCHEMA)


def _verdict(canary: Canary, original: bytes, pair: dict[str, Any], quality: int) -> dict[str, Any]:
    verdict = verify_pair(canary.image, original, decode(canary.image), decode(original), pair["element"], quality)
    return {
        "found": verdict.evidence.is_duplicate,
        "distance": pair["distance"],
        "correlation": verdict.correlation,
    }
