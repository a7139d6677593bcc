"""The audit from two datasets to its tables: all pairs, the states of the pictures, canaries."""

from functools import partial

import numpy as np
import pyarrow as pa

from cluster.audit.base.sets import Sides, content_digest, index_of, pinned
from cluster.audit.base.stored_tasks import AuditJob, code_digest, key_of, stored_or_made
from cluster.audit.base.tables import AuditConfig, AuditTables, split_refused, unchecked_addresses
from cluster.audit.find_pairs import find_pairs
from cluster.audit.result import canaries as canary_source
from cluster.audit.result.canaries import plant
from cluster.audit.result.states import states
from cluster.audit.search import join, variants
from cluster.audit.search.embedding.embedding import COSINE_FROM
from cluster.audit.search.features import embedder_of
from cluster.audit.search.join import candidates
from cluster.audit.search.join_tasks import codes_index, down_features
from cluster.audit.verify import affine, align
from cluster.audit.verify import evidence as verify
from cluster.audit.verify.evidence import verify_pair
from pipeline.dataset.dataset import Address
from pipeline.image.decode import Pixels, decode
from pipeline.image.fingerprint import fingerprint_of_image

_CANARY_SHARD = -1
_CANARY_SCHEMA = pa.schema(
    [("transform", pa.string()), ("down_shard", pa.int32()), ("down_row", pa.int32()), ("found", pa.bool_()),
     ("distance", pa.int16()), ("correlation", pa.float32())]
)  # fmt: skip


def sides_of(config: AuditConfig) -> Sides:
    """Pin the versions of both sets. Raises BitError as pipeline.packing.foreign_tars.open_any.open_any."""
    return Sides(pinned(config.upstream), pinned(config.downstream))


def audit(config: AuditConfig, sides: Sides, job: AuditJob) -> AuditTables:
    """Find the near-duplicates between two datasets; run again after any death, it goes on.

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
                 config.embedding, code_digest(canary_source, join, variants, affine, align, verify))  # fmt: skip
    return AuditTables(
        found=found,
        pairs=pairs,
        refused=refused,
        downstream=states(index_of(sides.down), pairs, untold),
        canaries=stored_or_made(job.work, key, partial(_measure_canaries, sides, config, job)),
    )


def _measure_canaries(sides: Sides, config: AuditConfig, job: AuditJob) -> pa.Table:
    """Send the canaries through the searches and the verification of any upstream picture; they have no rivals."""
    canaries = plant(sides.downstream, config.canaries_each, config.seed)
    pictures = [decode(canary.image) for canary in canaries]
    prints = [fingerprint_of_image(canary.image) for canary in canaries]
    rows = np.arange(len(canaries), dtype=np.int32)
    codes = pa.array([code for code, _ in prints], pa.binary(32))
    planted = pa.table(
        [pa.array(np.full(len(rows), _CANARY_SHARD, np.int32)), pa.array(rows), codes], names=["shard", "row", "code"]
    )
    index = codes_index(sides.down, config.radius, down_features(config, sides, job))
    hashed = {
        pair["up_row"]: pair["distance"]
        for pair in candidates(planted, index, config.radius).to_pylist()
        if Address(pair["down_shard"], pair["down_row"]) == canaries[pair["up_row"]].origin
    }
    table = []
    for number, canary in enumerate(canaries):
        original = sides.downstream.read_image(canary.origin)
        row = {"transform": canary.transform, "down_shard": canary.origin.shard, "down_row": canary.origin.row,
               "found": False, "distance": hashed.get(number), "correlation": None}  # fmt: skip
        if number in hashed or _embedded_alike(config.embedding, pictures[number], decode(original)):
            quality = min(prints[number][1], sides.downstream.sample(canary.origin)["quality"])
            verdict = verify_pair(
                canary.image, original, pictures[number], decode(original), quality, distance=hashed.get(number)
            )
            row |= {"found": verdict.evidence.is_duplicate, "correlation": verdict.correlation}
        table.append(row)
    return pa.Table.from_pylist(table, schema=_CANARY_SCHEMA)


def _embedded_alike(model: str | None, one: Pixels, other: Pixels) -> bool:
    """Return whether the embedding, if there is one, makes two pictures candidates."""
    if model is None:
        return False
    first, second = embedder_of(model).embed([one, other])
    return float(first @ second) >= COSINE_FROM
