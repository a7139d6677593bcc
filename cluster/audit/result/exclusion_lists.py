"""The lists an audit publishes, with the names of their pictures: all pairs, and what to exclude from each set."""

import hashlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pyarrow as pa

from cluster.audit.base.sets import Sides, picture_name
from cluster.audit.base.tables import UNCHECKED_SCHEMA, AuditTables, Evidence, ShardRow
from pipeline.dataset.dataset import Address, Dataset
from pipeline.image.fingerprint import DIHEDRAL

_ID_DIGITS = 16
_NUM_READ_THREADS = 16  # small reads, as in stored_tasks
_PICTURE_SCHEMA = pa.schema([("shard", pa.int32()), ("row", pa.int32()), ("digest", pa.string())])
_SIDE_FIELDS = (
    ("shard", pa.int32()),
    ("row", pa.int32()),
    ("url", pa.string()),
    ("key", pa.string()),
    ("source", pa.string()),
    ("offset", pa.int64()),
    ("bytes", pa.int64()),
    ("digest", pa.string()),
    ("labels", pa.string()),
    ("classes", pa.string()),
)
PAIR_LIST_SCHEMA = pa.schema(
    [
        ("pair", pa.string()),
        *((f"{side}_{name}", kind) for side in ("down", "up") for name, kind in _SIDE_FIELDS),
        ("distance", pa.int64()),
        ("correlation", pa.float64()),
        ("quality", pa.int64()),
        ("transform", pa.string()),
        ("evidence", pa.string()),
        ("verdict", pa.string()),
        ("judged_by", pa.string()),
        ("judged_at", pa.string()),
    ]
)


def element_name(element: int) -> str:
    """Return in words how the downstream picture is turned to match the upstream one; `element` is of DIHEDRAL."""
    transposed, mirrored, upended = DIHEDRAL[element]
    names = {
        (False, False, False): "as it is",
        (False, True, False): "mirrored",
        (False, False, True): "upside down",
        (False, True, True): "turned 180°",
        (True, False, False): "transposed",
        (True, True, False): "turned 90° right",
        (True, False, True): "turned 90° left",
        (True, True, True): "transposed the other way",
    }
    return names[transposed, mirrored, upended]


def pair_list(sides: Sides, pairs: pa.Table) -> list[dict[str, Any]]:
    """Return pairs with the locations of both pictures, as rows of PAIR_LIST_SCHEMA without sources and verdict.

    `pair` identifies the two pictures by their bytes, wherever they are stored: a verdict on them holds in every later
    audit.
    """
    rows = []
    for pair in pairs.to_pylist():
        row: dict[str, Any] = {}
        digests = b""
        for side, dataset in (("down", sides.downstream), ("up", sides.upstream)):
            shard, number = pair[f"{side}_shard"], pair[f"{side}_row"]
            sample = dataset.sample(Address(shard, number))
            digests += sample["digest"]
            row |= {
                f"{side}_shard": shard,
                f"{side}_row": number,
                f"{side}_url": dataset.shard_url(shard),
                f"{side}_key": sample["key"],
                f"{side}_offset": sample["image_offset"],
                f"{side}_bytes": sample["image_bytes"],
                f"{side}_digest": sample["digest"].hex(),
                f"{side}_labels": " ".join(str(label) for label in sample["labels"]),
                f"{side}_classes": class_names(dataset, sample["labels"]),
            }
        row |= {
            "pair": _name(digests),
            "distance": pair["distance"],
            "correlation": round(pair["correlation"], 4),
            "quality": pair["quality"],
            "transform": element_name(pair["element"]),
            "evidence": pair["evidence"],
        }
        rows.append(row)
    return rows


def with_sources(sides: Sides, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of pair_list with `source` of both sides: the names of the files, read from the sets."""
    named: dict[str, list[str]] = {}
    for side, dataset in (("down", sides.downstream), ("up", sides.upstream)):
        named[f"{side}_source"] = _sources(dataset, [(row[f"{side}_shard"], row[f"{side}_row"]) for row in rows])
    return [row | {side: named[side][place] for side in named} for place, row in enumerate(rows)]


def class_names(dataset: Dataset, labels: Iterable[int]) -> str:
    """Return the names of a picture's classes in one text."""
    return ", ".join(dataset.class_name(label) for label in labels)


def _sources(dataset: Dataset, pictures: Iterable[ShardRow]) -> list[str]:
    """Return the name of the file of each picture; each is a small read, so many run at once."""
    addresses = [Address(shard, row) for shard, row in pictures]
    distinct = list(dict.fromkeys(addresses))
    with ThreadPoolExecutor(_NUM_READ_THREADS) as threads:
        names = dict(zip(distinct, threads.map(partial(picture_name, dataset), distinct), strict=True))
    return [names[address] for address in addresses]


def with_names(dataset: Dataset, table: pa.Table, prefix: str = "") -> pa.Table:
    """Return a table of pictures with two more columns: the name of the file, and those of the classes.

    Args:
        dataset: Their set.
        table: Has `shard` and `row`, both after the prefix.
        prefix: Of these and of the new columns, `source` and `classes`.
    """
    pictures = list(zip(table[f"{prefix}shard"].to_pylist(), table[f"{prefix}row"].to_pylist(), strict=True))
    classes = [class_names(dataset, dataset.sample(Address(*picture))["labels"]) for picture in pictures]
    named = table.append_column(f"{prefix}source", pa.array(_sources(dataset, pictures), pa.string()))
    return named.append_column(f"{prefix}classes", pa.array(classes, pa.string()))


def named_states(dataset: Dataset, states: pa.Table) -> pa.Table:
    """Return a table of STATE_SCHEMA with `classes`, and with the `source` of each picture that is not clean.

    The others have their key: a source is a read of its own, and most pictures of a large test set are clean.
    """
    rows = states.select(["shard", "row", "labels", "state"]).to_pylist()
    wanted = [(row["shard"], row["row"]) for row in rows if row["state"] != "clean"]
    source_of = dict(zip(wanted, _sources(dataset, wanted), strict=True))
    sources = [source_of.get((row["shard"], row["row"])) for row in rows]
    named = states.append_column("source", pa.array(sources, pa.string()))
    return named.append_column("classes", pa.array([class_names(dataset, row["labels"]) for row in rows], pa.string()))


def named_unchecked(sides: Sides, unchecked: pa.Table) -> pa.Table:
    """Return a table of UNCHECKED_SCHEMA with the `source` of the pictures that are in their set, too."""
    rows = unchecked.to_pylist()
    for row in rows:
        if row["source"] is None and row["row"] is not None:
            dataset = sides.upstream if row["side"] == "upstream" else sides.downstream
            row["source"] = picture_name(dataset, Address(row["shard"], row["row"]))
    return pa.Table.from_pylist(rows, schema=UNCHECKED_SCHEMA)


def pair_names(sides: Sides, pairs: pa.Table) -> list[str]:
    """Return the `pair` of each pair, as pair_list does."""
    digests = {
        side: [
            dataset.sample(Address(shard, row))["digest"]
            for shard, row in zip(pairs[f"{side}_shard"].to_pylist(), pairs[f"{side}_row"].to_pylist(), strict=True)
        ]
        for side, dataset in (("down", sides.downstream), ("up", sides.upstream))
    }
    return [_name(down + up) for down, up in zip(digests["down"], digests["up"], strict=True)]


def _name(digests: bytes) -> str:
    return hashlib.sha256(digests).hexdigest()[:_ID_DIGITS]


def exclusions(sides: Sides, tables: AuditTables) -> dict[str, pa.Table]:
    """Return what to exclude from each side, by file name: pictures as `trainer --exclude` takes them, with names.

    Upstream: every picture that is a copy of a test picture, those too beside which a closer one exists. Downstream:
    every test picture with a duplicate.
    """
    pairs = tables.pairs.to_pylist()
    up = {(pair["up_shard"], pair["up_row"]) for pair in pairs if Evidence(pair["evidence"]).is_copy_upstream}
    down = {(pair["down_shard"], pair["down_row"]) for pair in pairs if Evidence(pair["evidence"]).is_duplicate}
    return {
        "exclude-upstream.parquet": picture_list(sides.upstream, up),
        "exclude-downstream.parquet": picture_list(sides.downstream, down),
    }


def picture_list(dataset: Dataset, pictures: Iterable[ShardRow]) -> pa.Table:
    """Return pictures as a table of `shard`, `row`, `digest`, `source` and `classes`, sorted.

    By the digests a reader sees that the list is of the dataset at hand.
    """
    places = [Address(shard, row) for shard, row in sorted(pictures)]
    rows = [
        {"shard": place.shard, "row": place.row, "digest": dataset.sample(place)["digest"].hex()} for place in places
    ]
    return with_names(dataset, pa.Table.from_pylist(rows, schema=_PICTURE_SCHEMA))
