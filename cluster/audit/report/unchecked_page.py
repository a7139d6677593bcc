"""A page of the downstream pictures that the audit cannot call clean, by reason."""

from collections.abc import Container
from typing import Any

from cluster.audit.base.sets import Sides, picture_name
from cluster.audit.base.tables import MIN_QUALITY, AuditTables, ShardRow
from cluster.audit.report.pair_pages import picture_or_grey
from cluster.audit.result.exclusion_lists import class_names
from pipeline.base.html import render_page
from pipeline.dataset.dataset import Address
from pipeline.image.thumbnail import thumbnail
from pipeline.store.base import Store, put

_MOST_SHOWN = 2000  # pictures, about 6 kB each


def write_unchecked(out: Store, sides: Sides, tables: AuditTables) -> None:
    """Write unchecked.html."""
    hubs = tables.found.hubs
    hub_places = set(zip(hubs["shard"].to_pylist(), hubs["row"].to_pylist(), strict=True))
    rows = [row for row in tables.downstream.to_pylist() if row["state"] == "unchecked"]
    groups: dict[str, list[dict[str, str]]] = {}
    for row in rows[:_MOST_SHOWN]:
        address = Address(row["shard"], row["row"])
        shown = {
            "name": picture_name(sides.downstream, address),
            "classes": class_names(sides.downstream, row["labels"]),
            "shown": str(thumbnail(picture_or_grey(sides.downstream, address), "unchecked picture")),
        }
        groups.setdefault(reason_of(row, hub_places), []).append(shown)
    page = render_page(
        "cluster.audit.report", "unchecked.html.j2", title="Unchecked pictures", num_pictures=len(rows),
        num_shown=min(len(rows), _MOST_SHOWN), groups=groups,
    )  # fmt: skip
    put(out, "unchecked.html", page)


def reason_of(row: dict[str, Any], hubs: Container[ShardRow]) -> str:
    """Return why a downstream picture, a row of tables.STATE_SCHEMA, is unchecked."""
    if row["quality"] < MIN_QUALITY:
        return "too flat to compare"
    if (row["shard"], row["row"]) in hubs:
        return "more candidates than were verified"
    return "a picture of a candidate could not be read"
