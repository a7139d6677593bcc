"""Verdicts of people on pairs: which are drawn at random, how verdicts are read, what they decide and imply."""

import csv
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from cluster.audit.base.tables import Evidence, is_duplicate
from cluster.audit.result.best_match import keep_best_matches
from cluster.audit.result.scores import radii
from pipeline.base.errors import ConfigError
from pipeline.base.records import Record
from trainer.scores.intervals import wilson_interval

# ciFAIR's scale: 0 the same picture, 1 a near-duplicate, 2 very similar, no: different pictures.
VERDICTS = ("0", "1", "2", "no")
_COPIES = ("0", "1")
_DECIDED = {"2": Evidence.SIMILAR, "no": Evidence.REJECTED}
_CERTAIN = (Evidence.SAME_BYTES, Evidence.SAME_PIXELS)  # need no review


class Verdict(Record):
    """What a person said about a pair.

    Attributes:
        verdict: One of VERDICTS.
        by: Who said so; empty if that was not recorded.
        at: When it was recorded, in UTC as ISO 8601; empty if that was not recorded.
    """

    verdict: str
    by: str = ""
    at: str = ""


def decide(pairs: pa.Table, names: Sequence[str], verdicts: Mapping[str, Verdict], radius: int) -> pa.Table:
    """Return the pairs with the evidence that people gave where they judged; a verdict outweighs every rule.

    A match that a person rejects competes no longer: what it had demoted counts as it would without it.

    Args:
        pairs: As of tables.Found; without `own_evidence`, as earlier releases wrote it, demoted pairs stay so.
        names: The `pair` of each, as exclusion_lists.pair_list returns it.
        verdicts: By pair. 0 and 1 make a copy, which keeps the evidence of a duplicate or becomes `judged a copy`; 2
            makes a very similar pair, and `no` a rejected one. Further copies of a downstream picture that loses its
            duplicates so are its duplicates then.
        radius: Of the search by code.
    """
    index, said = pairs.schema.get_field_index("evidence"), [verdicts.get(name) for name in names]
    competing = [
        str(Evidence.REJECTED) if given and given.verdict == "no" else row.get("own_evidence", row["evidence"])
        for row, given in zip(pairs.to_pylist(), said, strict=True)
    ]
    ruled = keep_best_matches(pairs.set_column(index, "evidence", pa.array(competing, pa.string())))
    rows = ruled.to_pylist()
    for row, by_rule, given in zip(rows, pairs["evidence"].to_pylist(), said, strict=True):
        if given:
            row["evidence"] = _decided(by_rule, given.verdict)
    duplicates = {(row["down_shard"], row["down_row"]) for row in rows if is_duplicate(row["evidence"])}
    for row in rows:
        if row["evidence"] == Evidence.FURTHER and (row["down_shard"], row["down_row"]) not in duplicates:
            row["evidence"] = str(Evidence.NEAR if row["distance"] <= radius else Evidence.EMBEDDED)
    evidence = [row["evidence"] for row in rows]
    return pairs.set_column(index, "evidence", pa.array(evidence, pa.string()))


def _decided(evidence: str, verdict: str) -> str:
    if verdict in _COPIES:
        return evidence if is_duplicate(evidence) else str(Evidence.JUDGED)
    return str(_DECIDED[verdict])


def band(evidence: str, distance: int, radius: int) -> str | None:
    """Return the score band of a pair; None if there is nothing to judge."""
    if evidence in _CERTAIN:
        return None
    if not Evidence(evidence).is_duplicate:
        return evidence
    low = -1
    for high in radii(radius):
        if distance <= high:
            return f"duplicate, {low + 1} to {high} bits"
        low = high
    return f"duplicate, above {radius} bits"


def draw_pairs(pairs: Sequence[Mapping[str, Any]], radius: int, each: int, seed: int) -> list[dict[str, Any]]:
    """Draw pairs for review at random, equally many of each band.

    The choice is keyed by the pictures themselves: a pair that was drawn is drawn again in a later audit as long as
    fewer than `each` new ones come before it, so that verdicts stay useful.

    Args:
        pairs: Rows with pair, evidence, distance.
        radius: Of the audit.
        each: Most pairs per band.
        seed: Key of the choice.

    Returns:
        The rows with their `band` and `band_size`, band by band.
    """
    bands: dict[str, dict[str, dict[str, Any]]] = {}
    for pair in pairs:
        name = band(pair["evidence"], pair["distance"], radius)
        if name:
            bands.setdefault(name, {})[pair["pair"]] = dict(pair)
    drawn = []
    for name in sorted(bands, key=_band_order):
        members = sorted(bands[name].values(), key=lambda pair: _draw_key(seed, pair["pair"]))
        drawn += [pair | {"band": name, "band_size": len(members)} for pair in members[:each]]
    return drawn


def _band_order(name: str) -> tuple[int, int]:
    if name.startswith("duplicate"):
        digits = [int(word) for word in name.split() if word.isdigit()]
        return 0, digits[0]
    return 1, list(Evidence).index(Evidence(name))


def _draw_key(seed: int, pair: str) -> str:
    return hashlib.sha256(f"{seed} {pair}".encode()).hexdigest()


def parse_verdicts(body: bytes, name: str) -> dict[str, str]:
    """Read the verdicts that a page saved, as JSON or CSV.

    Raises:
        ConfigError: The file is neither, or a verdict is not one of VERDICTS.
    """
    try:
        text = body.decode("utf-8-sig")
        if text.lstrip().startswith("{"):
            saved = json.loads(text)["verdicts"]
            verdicts = {str(pair): str(verdict) for pair, verdict in saved.items()}
        else:
            verdicts = {row["pair"]: row["verdict"] for row in csv.DictReader(io.StringIO(text))}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{name} holds no verdicts ({error!r}); give the JSON or CSV file that the pages save"
        ) from error
    for pair, verdict in verdicts.items():
        if verdict not in VERDICTS:
            raise ConfigError(f"{name}: pair {pair} has verdict {verdict!r}; it must be one of {', '.join(VERDICTS)}")
    return verdicts


def precision_by_band(drawn: Sequence[Mapping[str, Any]], verdicts: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return for each band how many of its reviewed pairs are copies (verdict 0 or 1), with a 95 % Wilson interval.

    The last row, `all duplicates`, weighs the bands of duplicates by their sizes, once each has a verdict. Its interval
    adds the weighted half-widths of the bands' intervals in quadrature.
    """
    rows: list[dict[str, Any]] = []
    for name in dict.fromkeys(pair["band"] for pair in drawn):
        members = [pair for pair in drawn if pair["band"] == name]
        reviewed = [verdicts[pair["pair"]] for pair in members if pair["pair"] in verdicts]
        copies = sum(verdict in _COPIES for verdict in reviewed)
        low, high = wilson_interval(copies, len(reviewed))
        share = copies / len(reviewed) if reviewed else None
        rows.append(
            {"band": name, "num_pairs": members[0]["band_size"], "num_drawn": len(members),
             "num_reviewed": len(reviewed), "num_copies": copies, "share": share, "low": low, "high": high}
        )  # fmt: skip
    duplicates = [row for row in rows if row["band"].startswith("duplicate")]
    if duplicates and all(row["num_reviewed"] for row in duplicates):
        rows.append(_weighted(duplicates))
    return rows


def _weighted(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    total = sum(row["num_pairs"] for row in rows)
    share = sum(row["num_pairs"] * row["share"] for row in rows) / total
    below = sum((row["num_pairs"] / total * (row["share"] - row["low"])) ** 2 for row in rows) ** 0.5
    above = sum((row["num_pairs"] / total * (row["high"] - row["share"])) ** 2 for row in rows) ** 0.5
    counts = {name: sum(row[name] for row in rows) for name in ("num_pairs", "num_drawn", "num_reviewed", "num_copies")}
    return {"band": "all duplicates", **counts, "share": share, "low": max(0.0, share - below),
            "high": min(1.0, share + above)}  # fmt: skip
