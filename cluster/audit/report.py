"""Publishes an audit: pictures and tables as one HTML page, and every pair as Parquet and CSV."""

import io
import json
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv

from cluster.audit.coordinator import AuditConfig, AuditTables
from cluster.audit.scores import score
from cluster.audit.verify import MIN_QUALITY, Evidence
from pipeline.charts import histogram
from pipeline.dataset import Address, Dataset, open_dataset
from pipeline.fingerprint import DIHEDRAL, apply_dihedral
from pipeline.image import decode
from pipeline.manifest import sha256_hex, to_parquet
from pipeline.pages import render, thumbnail
from pipeline.store.base import Store, commit
from trainer.statistics import wilson_interval

_MOST_PICTURES = 60  # pairs shown on the page; all are in the tables
_BAR_BITS = 4


def radii(config: AuditConfig) -> list[int]:
    """Gives the three thresholds at which accuracy is reported: half, three quarters and all of the radius."""
    return sorted({config.radius // 2, config.radius * 3 // 4, config.radius})


def element_name(element: int) -> str:
    """Gives what was done to the downstream picture to match, in words."""
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


def summarize(config: AuditConfig, tables: AuditTables, predictions: Mapping[str, pa.Table]) -> dict[str, Any]:
    """Gives the audit's figures as plain data; the same inputs give the same figures.

    Args:
        config: The audit.
        tables: What it found.
        predictions: Predictions on the whole test set by model name; may be empty.

    Raises:
        ConfigError: Predictions are not those of the test set.
    """
    upstream, downstream = open_dataset(config.upstream), open_dataset(config.downstream)
    states = tables.downstream["state"].to_pylist()
    return {
        "config": config.model_dump(),
        "upstream": _provenance(upstream),
        "downstream": _provenance(downstream),
        "states": {name: states.count(name) for name in ("duplicate", "very similar", "clean", "unchecked")},
        "evidence": {str(kind): tables.downstream["evidence"].to_pylist().count(str(kind)) for kind in Evidence},
        "num_candidates": tables.num_candidates,
        "num_rejected": tables.num_rejected,
        "num_pairs": tables.pairs.num_rows,
        "num_hubs": len(tables.hubs),
        "radii": radii(config),
        "accuracy": {
            name: [score(table, tables.downstream, bits) for bits in radii(config)]
            for name, table in predictions.items()
        },
        "canaries": _canary_recall(tables.canaries),
        "writer": f"bit-pretrain {metadata.version('bit-pretrain')}",
    }


def _provenance(dataset: Dataset) -> dict[str, Any]:
    version = dataset.version
    return {
        "url": dataset.store.url,
        "version": version.version,
        "num_samples": version.num_samples,
        "num_rejects": version.num_rejects,
        "num_shards": version.num_shards,
        "shards_sha256": version.shards_sha256,
        "descriptor": version.descriptor,
    }


def _canary_recall(canaries: pa.Table) -> list[dict[str, Any]]:
    names = list(dict.fromkeys(canaries["transform"].to_pylist()))
    rows = canaries.select(["transform", "found"]).to_pylist()
    result = []
    for name in [*names, "all"]:
        found = [row["found"] for row in rows if name in (row["transform"], "all")]
        low, high = wilson_interval(sum(found), len(found))
        result.append({"transform": name, "found": sum(found), "planted": len(found), "low": low, "high": high})
    return result


def pair_list(config: AuditConfig, tables: AuditTables) -> pa.Table:
    """Gives every accepted pair with what is needed to find both pictures: shard URL, key, offset and length."""
    upstream, downstream = open_dataset(config.upstream), open_dataset(config.downstream)
    rows = []
    for pair in tables.pairs.to_pylist():
        row: dict[str, Any] = {}
        for side, dataset in (("down", downstream), ("up", upstream)):
            sample = dataset.sample(Address(pair[f"{side}_shard"], pair[f"{side}_row"]))
            row |= {
                f"{side}_url": f"{dataset.store.url}/{dataset.shards[pair[f'{side}_shard']]['path']}",
                f"{side}_key": sample["key"],
                f"{side}_offset": sample["image_offset"],
                f"{side}_bytes": sample["image_bytes"],
                f"{side}_labels": " ".join(str(label) for label in sample["labels"]),
            }
        row |= {
            "distance": pair["distance"],
            "correlation": round(pair["correlation"], 4),
            "transform": element_name(pair["element"]),
            "evidence": pair["evidence"],
        }
        rows.append(row)
    names = [f"{side}_{name}" for side in ("down", "up") for name in ("url", "key", "offset", "bytes", "labels")]
    kinds = {"offset": pa.int64(), "bytes": pa.int64()}
    fields = [(name, kinds.get(name.split("_")[1], pa.string())) for name in names]
    schema = pa.schema(
        [
            *fields,
            ("distance", pa.int64()),
            ("correlation", pa.float64()),
            ("transform", pa.string()),
            ("evidence", pa.string()),
        ]
    )
    return pa.Table.from_pylist(rows, schema=schema)


def picture_pairs(config: AuditConfig, tables: AuditTables) -> list[dict[str, Any]]:
    """Gives the closest pairs with both pictures and their difference inlined, for the page."""
    upstream, downstream = open_dataset(config.upstream), open_dataset(config.downstream)
    ordered = tables.pairs.sort_by([("distance", "ascending"), ("correlation", "descending")])
    shown = []
    for pair in ordered.slice(0, _MOST_PICTURES).to_pylist():
        up_address, down_address = (
            Address(pair["up_shard"], pair["up_row"]),
            Address(pair["down_shard"], pair["down_row"]),
        )
        up, down = decode(upstream.read_image(up_address)), decode(downstream.read_image(down_address))
        turned = np.ascontiguousarray(apply_dihedral(down, pair["element"])).astype(np.uint8)
        shown.append(
            {
                "down": thumbnail(down, "downstream picture"),
                "up": thumbnail(up, "upstream picture"),
                "difference": thumbnail(_difference(up, turned), "difference after alignment"),
                "down_name": str(downstream.read_about(down_address).get("source", "")),
                "up_name": str(upstream.read_about(up_address).get("source", "")),
                "distance": pair["distance"],
                "correlation": pair["correlation"],
                "transform": element_name(pair["element"]),
                "evidence": pair["evidence"],
            }
        )
    return shown


def _difference(up: Any, down: Any) -> Any:
    from PIL import Image  # noqa: PLC0415 - 40 ms that the command line's help need not pay

    resized = np.asarray(Image.fromarray(down).resize((up.shape[1], up.shape[0]), Image.Resampling.BILINEAR))
    return np.abs(up.astype(np.int16) - resized.astype(np.int16)).astype(np.uint8)


def audit_section(config: AuditConfig, tables: AuditTables, summary: dict[str, Any]) -> dict[str, Any]:
    """Gives what the audit's part of a page shows."""
    distances = tables.pairs["distance"].to_numpy()
    edges = range(0, config.radius + _BAR_BITS, _BAR_BITS)
    counts = [(float(edge), int(((distances >= edge) & (distances < edge + _BAR_BITS)).sum())) for edge in edges]
    chart = histogram(counts, "Accepted pairs by distance", "Hamming distance in bits of 256", _BAR_BITS)
    return {
        "summary": summary,
        "pairs": picture_pairs(config, tables),
        "histogram": chart if tables.pairs.num_rows else "",
        "min_quality": MIN_QUALITY,
    }


def publish_audit(
    store: Store, config: AuditConfig, tables: AuditTables, predictions: Mapping[str, pa.Table]
) -> dict[str, Any]:
    """Writes the report folder: index.html, summary.json, pairs.parquet and .csv, and the audit's own tables.

    Returns:
        The summary.

    Raises:
        Conflict: The folder holds another report.
    """
    summary = summarize(config, tables, predictions)
    pairs = pair_list(config, tables)
    csv = io.BytesIO()
    pyarrow.csv.write_csv(pairs, csv)
    parts = {
        "pairs.parquet": to_parquet(pairs),
        "found.parquet": to_parquet(tables.pairs),
        "pairs.csv": csv.getvalue(),
        "downstream.parquet": to_parquet(tables.downstream),
        "canaries.parquet": to_parquet(tables.canaries),
    }
    digest = sha256_hex(b"".join(sha256_hex(parts[name]).encode() for name in sorted(parts)))
    summary["digest"] = digest
    for name, body in parts.items():
        commit(store, name, body)
    commit(store, "summary.json", (json.dumps(summary, indent=1) + "\n").encode())
    commit(
        store,
        "index.html",
        render("cluster", "audit.html.j2", title="Near-duplicate audit", **audit_section(config, tables, summary)),
    )
    return summary
