"""The report of an audit: a folder of HTML pages that open offline, and every pair as Parquet and CSV."""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.csv

from cluster.audit.base.sets import Sides, samples_of
from cluster.audit.base.stored_tasks import AuditJob
from cluster.audit.base.tables import AuditConfig, AuditTables, Evidence
from cluster.audit.report.pair_pages import PAIRS_PER_PAGE, page_name, pair_card, shown_pairs, write_pages
from cluster.audit.report.recorded_verdicts import read_verdicts, write_for_pages
from cluster.audit.report.unchecked_page import write_unchecked
from cluster.audit.result.exclusion_lists import (
    PAIR_LIST_SCHEMA,
    exclusions,
    named_states,
    named_unchecked,
    pair_list,
    with_names,
    with_sources,
)
from cluster.audit.result.human_review import Verdict, decide, draw_pairs, precision_by_band
from cluster.audit.result.states import audit_tables
from cluster.audit.result.summary import states_by_class, summarize
from pipeline.base.charts import Layer, layered_histogram
from pipeline.base.errors import Conflict, NotFound
from pipeline.base.html import render_page
from pipeline.base.records import json_bytes
from pipeline.base.text import csv_cell
from pipeline.dataset.schema import sha256_hex, to_parquet
from pipeline.store.base import Store, put
from trainer.scores.predictions import NAMED_PREDICTION_SCHEMA, PREDICTION_SCHEMA

_GALLERY = 12  # pairs on the first page
_MOST_IN_TABLE = 20_000  # rows of the table of pairs on a page
_KINDS = ("duplicate", "very similar", "rejected")
PREDICTIONS = "predictions.parquet"
_PREDICTION_NAMES = ("key", "source", "label_names", "prediction_name")
_SUMMARY, _CONFIG = "summary.json", "audit.json"
_DRAWN = "review.json"


def publish_audit(
    out: Store,
    config: AuditConfig,
    sides: Sides,
    tables: AuditTables,
    predictions: Mapping[str, pa.Table],
    job: AuditJob,
    review_each: int = 30,
) -> dict[str, Any]:
    """Write the report; run again on changed data, it replaces the old one and keeps the verdicts.

    Args:
        out: The report's folder.
        config: The audit.
        sides: Its sets.
        tables: What it found.
        predictions: Predictions on the whole test set by model name; may be empty.
        job: Where pages are written.
        review_each: Most pairs per score band on the review sheet.

    Returns:
        The summary.

    Raises:
        Conflict: The folder holds the report of another audit.
        ConfigError: Predictions are not those of the test set.
    """
    claim(out, config)
    verdicts = read_verdicts(out)
    by_rule, compared = tables.found.pairs, pair_list(sides, tables.found.pairs)
    decided = decide(by_rule, [row["pair"] for row in compared], verdicts, config.radius)
    tables = audit_tables(replace(tables.found, pairs=decided), samples_of(sides.down), tables.canaries)
    summary = summarize(config, sides, tables, predictions) | {"review_each": review_each}
    out.delete(_SUMMARY)  # a folder without it is incomplete
    drawn = draw_pairs(closest_first(compared), config.radius, review_each, config.seed)
    listed = closest_first(judged_list(compared, decided["evidence"].to_pylist(), verdicts))
    listed = with_sources(sides, listed)
    key = sha256_hex(out.read(_CONFIG))[:16]  # of the browser's storage: verdicts survive a rerun
    parts = {
        "found.parquet": to_parquet(by_rule),
        "hubs.parquet": to_parquet(with_names(sides.downstream, tables.found.hubs)),
        PREDICTIONS: to_parquet(_with_models(predictions)),
        "downstream.parquet": to_parquet(named_states(sides.downstream, tables.downstream)),
        "canaries.parquet": to_parquet(with_names(sides.downstream, tables.canaries, "down_")),
        "unchecked.parquet": to_parquet(named_unchecked(sides, tables.found.unchecked)),
        "shards.parquet": to_parquet(tables.found.shards),
        "classes.csv": csv_bytes(pa.Table.from_pylist(states_by_class(sides.downstream, tables.downstream))),
        **{name: to_parquet(table) for name, table in exclusions(sides, tables).items()},
    }
    for name, body in parts.items():
        put(out, name, body)
    summary["digest"] = sha256_hex(b"".join(sha256_hex(parts[name]).encode() for name in sorted(parts)))
    summary["num_pages"] = write_pages(out, sides, listed, job, key)
    write_unchecked(out, sides, tables)
    bands: dict[str, list[dict[str, Any]]] = {}
    for row in drawn:
        bands.setdefault(row["band"], []).append(pair_card(sides, row))
    put(
        out,
        "review.html",
        render_page("cluster.audit.report", "review.html.j2", title="Review sheet", bands=bands, key=key),
    )
    put(out, _DRAWN, json_bytes([{name: row[name] for name in ("pair", "band", "band_size")} for row in drawn]))
    put(out, "gallery.json", json_bytes([pair_card(sides, row) for row in pick_evenly(listed)]))
    _write_pairs(out, listed)
    return _finish(out, summary)


def judged_list(
    compared: Sequence[Mapping[str, Any]], evidence: Sequence[str], verdicts: Mapping[str, Verdict]
) -> list[dict[str, Any]]:
    """Return the rows of PAIR_LIST_SCHEMA that are shown: accepted pairs, and all that a person judged.

    Args:
        compared: All compared pairs, as pair_list returns them.
        evidence: Of each, after verdicts.
        verdicts: By pair.
    """
    rows = []
    for row, kind in zip(compared, evidence, strict=True):
        given = verdicts.get(row["pair"])
        if kind != Evidence.REJECTED or given:
            said = {"verdict": given.verdict, "judged_by": given.by, "judged_at": given.at} if given else {}
            rows.append({**dict.fromkeys(("verdict", "judged_by", "judged_at")), **row, "evidence": kind, **said})
    return rows


def _with_models(predictions: Mapping[str, pa.Table]) -> pa.Table:
    """Return the predictions of all models in one table, which later verdicts need; old ones name no pictures."""
    fields = [*PREDICTION_SCHEMA, *(NAMED_PREDICTION_SCHEMA.field(name) for name in _PREDICTION_NAMES)]
    schema = pa.schema([pa.field("model", pa.string()), *fields])
    parts = [schema.empty_table()]
    for model, table in predictions.items():
        columns = {field.name: table[field.name] for field in fields if field.name in table.column_names}
        empty = {field.name: pa.nulls(table.num_rows, field.type) for field in fields if field.name not in columns}
        models = pa.array([model] * table.num_rows, pa.string())
        parts.append(pa.table({"model": models} | columns | empty).select(schema.names).cast(schema))
    return pa.concat_tables(parts)


def read_summary(out: Store) -> dict[str, Any]:
    """Read the summary of a report. Raises NotFound."""
    try:
        found: dict[str, Any] = json.loads(out.read(_SUMMARY))
    except NotFound as error:
        raise NotFound(f"{out.url} holds no finished audit (no {_SUMMARY}); create one with `cluster audit`") from error
    return found


def audit_section(summary: Mapping[str, Any], gallery: Sequence[Mapping[str, Any]], folder: str = "") -> dict[str, Any]:
    """Return the variables of the audit's section of a page.

    Args:
        summary: The audit's figures.
        gallery: Some of its pairs, as pair_pages.pair_card returns them.
        folder: Of the audit's other pages, relative to the page.
    """
    config = summary["config"]
    by_distance = layered_histogram(
        _layers(summary["bars"]["distance"]), 4, "Compared pairs by distance", "Hamming distance in bits of 256",
        marks=summary["radii"],
    )  # fmt: skip
    by_correlation = layered_histogram(
        _layers(summary["bars"]["correlation"]), 0.02, "Compared pairs by correlation", "aligned correlation"
    )  # fmt: skip
    return {"summary": summary, "config": config, "gallery": gallery, "charts": [by_distance, by_correlation],
            "folder": folder}  # fmt: skip


def read_section(out: Store, folder: str = "") -> dict[str, Any]:
    """Return the variables of the audit's section of a page, from its report. Raises NotFound."""
    return audit_section(read_summary(out), json.loads(out.read("gallery.json")), folder)


def _layers(bars: Mapping[str, Mapping[str, int]]) -> list[Layer]:
    return [Layer(kind, {float(edge): count for edge, count in bars[kind].items()}) for kind in _KINDS if kind in bars]


def claim(out: Store, config: AuditConfig) -> None:
    """Claim a folder for an audit. Raises Conflict if it holds another one, or one of other settings."""
    if out.create(_CONFIG, config.to_json()):
        return
    try:
        held = AuditConfig.model_validate_json(out.read(_CONFIG))
    except ValueError as error:
        raise Conflict(f"{out.url} holds the report of an audit that cannot be read: {error}") from error
    names = [name for name in AuditConfig.model_fields if getattr(held, name) != getattr(config, name)]
    if names:
        told = ", ".join(f"{name} {getattr(held, name)} instead of {getattr(config, name)}" for name in names)
        said = f"{out.url} holds the report of another audit: {told}"
        raise Conflict(f"{said}; choose another destination, or the settings that it has")


def closest_first(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sort rows of pairs, the closest first."""
    return sorted(rows, key=lambda row: (row["distance"], -row["correlation"], row["pair"]))


def pick_evenly(rows: Sequence[Any]) -> list[Any]:
    """Return the rows of the gallery, evenly spaced from the first to the last."""
    if len(rows) <= _GALLERY:
        return list(rows)
    return [rows[round(number * (len(rows) - 1) / (_GALLERY - 1))] for number in range(_GALLERY)]


def _write_pairs(out: Store, rows: Sequence[dict[str, Any]]) -> None:
    table = pa.Table.from_pylist(list(rows), schema=PAIR_LIST_SCHEMA)
    put(out, "pairs.parquet", to_parquet(table))
    put(out, "pairs.csv", csv_bytes(table))
    columns = ("pair", "evidence", "distance", "correlation", "quality", "transform", "down_source", "up_source",
               "down_classes", "up_classes", "verdict")  # fmt: skip
    pages = {row["pair"]: page_name(number // PAIRS_PER_PAGE + 1) for number, row in enumerate(shown_pairs(rows))}
    shown = [[row[name] for name in columns] + [pages.get(row["pair"])] for row in shown_pairs(rows, _MOST_IN_TABLE)]
    page = render_page(
        "cluster.audit.report", "pair_table.html.j2", title="All pairs", rows=shown, num_pairs=table.num_rows
    )
    put(out, "pairs.html", page)


def _finish(out: Store, summary: dict[str, Any]) -> dict[str, Any]:
    """Write what depends on the verdicts, and the summary last; return it."""
    verdicts = {pair: given.verdict for pair, given in read_verdicts(out).items()}
    summary["review"] = precision_by_band(json.loads(out.read(_DRAWN)), verdicts)
    summary["num_judged"] = len(verdicts)
    write_for_pages(out)
    section = audit_section(summary, json.loads(out.read("gallery.json")))
    put(
        out, "index.html", render_page("cluster.audit.report", "audit.html.j2", title="Near-duplicate audit", **section)
    )
    put(out, _SUMMARY, json_bytes(summary))
    return summary


def csv_bytes(table: pa.Table) -> bytes:
    """Return a table as a CSV file; no text in it is a formula to a spreadsheet."""
    sink = io.BytesIO()
    for place, field in enumerate(table.schema):
        if pa.types.is_string(field.type):
            cells = [None if text is None else csv_cell(text) for text in table[place].to_pylist()]
            table = table.set_column(place, field, pa.array(cells, field.type))
    pyarrow.csv.write_csv(table, sink)
    return sink.getvalue()
