"""The audit from two datasets to its tables: all pairs, the states of the pictures, canaries."""

from cluster.audit.base.sets import Sides, pin, samples_of
from cluster.audit.base.stored_tasks import AuditJob
from cluster.audit.base.tables import AuditConfig, AuditTables
from cluster.audit.canary_task import measure_canaries
from cluster.audit.find_pairs import find_pairs
from cluster.audit.result.states import audit_tables


def pin_sides(config: AuditConfig) -> Sides:
    """Pin the versions of both sets. Raises BitError as pipeline.packing.foreign_tars.open_any.open_any."""
    return Sides(pin(config.upstream), pin(config.downstream))


def run_audit(config: AuditConfig, sides: Sides, job: AuditJob) -> AuditTables:
    """Find the near-duplicates between two datasets; run again after an interruption, it continues.

    Args:
        config: See AuditConfig.
        sides: Of the configuration, as `pin_sides` returns them.
        job: Where its tasks run.

    Raises:
        BitError: As find_pairs.
    """
    found = find_pairs(config, sides, job)
    job.reporting.say("searching for planted canaries")
    return audit_tables(found, samples_of(sides.down), measure_canaries(config, sides, job))
