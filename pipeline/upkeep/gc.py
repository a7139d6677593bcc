"""What a destination holds that no version needs: left by writers that died and by abandoned runs."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.dataset.dataset import Dataset
from pipeline.dataset.versions import published_version
from pipeline.packing.commit import read_plan
from pipeline.packing.plan import plan_key
from pipeline.store.base import Entry, Store, Unfinished, exists
from pipeline.store.lease import PREFIX as LEASES

_SECONDS_PER_HOUR = 3600.0
_PLAN_DIGITS = 8  # of a plan's id in the names of its shards


@dataclass(frozen=True)
class Garbage:
    """One thing that may be removed.

    Attributes:
        path: Key of the object.
        why: What it is.
        num_bytes: Its size; -1 where the store does not report it.
        unfinished: What to discard, where it is no object.
    """

    path: str
    why: str
    num_bytes: int
    unfinished: Unfinished | None = None


def garbage(store: Store, *, older_than_hours: float, with_abandoned_runs: bool) -> Iterator[Garbage]:
    """Yield what may be removed; remove nothing.

    Args:
        store: The destination.
        older_than_hours: Younger things are left alone: a run may be using them.
        with_abandoned_runs: Whether plans that were never published, and all they packed, count.
    """
    before = time.time() - older_than_hours * _SECONDS_PER_HOUR
    for unfinished in store.unfinished():
        if unfinished.modified <= before:
            yield Garbage(unfinished.key, "incomplete upload", -1, unfinished)
    published = published_version(store)
    needed, plan_ids = _needed(store)
    abandoned = _abandoned(store, plan_ids, before) if with_abandoned_runs else set()
    # Records first: a shard whose record is gone is no shard, the other way round it would be a broken one.
    for prefix in ("commits/", "shards/", "rejects/", "plans/"):
        for entry in store.list(prefix):
            why = _why(entry, needed, plan_ids, abandoned)
            if why and entry.modified <= before:
                yield Garbage(entry.key, why, entry.num_bytes)
    if published:
        leases = list(store.list(LEASES))
        for entry in leases[:-1]:  # the newest fences all others
            if entry.modified <= before:
                yield Garbage(entry.key, "old lease", entry.num_bytes)


def remove(store: Store, found: Garbage) -> None:
    """Remove one thing that `garbage` found."""
    if found.unfinished:
        store.discard(found.unfinished)
    else:
        store.delete(found.path)


def _abandoned(store: Store, plan_ids: set[str], before: float) -> set[str]:
    """Return the plans never published to which nothing was written since: a live run commits shards."""
    newest: dict[str, float] = {}
    for prefix in ("plans/", "commits/"):
        for entry in store.list(prefix):
            plan = entry.key.split("/")[1]
            newest[plan] = max(newest.get(plan, 0.0), entry.modified)
    if any(entry.modified > before for entry in store.list(LEASES)):
        return set()  # a run has begun that may be about to go on with one of them
    return {plan for plan, written in newest.items() if written <= before} - plan_ids


def _needed(store: Store) -> tuple[set[str], set[str]]:
    """Return the keys that the latest version needs (versions only add), and its plans, with those they were made from.

    The plans of all rows hold the digests that `append` compares new pictures with.
    """
    published = published_version(store)
    if not published:
        return set(), set()
    version = published.version
    keys = {str(key) for key in (version.shards, version.blocks, version.classes, version.rejects)}
    for row in Dataset(store, version).shards:
        keys |= {row["path"], row["sidecar"]}
    plans = [read_plan(store, plan_id) for plan_id in version.plan_ids if exists(store, plan_key(plan_id))]
    return keys, {*version.plan_ids, *(plan.slimmed_from for plan in plans if plan.slimmed_from)}


def _why(entry: Entry, needed: set[str], plan_ids: set[str], abandoned: set[str]) -> str | None:
    kind, _, rest = entry.key.partition("/")
    plan = rest.partition("/")[0]
    if kind in ("plans", "commits", "rejects"):
        return "abandoned run" if plan in abandoned else None
    if kind == "shards":
        if plan in {known[:_PLAN_DIGITS] for known in abandoned}:
            return "abandoned run"
        # Index files of `pipeline export` lie beside the shards.
        is_ours = plan in {known[:_PLAN_DIGITS] for known in plan_ids} and entry.key.endswith((".tar", ".parquet"))
        return "orphan of a published plan" if is_ours and entry.key not in needed else None
    return None
