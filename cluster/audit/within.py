"""Duplicates within one set: the same join and verification, reported as groups and as a list of what to exclude."""

from importlib import metadata
from typing import Any

import pyarrow as pa

from cluster.audit.base.sets import Sides, picture_name, samples_of
from cluster.audit.base.stored_tasks import AuditJob
from cluster.audit.base.tables import (
    MIN_QUALITY,
    UNCHECKED_SCHEMA,
    AuditConfig,
    Found,
    ShardRow,
    is_duplicate,
    split_rejected,
)
from cluster.audit.find_pairs import find_pairs
from cluster.audit.report.pair_pages import pair_card, write_pages
from cluster.audit.report.publish import claim, closest_first, csv_bytes, pick_evenly
from cluster.audit.result.exclusion_lists import (
    PAIR_LIST_SCHEMA,
    class_names,
    named_unchecked,
    pair_list,
    picture_list,
    with_names,
    with_sources,
)
from cluster.audit.result.groups import group_copies
from cluster.audit.result.states import audit_tables
from pipeline.base.html import render_page
from pipeline.base.records import json_bytes
from pipeline.dataset.dataset import Address
from pipeline.dataset.schema import sha256_hex, to_parquet
from pipeline.store.base import Store, put

_MOST_LISTED = 100  # groups on the page; the table holds all
_GROUP_SCHEMA = pa.schema(
    [("centre_shard", pa.int32()), ("centre_row", pa.int32()), ("centre_key", pa.string()),
     ("centre_source", pa.string()), ("centre_classes", pa.string()), ("shard", pa.int32()), ("row", pa.int32()),
     ("key", pa.string()), ("source", pa.string()), ("classes", pa.string()), ("url", pa.string()),
     ("offset", pa.int64()), ("bytes", pa.int64())]
)  # fmt: skip


def run_audit_within(out: Store, config: AuditConfig, sides: Sides, job: AuditJob) -> dict[str, Any]:
    """Find the duplicates within a set and publish their report.

    Args:
        out: The report's folder: index.html, pairs, stars.parquet and .csv, exclude.parquet.
        config: Both of its sets are the same one.
        sides: Of the configuration; both are the same one.
        job: Where its tasks run.

    Returns:
        The summary.

    Raises:
        Conflict: The folder holds another report.
        BitError: As find_pairs.
    """
    claim(out, config)
    found = find_pairs(config, sides, job)
    pairs, rejected = split_rejected(found.pairs)
    out.delete("summary.json")  # a folder without it is incomplete
    duplicates = [pair for pair in pairs.to_pylist() if is_duplicate(pair["evidence"])]
    groups = group_copies(
        ((pair["up_shard"], pair["up_row"]), (pair["down_shard"], pair["down_row"])) for pair in duplicates
    )
    unchecked, num_unchecked = _unchecked(sides, found, groups)
    table = _group_table(sides, groups)
    excluded = picture_list(sides.upstream, {member for members in groups.values() for member in members})
    listed = with_sources(sides, closest_first(pair_list(sides, pairs)))
    rows = [row | {"verdict": None} for row in listed]
    parts = {
        "pairs.parquet": to_parquet(pa.Table.from_pylist(rows, schema=PAIR_LIST_SCHEMA)),
        "stars.parquet": to_parquet(table),
        "stars.csv": csv_bytes(table),
        "exclude.parquet": to_parquet(excluded),
        "unchecked.parquet": to_parquet(named_unchecked(sides, unchecked)),
        "hubs.parquet": to_parquet(with_names(sides.upstream, found.hubs)),
        "shards.parquet": to_parquet(found.shards),
    }
    for name, body in parts.items():
        put(out, name, body)
    summary = {
        "config": config.model_dump(),
        "url": sides.upstream.store.url,
        "num_samples": sides.upstream.version.num_samples,
        "num_stars": len(groups),
        "num_left_out": excluded.num_rows,
        "num_pairs": pairs.num_rows,
        "num_duplicate_pairs": len(duplicates),
        "num_candidates": found.num_candidates,
        "num_refused": rejected.num_rows,
        "num_hubs": found.hubs.num_rows,
        "num_unchecked": num_unchecked,
        "min_quality": MIN_QUALITY,
        "quarantined": [row for row in found.shards.to_pylist() if row["state"] == "quarantined"],
        "num_pages": write_pages(out, sides, listed, job),
        "digest": sha256_hex(b"".join(sha256_hex(parts[name]).encode() for name in sorted(parts))),
        "writer": f"bit-pretrain {metadata.version('bit-pretrain')}",
    }
    largest = sorted(groups.items(), key=lambda group: (-len(group[1]), group[0]))[:_MOST_LISTED]
    shown = [
        {"name": picture_name(sides.upstream, Address(*centre)), "num_members": len(members)}
        for centre, members in largest
    ]
    gallery = [pair_card(sides, row) for row in pick_evenly(listed)]
    page = render_page(
        "cluster.audit.report", "within.html.j2", title="Duplicates within a set", summary=summary, groups=shown,
        gallery=gallery,
    )  # fmt: skip
    put(out, "index.html", page)
    put(out, "summary.json", json_bytes(summary))
    return summary


def _unchecked(sides: Sides, found: Found, groups: dict[ShardRow, list[ShardRow]]) -> tuple[pa.Table, int]:
    """Return what could not be compared, once for both sides, and how many pictures were not checked.

    Those are what could not be read, and of the others those too flat to compare, or with candidates that nobody
    verified, unless a copy was found.
    """
    rows = {(row["shard"], row["row"], row["source"], row["reason"]): row for row in found.unchecked.to_pylist()}
    states = audit_tables(found, samples_of(sides.down), pa.table({})).downstream
    in_groups = {*groups, *(member for members in groups.values() for member in members)}
    pictures = {
        (row["shard"], row["row"])
        for row in states.to_pylist()
        if row["state"] == "unchecked" and (row["shard"], row["row"]) not in in_groups
    }
    beside = sum(row["num_samples"] for row in rows.values() if (row["shard"], row["row"]) not in pictures)
    return pa.Table.from_pylist(list(rows.values()), schema=UNCHECKED_SCHEMA), len(pictures) + beside


def _group_table(sides: Sides, groups: dict[ShardRow, list[ShardRow]]) -> pa.Table:
    """Return a row for each member of a group, with the location of its picture."""
    rows = []
    for centre, members in groups.items():
        about = _about(sides, centre)
        of_centre = {f"centre_{name}": about[name] for name in ("shard", "row", "key", "source", "classes")}
        rows += [of_centre | _about(sides, member) for member in members]
    return pa.Table.from_pylist(rows, schema=_GROUP_SCHEMA)


def _about(sides: Sides, address: ShardRow) -> dict[str, Any]:
    """Return where a picture is and what it shows."""
    sample = sides.upstream.sample(Address(*address))
    return {"shard": address[0], "row": address[1], "key": sample["key"],
            "source": picture_name(sides.upstream, Address(*address)),
            "classes": class_names(sides.upstream, sample["labels"]),
            "url": sides.upstream.shard_url(address[0]), "offset": sample["image_offset"],
            "bytes": sample["image_bytes"]}  # fmt: skip
