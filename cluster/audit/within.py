"""Duplicates within one set: the same join and verification, told as stars and as a list of what to leave out."""

import io
import json
from importlib import metadata
from typing import Any

import pyarrow as pa
import pyarrow.csv

from cluster.audit.base.sets import Sides
from cluster.audit.base.stored_tasks import AuditJob
from cluster.audit.base.tables import AuditConfig, is_duplicate, split_refused
from cluster.audit.find_pairs import find_pairs
from cluster.audit.report.pair_pages import card, write_pages
from cluster.audit.report.publish import claim, shown_order, spread
from cluster.audit.result import exclusion_lists as lists
from cluster.audit.result.groups import stars
from pipeline.base.html import render_page
from pipeline.dataset.dataset import Address
from pipeline.dataset.schema import sha256_hex, to_parquet
from pipeline.store.base import Store, put

_MOST_LISTED = 100  # stars on the page; all are in the table
_STAR_SCHEMA = pa.schema(
    [("centre_shard", pa.int32()), ("centre_row", pa.int32()), ("centre_key", pa.string()), ("shard", pa.int32()),
     ("row", pa.int32()), ("key", pa.string()), ("url", pa.string()), ("offset", pa.int64()), ("bytes", pa.int64())]
)  # fmt: skip


def audit_within(out: Store, config: AuditConfig, sides: Sides, job: AuditJob) -> dict[str, Any]:
    """Find the duplicates within a set and publish them.

    Args:
        out: The report's folder: index.html, pairs, stars.parquet and .csv, exclude.parquet.
        config: Both of its sets are the same one.
        sides: Likewise.
        job: Where it works.

    Returns:
        The summary.

    Raises:
        Conflict: The folder holds another report.
        BitError: As search.find_pairs.
    """
    claim(out, config)
    found = find_pairs(config, sides, job)
    pairs, refused = split_refused(found.pairs)
    out.delete("summary.json")  # a folder without it is not whole
    duplicates = [pair for pair in pairs.to_pylist() if is_duplicate(pair["evidence"])]
    grouped = stars(((pair["up_shard"], pair["up_row"]), (pair["down_shard"], pair["down_row"])) for pair in duplicates)
    table = _star_table(sides, grouped)
    leave_out = lists.addresses({member for members in grouped.values() for member in members})
    listed = shown_order(lists.pair_list(sides, pairs))
    sink = io.BytesIO()
    pyarrow.csv.write_csv(table, sink)
    rows = [row | {"verdict": None} for row in listed]
    parts = {
        "pairs.parquet": to_parquet(pa.Table.from_pylist(rows, schema=lists.PAIR_LIST_SCHEMA)),
        "stars.parquet": to_parquet(table),
        "stars.csv": sink.getvalue(),
        "exclude.parquet": to_parquet(leave_out),
        "unchecked.parquet": to_parquet(found.unchecked),
        "shards.parquet": to_parquet(found.shards),
    }
    for name, body in parts.items():
        put(out, name, body)
    summary = {
        "config": config.model_dump(),
        "url": sides.upstream.store.url,
        "num_samples": sides.upstream.version.num_samples,
        "num_stars": len(grouped),
        "num_left_out": leave_out.num_rows,
        "num_pairs": pairs.num_rows,
        "num_duplicate_pairs": len(duplicates),
        "num_candidates": found.num_candidates,
        "num_refused": refused.num_rows,
        "num_hubs": found.hubs.num_rows,
        "num_unchecked": sum(found.unchecked["num_samples"].to_pylist()),
        "quarantined": [row for row in found.shards.to_pylist() if row["state"] == "quarantined"],
        "num_pages": write_pages(out, sides, listed, job),
        "digest": sha256_hex(b"".join(sha256_hex(parts[name]).encode() for name in sorted(parts))),
        "writer": f"bit-pretrain {metadata.version('bit-pretrain')}",
    }
    largest = sorted(grouped.items(), key=lambda star: (-len(star[1]), star[0]))[:_MOST_LISTED]
    shown = [{"key": _key(sides, centre), "num_members": len(members)} for centre, members in largest]
    gallery = [card(sides, row) for row in spread(listed)]
    page = render_page("cluster.audit.report", "within.html.j2",
                  title="Duplicates within a set", summary=summary, stars=shown,
                  gallery=gallery)  # fmt: skip
    put(out, "index.html", page)
    put(out, "summary.json", (json.dumps(summary, indent=1) + "\n").encode())
    return summary


def _key(sides: Sides, address: tuple[int, int]) -> str:
    return str(sides.upstream.sample(Address(*address))["key"])


def _star_table(sides: Sides, grouped: dict[tuple[int, int], list[tuple[int, int]]]) -> pa.Table:
    """Return a row for each member of a star, with what finds its picture."""
    rows = []
    for centre, members in grouped.items():
        for member in members:
            sample = sides.upstream.sample(Address(*member))
            rows.append(
                {"centre_shard": centre[0], "centre_row": centre[1], "centre_key": _key(sides, centre),
                 "shard": member[0], "row": member[1], "key": sample["key"],
                 "url": sides.upstream.shard_url(member[0]), "offset": sample["image_offset"],
                 "bytes": sample["image_bytes"]}
            )  # fmt: skip
    return pa.Table.from_pylist(rows, schema=_STAR_SCHEMA)
