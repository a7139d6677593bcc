"""The figures of an audit as plain data, a pure function of its tables."""

from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import pyarrow as pa

from cluster.audit.base.sets import Sides, content_digest, picture_name
from cluster.audit.base.tables import MIN_QUALITY, STATES, AuditConfig, AuditTables, Evidence
from cluster.audit.result.scores import cuts, radii, score
from pipeline.dataset.dataset import Address, Dataset
from trainer.scores.intervals import wilson_interval

_MOST_LISTED = 20  # classes and hubs on the page; all are in the tables
_BITS_PER_BAR = 4
_BARS_PER_UNIT = 50  # of correlation


def summarize(
    config: AuditConfig, sides: Sides, tables: AuditTables, predictions: Mapping[str, pa.Table]
) -> dict[str, Any]:
    """Return an audit's figures.

    Args:
        config: The audit.
        sides: Its sets.
        tables: What it found.
        predictions: Predictions on the whole test set by model name; may be empty.

    Raises:
        ConfigError: Predictions are not those of the test set.
    """
    counted, recall = Counter(tables.downstream["state"].to_pylist()), canary_recall(tables.canaries)
    rows = cuts(config.radius)
    return {
        "config": config.model_dump(),
        "upstream": _provenance(sides.upstream),
        "downstream": _provenance(sides.downstream),
        "states": {name: counted[name] for name in STATES},
        "evidence": {str(kind): tables.downstream["evidence"].to_pylist().count(str(kind)) for kind in Evidence},
        "cuts": [{"cut": cut.name, "num": sum(map(cut.counts, tables.downstream.to_pylist()))} for cut in rows],
        "num_candidates": tables.found.num_candidates,
        "num_refused": tables.rejected.num_rows,
        "num_pairs": tables.pairs.num_rows,
        "min_quality": MIN_QUALITY,
        "radii": radii(config.radius),
        "accuracy": {
            name: [score(table, tables.downstream, cut) for cut in rows] for name, table in predictions.items()
        },
        "canaries": recall,
        "missed_kinds": missed_kinds(recall),
        "bars": {
            "distance": _bars(tables.found.pairs, "distance", _BITS_PER_BAR),
            "correlation": _bars(tables.found.pairs, "correlation", 1 / _BARS_PER_UNIT),
        },
        "classes": states_by_class(sides.downstream, tables.downstream)[:_MOST_LISTED],
        "num_hubs": tables.found.hubs.num_rows,
        "hubs": _downstream_hubs(sides.downstream, tables.found.hubs.slice(0, _MOST_LISTED)),
        "busy": _upstream_hubs(sides.upstream, tables.pairs)[:_MOST_LISTED],
        "quarantined": [row for row in tables.found.shards.to_pylist() if row["state"] == "quarantined"],
        "unchecked": _unchecked_by_reason(tables.found.unchecked),
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
        "content_sha256": content_digest(dataset),
        "descriptor": version.descriptor,
    }


def missed_kinds(recall: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the kinds of canaries of which less than half were found."""
    return [row["transform"] for row in recall if 2 * row["found"] < row["planted"]]


def canary_recall(canaries: pa.Table) -> list[dict[str, Any]]:
    """Return found and planted canaries of each transform, with 95 % Wilson intervals; there is no mean over kinds."""
    names = list(dict.fromkeys(canaries["transform"].to_pylist()))
    rows = canaries.select(["transform", "found"]).to_pylist()
    result = []
    for name in names:
        found = [row["found"] for row in rows if row["transform"] == name]
        low, high = wilson_interval(sum(found), len(found))
        result.append({"transform": name, "found": sum(found), "planted": len(found), "low": low, "high": high})
    return result


def _bars(pairs: pa.Table, column: str, width: float) -> dict[str, dict[str, int]]:
    """Return the number of pairs by kind (duplicate, very similar, rejected) and by left edge of the bar."""
    bars: dict[str, Counter[str]] = {}
    for value, evidence in zip(pairs[column].to_pylist(), pairs["evidence"].to_pylist(), strict=True):
        kind = "duplicate" if Evidence(evidence).is_duplicate else evidence
        bars.setdefault(kind, Counter())[f"{int(value / width + 1e-6) * width:g}"] += 1
    return {kind: dict(sorted(counts.items(), key=lambda bar: float(bar[0]))) for kind, counts in sorted(bars.items())}


def states_by_class(dataset: Dataset, downstream: pa.Table) -> list[dict[str, Any]]:
    """Return the number of pictures of each class of the test set by state; classes with most duplicates first."""
    counts: dict[int, Counter[str]] = {}
    for labels, state in zip(downstream["labels"].to_pylist(), downstream["state"].to_pylist(), strict=True):
        for label in labels:
            counts.setdefault(label, Counter())[state] += 1
    rows = [
        {"label": label, "name": dataset.class_name(label), "num_samples": found.total()}
        | {state: found[state] for state in STATES}
        for label, found in counts.items()
    ]
    return sorted(rows, key=lambda row: (-row["duplicate"], -row["very similar"], row["label"]))


def _downstream_hubs(dataset: Dataset, hubs: pa.Table) -> list[dict[str, Any]]:
    return [
        row | {"name": picture_name(dataset, Address(row["shard"], row["row"])), "url": dataset.shard_url(row["shard"])}
        for row in hubs.to_pylist()
    ]


def _upstream_hubs(dataset: Dataset, pairs: pa.Table) -> list[dict[str, Any]]:
    """Return upstream pictures that match several downstream ones: one template or product shot explains many pairs."""
    counts = Counter(zip(pairs["up_shard"].to_pylist(), pairs["up_row"].to_pylist(), strict=True))
    rows: list[dict[str, Any]] = []
    for (shard, row), number in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if number == 1 or len(rows) == _MOST_LISTED:
            break
        about = {"shard": shard, "row": row, "num_matches": number}
        name = picture_name(dataset, Address(shard, row))
        rows.append(about | {"name": name, "url": dataset.shard_url(shard)})
    return rows


def _unchecked_by_reason(unchecked: pa.Table) -> dict[str, dict[str, int]]:
    """Return the number of pictures by side and reason."""
    found: dict[str, Counter[str]] = {"upstream": Counter(), "downstream": Counter()}
    for row in unchecked.to_pylist():
        found[row["side"]][row["reason"]] += row["num_samples"]
    return {side: dict(sorted(counts.items())) for side, counts in found.items()}
