"""The configuration of an audit, and what it finds as plain tables."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import pyarrow as pa

from pipeline.base.records import Record

ShardRow = tuple[int, int]  # as Address, but ordered, and as tables hold it
# Of two hundred photos no two different ones are closer than 89 bits; crops to 95 % are up to 51 at the 95th percentile
# (docs/decisions/0003-sign-hash.md).
DEFAULT_RADIUS = 62
# Hashes up to so far apart are evidence, if the pictures agree: the closest of different pictures with texture are 46
# bits apart, trousers on cloth (docs/audit-quality.md).
CLOSE_BITS = 44
# Up to this distance a match of hashes needs little more: of 4.5 M pairs of MNIST with UCI digits, the closest were 76
# bits apart, and 5 of 3.1 M pairs within MNIST at most 31 (docs/decisions/0003-sign-hash.md).
STRONG_BITS = 31
# Below this gradient score a code is not reliable: a plain sky of CIFAR-10 scores 6, an ellipse on white 18. 2.2 % of
# CIFAR-10 are below, and 0 to 0.2 % of six other sets of real pictures.
MIN_QUALITY = 20
ADDRESS_COLUMNS = ("up_shard", "up_row", "down_shard", "down_row")
CANDIDATE_SCHEMA = pa.schema(
    [
        *((name, pa.int32()) for name in ADDRESS_COLUMNS),
        ("distance", pa.int16()),
        ("element", pa.int8()),
    ]
)
PAIR_SCHEMA = pa.schema(
    [
        *CANDIDATE_SCHEMA,
        pa.field("quality", pa.uint8()),  # the lower of the two pictures' scores
        pa.field("correlation", pa.float32()),
        pa.field("evidence", pa.string()),
    ]
)
STATE_SCHEMA = pa.schema(
    [("shard", pa.int32()), ("row", pa.int32()), ("key", pa.string()), ("labels", pa.list_(pa.int32())),
     ("quality", pa.uint8()), ("state", pa.string()), ("num_pairs", pa.int32()), ("distance", pa.int16()),
     ("evidence", pa.string())]
)  # fmt: skip
HUB_SCHEMA = pa.schema([("shard", pa.int32()), ("row", pa.int32()), ("num_matches", pa.int64())])
CANARY_SCHEMA = pa.schema(
    [("transform", pa.string()), ("down_shard", pa.int32()), ("down_row", pa.int32()), ("found", pa.bool_()),
     ("distance", pa.int16()), ("correlation", pa.float32())]
)  # fmt: skip
# Pictures that were not compared: rejects of either side, unreadable pictures, samples of quarantined shards.
UNCHECKED_SCHEMA = pa.schema(
    [("side", pa.string()), ("shard", pa.int32()), ("row", pa.int32()), ("source", pa.string()),
     ("num_samples", pa.int64()), ("reason", pa.string()), ("detail", pa.string())]
)  # fmt: skip
SHARD_STATE_SCHEMA = pa.schema(
    [("shard", pa.int32()), ("path", pa.string()), ("blake3", pa.string()), ("num_samples", pa.int64()),
     ("state", pa.string()), ("num_candidates", pa.int64()), ("detail", pa.string())]
)  # fmt: skip
UNREADABLE = "unreadable"
STATES = ("duplicate", "very similar", "clean", "unchecked")


class Evidence(StrEnum):
    """Why a pair is in the report."""

    SAME_BYTES = "same bytes"
    SAME_PIXELS = "same pixels"
    NEAR = "near-duplicate"
    EMBEDDED = "verified embedding"
    JUDGED = "judged a copy"  # by a person, where the rules had said otherwise
    FURTHER = "further copy"  # of a downstream picture that another upstream picture matches far better
    SIMILAR = "very similar"
    REJECTED = "rejected"

    @property
    def is_duplicate(self) -> bool:
        """Whether it counts as a duplicate in the accuracy table."""
        return self not in (Evidence.FURTHER, Evidence.SIMILAR, Evidence.REJECTED)

    @property
    def is_copy_upstream(self) -> bool:
        """Whether the upstream picture is to be left out of training, however many others match as well or better."""
        return self.is_duplicate or self is Evidence.FURTHER


class AuditConfig(Record):
    """An audit.

    Attributes:
        upstream: URL of the dataset, or of the WebDataset tars, that a model was pretrained on.
        downstream: URL of the test set; the same as upstream for duplicates within one set.
        radius: Largest Hamming distance of a candidate, in bits of 256.
        most_matches: Most upstream matches of one downstream picture that are verified, by code and by vector each; the
            closest ones. A picture with more is `unchecked`, unless a duplicate of it is found.
        canaries_each: Planted pictures per transform.
        seed: Key of the canaries and of the choice of pairs for review.
        embedding: Model whose embedding finds further candidates; None for the hash alone.
        crops: Whether codes of many crops of the downstream pictures find further candidates.
        insets: Whether codes of the pictures within upstream pictures do, such as the parts of a collage.
    """

    upstream: str
    downstream: str
    radius: int = DEFAULT_RADIUS
    most_matches: int = 20
    canaries_each: int = 5
    seed: int = 0
    embedding: str | None = None
    crops: bool = False
    insets: bool = False


@dataclass(frozen=True)
class Found:
    """All pairs of two sets whose pictures were compared.

    Attributes:
        pairs: Table of PAIR_SCHEMA, sorted by addresses, including rejected ones; with `own_evidence`, that of a pair
            by itself, before competing matches were weighed.
        hubs: Table of HUB_SCHEMA: downstream pictures with candidates that were not verified.
        shards: Table of SHARD_STATE_SCHEMA: every upstream shard, `joined` or `quarantined`.
        unchecked: Table of UNCHECKED_SCHEMA.
        num_candidates: Pairs that the search by code or by vector found.
    """

    pairs: pa.Table
    hubs: pa.Table
    shards: pa.Table
    unchecked: pa.Table
    num_candidates: int


@dataclass(frozen=True)
class AuditTables:
    """Everything an audit found.

    Attributes:
        found: All compared pairs, hubs, states of shards, and what was not compared.
        pairs: Table of PAIR_SCHEMA: duplicates and very similar pictures.
        rejected: Table of PAIR_SCHEMA: pairs that were compared and are no copies.
        downstream: Table of STATE_SCHEMA: one row per downstream picture.
        canaries: Table of CANARY_SCHEMA: one row per canary.
    """

    found: Found
    pairs: pa.Table
    rejected: pa.Table
    downstream: pa.Table
    canaries: pa.Table


def unreadable_row(side: str, shard: int, row: int, detail: str) -> dict[str, Any]:
    """Return a row of UNCHECKED_SCHEMA for a picture that is in the set and cannot be read."""
    return {"side": side, "shard": shard, "row": row, "source": None, "num_samples": 1, "reason": UNREADABLE,
            "detail": detail}  # fmt: skip


def split_rejected(pairs: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Return (accepted, rejected) pairs; very similar ones are accepted."""
    is_rejected = pa.compute.equal(pairs["evidence"], str(Evidence.REJECTED))
    return pairs.filter(pa.compute.invert(is_rejected)), pairs.filter(is_rejected)


def is_duplicate(evidence: str | None) -> bool:
    """Return whether a class of evidence counts in the accuracy table."""
    return evidence is not None and Evidence(evidence).is_duplicate


def unchecked_addresses(unchecked: pa.Table, side: str) -> set[ShardRow]:
    """Return the pictures of a side that are in the set and could not be read."""
    rows = unchecked.filter(pa.compute.equal(unchecked["side"], side))
    return {
        (shard, row)
        for shard, row in zip(rows["shard"].to_pylist(), rows["row"].to_pylist(), strict=True)
        if row is not None
    }
