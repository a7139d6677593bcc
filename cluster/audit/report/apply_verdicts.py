"""New verdicts of people change a finished report: states, lists, accuracies, pages; from the tables that it keeps."""

import logging
from collections.abc import Mapping
from typing import Any

import pyarrow.compute as pc

from cluster.audit.base.sets import Pinned, Sides, samples_of
from cluster.audit.base.stored_tasks import AuditJob
from cluster.audit.base.tables import (
    CANARY_SCHEMA,
    HUB_SCHEMA,
    SHARD_STATE_SCHEMA,
    UNCHECKED_SCHEMA,
    AuditConfig,
    Found,
)
from cluster.audit.report.publish import PREDICTIONS, publish_audit, read_summary
from cluster.audit.report.recorded_verdicts import record_verdicts
from cluster.audit.result.exclusion_lists import pair_names
from cluster.audit.result.human_review import Verdict
from cluster.audit.result.states import audit_tables
from pipeline.base.errors import ConfigError
from pipeline.dataset.tables import read_table
from pipeline.store.base import Store, exists

logger = logging.getLogger(__name__)
_SCHEMAS = {"hubs": HUB_SCHEMA, "shards": SHARD_STATE_SCHEMA, "unchecked": UNCHECKED_SCHEMA, "canaries": CANARY_SCHEMA}


def import_verdicts(out: Store, verdicts: Mapping[str, Verdict], job: AuditJob) -> dict[str, Any]:
    """Record verdicts and publish the report again as they decide it.

    Args:
        out: The report.
        verdicts: By pair; on any pair that the audit compared.
        job: Where pages are written.

    Returns:
        The summary.

    Raises:
        NotFound: There is no report, or a set that it names is gone.
        ConfigError: All verdicts are on pairs that the audit did not compare, or the report lacks tables for this.
    """
    summary = read_summary(out)
    if not exists(out, PREDICTIONS):
        raise ConfigError(
            f"{out.url} is of an earlier release, or of an audit within one set, and verdicts cannot change it; run "
            f"`cluster audit` into it again, which repeats no finished work, and import the verdicts then"
        )
    config = AuditConfig.model_validate_json(out.read("audit.json"))
    sides = Sides(*(_pinned(summary[side]) for side in ("upstream", "downstream")))
    tables = {name: read_table(out, f"{name}.parquet").select(schema.names) for name, schema in _SCHEMAS.items()}
    canaries = tables.pop("canaries")
    pairs = read_table(out, "found.parquet")
    found = Found(pairs=pairs, num_candidates=summary["num_candidates"], **tables)
    compared = set(pair_names(sides, pairs))
    unknown = sorted(set(verdicts) - compared)
    if unknown:
        pairs_said = f"{len(unknown)} of {len(verdicts)} verdicts are on pairs"
        said = f"{pairs_said} that {out.url} did not compare, such as {unknown[0]}"
        if len(unknown) == len(verdicts):
            raise ConfigError(f"{said}; import them into the report that they are from")
        logger.warning("%s; they are left out: the browser keeps verdicts on earlier reports of this folder", said)
    record_verdicts(out, {pair: given for pair, given in verdicts.items() if pair in compared})
    table = read_table(out, PREDICTIONS)
    predictions = {
        model: table.filter(pc.equal(table["model"], model)).drop_columns(["model"])
        for model in dict.fromkeys(table["model"].to_pylist())
    }
    audit = audit_tables(found, samples_of(sides.down), canaries)
    return publish_audit(out, config, sides, audit, predictions, job, summary["review_each"])


def _pinned(provenance: Mapping[str, Any]) -> Pinned:
    return Pinned(provenance["url"], provenance["version"], provenance["shards_sha256"])
