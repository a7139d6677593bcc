"""Canaries are searched and verified like any upstream pictures, in a task of its own."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa

from cluster.audit.base.sets import Sides, content_digest
from cluster.audit.base.stored_tasks import (
    AuditJob,
    Quarantined,
    compiled_digest,
    key_of,
    load_or_compute,
    stored_results,
)
from cluster.audit.base.tables import CANARY_SCHEMA, AuditConfig
from cluster.audit.result.canaries import CANARIES_VERSION, plant
from cluster.audit.search.crops import CROPS_VERSION
from cluster.audit.search.embedding.embedding import EMBEDDING_VERSION, ViewVectors, view_candidates
from cluster.audit.search.features import (
    DownFeatures,
    down_features,
    down_vectors,
    embedder_of,
    inset_rows,
    inset_table,
    numbered,
    vector_rows,
    vectors_table,
)
from cluster.audit.search.insets import INSETS_VERSION
from cluster.audit.search.join import JOIN_VERSION
from cluster.audit.search.join_tasks import candidates_by_code
from cluster.audit.search.variants import VARIANTS_VERSION
from cluster.audit.verify.evidence import EVIDENCE_VERSION, verify_pair
from pipeline.base.errors import ServiceError
from pipeline.dataset.dataset import Address
from pipeline.image.decode import Pixels, decode
from pipeline.image.fingerprint import CODE_BYTES, DESCRIPTOR_VERSION, fingerprint_of_image
from pipeline.store.url import open_store

_CANARY_SHARD = -1


@dataclass(frozen=True)
class CanaryTask:
    """All canaries of an audit: a worker has the downstream features in memory, which are most of what they take."""

    config: AuditConfig
    sides: Sides
    features: DownFeatures
    result_key: str

    def __str__(self) -> str:
        return f"canaries of {self.sides.down.url}"


def measure_canaries(config: AuditConfig, sides: Sides, job: AuditJob) -> pa.Table:
    """Return what an audit finds of pictures that were altered in known ways, a table of CANARY_SCHEMA.

    Raises:
        BitError: Storage failed.
        ServiceError: They cannot be searched.
    """
    embedder = embedder_of(config.embedding) if config.embedding else None
    key = key_of("canaries", content_digest(sides.downstream), config.radius, config.canaries_each, config.seed,
                 config.crops and CROPS_VERSION, *([INSETS_VERSION] if config.insets else []),
                 embedder and [embedder.version, embedder.nearness.model_dump()], CANARIES_VERSION, JOIN_VERSION,
                 VARIANTS_VERSION, EVIDENCE_VERSION, EMBEDDING_VERSION, DESCRIPTOR_VERSION,
                 compiled_digest())  # fmt: skip
    task = CanaryTask(config, sides, down_features(config, sides, job), key)
    ((_, result),) = stored_results(job, search_canaries, [task], lambda task: None)
    if isinstance(result, Quarantined):
        raise ServiceError(f"the {task} cannot be searched ({result.reason}); please report it, with the log")
    return result


def search_canaries(task: CanaryTask) -> pa.Table:
    """Return the table of a task; each canary is compared with its original, and no other match competes."""
    return load_or_compute(open_store(task.features.work), task.result_key, partial(_measured, task))


def _measured(task: CanaryTask) -> pa.Table:
    config, sides, features = task.config, task.sides, task.features
    planted = plant(sides.downstream, config.canaries_each, config.seed)
    pictures = [decode(canary.image) for canary in planted]
    fingerprints = [fingerprint_of_image(canary.image) for canary in planted]
    codes = pa.array([code for code, _ in fingerprints], pa.binary(CODE_BYTES))
    samples = numbered(_CANARY_SHARD, pa.table([codes], names=["code"]))
    insets = inset_rows(_CANARY_SHARD, inset_table(pictures)) if config.insets else None
    hashed = {
        pair["up_row"]: pair["distance"]
        for pair in candidates_by_code(samples, insets, sides.down, config.radius, features).to_pylist()
        if Address(pair["down_shard"], pair["down_row"]) == planted[pair["up_row"]].origin
    }
    near = {
        pair["up_row"]
        for pair in (_near(config.embedding, pictures, features) if config.embedding else [])
        if Address(pair["down_shard"], pair["down_row"]) == planted[pair["up_row"]].origin
    }
    rows = []
    for number, canary in enumerate(planted):
        original = sides.downstream.read_image(canary.origin)
        row = {"transform": canary.transform, "down_shard": canary.origin.shard, "down_row": canary.origin.row,
               "found": False, "distance": hashed.get(number), "correlation": None}  # fmt: skip
        if number in hashed or number in near:
            quality = min(fingerprints[number][1], sides.downstream.sample(canary.origin)["quality"])
            result = verify_pair(
                canary.image, original, pictures[number], decode(original), quality, distance=hashed.get(number)
            )
            row |= {"found": result.evidence.is_duplicate, "correlation": result.correlation}
        rows.append(row)
    return pa.Table.from_pylist(rows, schema=CANARY_SCHEMA)


def _near(model: str, pictures: Sequence[Pixels], features: DownFeatures) -> list[dict[str, Any]]:
    """Return the candidates of the canaries by vector."""
    embedder = embedder_of(model)
    own = vector_rows(_CANARY_SHARD, vectors_table(embedder, pictures))
    near = view_candidates(ViewVectors.of(own), down_vectors(features), embedder.nearness)
    rows: list[dict[str, Any]] = near.to_pylist()
    return rows
