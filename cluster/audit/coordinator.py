"""The audit from two datasets to its tables: join, verify, measure with canaries. Pure tables in, pure tables out."""

from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from cluster.audit.canaries import Canary, plant
from cluster.audit.join import CANDIDATE_SCHEMA, DEFAULT_RADIUS, candidates, cap_hubs
from cluster.audit.rivals import settle_rivals
from cluster.audit.verify import MIN_QUALITY, Evidence, verify_pair
from cluster.tasks import map_tasks, share
from pipeline.dataset import Address, Dataset, open_dataset
from pipeline.errors import ConfigError
from pipeline.fingerprint import fingerprint
from pipeline.image import decode
from pipeline.records import Record

_PAIRS_PER_TASK = 64
_CANARY_SHARD = -1

PAIR_SCHEMA = pa.schema(
    [
        *CANDIDATE_SCHEMA,
        pa.field("quality", pa.uint8()),  # the lower of the two pictures' scores
        pa.field("correlation", pa.float32()),
        pa.field("evidence", pa.string()),
    ]
)


class AuditConfig(Record):
    """An audit.

    Attributes:
        upstream: URL of the dataset a model was pretrained on.
        downstream: URL of the test set.
        radius: Largest Hamming distance of a candidate, in bits of 256.
        most_matches: Upstream matches of one downstream picture that are verified; the closest ones.
        canaries_each: Planted pictures of each transform.
        seed: Key of the canaries.
    """

    upstream: str
    downstream: str
    radius: int = DEFAULT_RADIUS
    most_matches: int = 20
    canaries_each: int = 5
    seed: int = 0


@dataclass(frozen=True)
class AuditTables:
    """Everything an audit found.

    Attributes:
        pairs: Table of PAIR_SCHEMA without rejected pairs, sorted by addresses.
        downstream: One row a downstream picture: shard, row, labels, quality, state, num_pairs, distance, evidence.
        canaries: One row a canary: transform, down_shard, down_row, found, distance, correlation.
        hubs: Matches of each downstream picture that had more than the cap.
        num_candidates: Pairs within the radius.
        num_rejected: Candidates that verification refused.
    """

    pairs: pa.Table
    downstream: pa.Table
    canaries: pa.Table
    hubs: dict[tuple[int, int], int]
    num_candidates: int
    num_rejected: int


def audit(config: AuditConfig, *, on_ray: bool, on_progress: Callable[[str], None] = lambda text: None) -> AuditTables:
    """Finds the near-duplicates between two datasets.

    Args:
        config: See AuditConfig.
        on_ray: Whether join and verification run as Ray tasks. The result does not depend on it.
        on_progress: Receives a line at each stage.

    Raises:
        ConfigError: The datasets' descriptors differ in version.
        BitError: As reading the datasets.
    """
    upstream, downstream = open_dataset(config.upstream), open_dataset(config.downstream)
    for dataset in (upstream, downstream):
        if dataset.version.descriptor is None:
            raise ConfigError(
                f"{dataset.store.url} was packed with --check header and has no fingerprints; pack it with "
                f"--check decode"
            )
    if upstream.version.descriptor != downstream.version.descriptor:
        raise ConfigError(
            f"{config.upstream} has descriptors {upstream.version.descriptor}, {config.downstream} has "
            f"{downstream.version.descriptor}; pack one of them again"
        )
    index = downstream.all_samples(["code", "quality", "labels", "key"])
    on_progress(f"joining {upstream.version.num_samples:,} upstream with {index.num_rows:,} downstream codes")
    shared = share(index.select(["shard", "row", "code"]), on_ray=on_ray)
    calls = [(upstream, shard["shard"], shared, config.radius) for shard in upstream.shards if shard["num_samples"]]
    parts = list(map_tasks(_join_shard, calls, on_ray=on_ray))
    found = pa.concat_tables(parts) if parts else CANDIDATE_SCHEMA.empty_table()
    kept, hubs = cap_hubs(found, config.most_matches)
    on_progress(f"verifying {kept.num_rows:,} candidates")
    slices = [kept.slice(start, _PAIRS_PER_TASK) for start in range(0, kept.num_rows, _PAIRS_PER_TASK)]
    checked = list(map_tasks(_verify, [(upstream, downstream, part) for part in slices], on_ray=on_ray))
    verified = pa.concat_tables(checked) if checked else PAIR_SCHEMA.empty_table()
    verified = settle_rivals(verified)
    accepted = verified.filter(pa.compute.not_equal(verified["evidence"], str(Evidence.REJECTED)))
    accepted = accepted.sort_by([(name, "ascending") for name in CANDIDATE_SCHEMA.names[:4]])
    on_progress("searching for planted canaries")
    canaries = _measure_canaries(plant(downstream, config.canaries_each, config.seed), downstream, index, config)
    return AuditTables(
        pairs=accepted,
        downstream=_states(index, accepted, hubs),
        canaries=canaries,
        hubs=hubs,
        num_candidates=found.num_rows,
        num_rejected=verified.num_rows - accepted.num_rows,
    )


def _join_shard(upstream: Dataset, shard: int, downstream: pa.Table, radius: int) -> pa.Table:
    codes = upstream.samples(shard).select(["code"])
    count = codes.num_rows
    address = [pa.array(np.full(count, shard, np.int32)), pa.array(np.arange(count, dtype=np.int32))]
    table = pa.table([*address, codes["code"]], names=["shard", "row", "code"])
    return candidates(table, downstream, radius)


def _verify(upstream: Dataset, downstream: Dataset, pairs: pa.Table) -> pa.Table:
    rows = []
    for pair in pairs.to_pylist():
        up, down = Address(pair["up_shard"], pair["up_row"]), Address(pair["down_shard"], pair["down_row"])
        up_bytes, down_bytes = upstream.read_image(up), downstream.read_image(down)
        quality = min(upstream.sample(up)["quality"], downstream.sample(down)["quality"])
        verdict = verify_pair(
            up_bytes,
            down_bytes,
            decode(up_bytes),
            decode(down_bytes),
            min_quality=quality,
            distance=pair["distance"],
        )
        rows.append(pair | {"quality": quality, "correlation": verdict.correlation, "evidence": str(verdict.evidence)})
    return pa.Table.from_pylist(rows, schema=PAIR_SCHEMA)


def _measure_canaries(canaries: list[Canary], downstream: Dataset, index: pa.Table, config: AuditConfig) -> pa.Table:
    """Sends the canaries through the join and the verification of any upstream picture; they have no rivals."""
    codes, qualities = [], []
    for canary in canaries:
        code, quality = fingerprint(decode(canary.image))
        codes.append(code)
        qualities.append(quality)
    rows = np.arange(len(canaries), dtype=np.int32)
    planted = pa.table(
        [
            pa.array(np.full(len(rows), _CANARY_SHARD, np.int32)),
            pa.array(rows),
            pa.array(codes, pa.binary(32)),
        ],
        names=["shard", "row", "code"],
    )
    best: dict[int, dict[str, Any]] = {}
    for pair in candidates(planted, index, config.radius).to_pylist():
        canary = canaries[pair["up_row"]]
        down = Address(pair["down_shard"], pair["down_row"])
        if down == canary.origin:
            original = downstream.read_image(down)
            quality = min(qualities[pair["up_row"]], downstream.sample(down)["quality"])
            verdict = verify_pair(
                canary.image,
                original,
                decode(canary.image),
                decode(original),
                min_quality=quality,
                distance=pair["distance"],
            )
            best[pair["up_row"]] = {
                "found": verdict.evidence.is_duplicate,
                "distance": pair["distance"],
                "correlation": verdict.correlation,
            }
    missed = {"found": False, "distance": None, "correlation": None}
    table = [
        {"transform": canary.transform, "down_shard": canary.origin.shard, "down_row": canary.origin.row}
        | best.get(number, missed)
        for number, canary in enumerate(canaries)
    ]
    schema = pa.schema(
        [("transform", pa.string()), ("down_shard", pa.int32()), ("down_row", pa.int32()), ("found", pa.bool_()),
         ("distance", pa.int16()), ("correlation", pa.float32())]
    )  # fmt: skip
    return pa.Table.from_pylist(table, schema=schema)


def _states(index: pa.Table, pairs: pa.Table, hubs: Container[tuple[int, int]]) -> pa.Table:
    """Gives the state of every downstream picture: duplicate, very similar, clean or unchecked.

    Unchecked are pictures too flat to tell, and those with more matches than were verified, unless a duplicate was
    found.
    """
    matches: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for pair in pairs.to_pylist():
        matches.setdefault((pair["down_shard"], pair["down_row"]), []).append(pair)
    rows = []
    for sample in index.select(["shard", "row", "key", "labels", "quality"]).to_pylist():
        own = matches.get((sample["shard"], sample["row"]), [])
        duplicates = [pair for pair in own if Evidence(pair["evidence"]).is_duplicate]
        best = min(duplicates or own, key=lambda pair: (pair["distance"], -pair["correlation"]), default=None)
        if duplicates:
            state = "duplicate"
        elif sample["quality"] < MIN_QUALITY or (sample["shard"], sample["row"]) in hubs:
            state = "unchecked"
        else:
            state = "very similar" if own else "clean"
        rows.append(
            sample
            | {
                "state": state,
                "num_pairs": len(own),
                "distance": best["distance"] if best else None,
                "evidence": best["evidence"] if best else None,
            }
        )
    schema = pa.schema(
        [("shard", pa.int32()), ("row", pa.int32()), ("key", pa.string()), ("labels", pa.list_(pa.int32())),
         ("quality", pa.uint8()), ("state", pa.string()), ("num_pairs", pa.int32()), ("distance", pa.int16()),
         ("evidence", pa.string())]
    )  # fmt: skip
    return pa.Table.from_pylist(rows, schema=schema)
