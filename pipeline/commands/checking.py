"""`pipeline verify`, `repair` and `gc`."""

import json
import sys

import click

from pipeline.base.console import echo, examples, progress, say
from pipeline.base.quantities import human_bytes, quantity
from pipeline.base.text import printable
from pipeline.commands.options import pool_of, pool_options

LEVELS = ("exists", "size", "checksum", "tar", "decode")


@click.command(
    epilog=examples(
        "pipeline verify s3://bucket/set",
        "pipeline verify data/train --level decode --workers 2",
        "pipeline verify s3://bucket/set --level decode --sample 0.01 --ray",
    )
)
@click.argument("url")
@click.option(
    "--level",
    type=click.Choice(LEVELS),
    default="tar",
    show_default=True,
    help="Depth; each level includes those before it.",
)
@click.option("--sample", "fraction", default=1.0, type=click.FloatRange(0, 1), help="Share of the shards to check.")
@click.option("--seed", default=0, show_default=True, help="Which ones.")
@click.option("--json", "as_json", is_flag=True, help="Print faults as JSON lines.")
@pool_options
def verify(url: str, level: str, fraction: float, seed: int, as_json: bool, workers: int | None, on_ray: bool) -> None:
    """Check the dataset at URL against its manifest; exit 1 if anything differs."""
    from pipeline.packing.foreign_tars.open_any import absolute_pattern, open_any  # noqa: PLC0415
    from pipeline.upkeep.verify import sampled_shards, verify as faults_of  # noqa: PLC0415

    dataset = open_any(absolute_pattern(url))
    shards = sampled_shards(len(dataset.shards), fraction, seed)
    num_faults = 0
    with pool_of(workers, on_ray) as pool, progress("verifying", len(shards), "shards") as advance:
        for fault in faults_of(dataset, level, pool, shards, lambda num_bytes: advance(1, num_bytes)):
            num_faults += 1
            row = {"path": fault.path, "problem": fault.problem, "shard": fault.shard}
            echo(json.dumps(row) if as_json else printable(f"FAULT {fault.path}: {fault.problem}"))
    if num_faults:
        say(f"error: {quantity(num_faults, 'fault')} in {url}; run `pipeline repair {url} --level {level}`", err=True)
        sys.exit(1)
    total = "" if len(shards) == len(dataset.shards) else f" of {len(dataset.shards):,}"
    found = quantity(len(shards), "shard") if not total else f"{len(shards):,}{total} shards"
    say(f"{url}: {found} sound at level {level}")


@click.command(epilog=examples("pipeline repair s3://bucket/set", "pipeline repair data/train --level decode"))
@click.argument("url")
@click.option(
    "--level", type=click.Choice(LEVELS), default="checksum", show_default=True, help="How deep to look for damage."
)
@click.option("--scratch", help="Folder of each worker with room for a shard; its temporary folder by default.")
@pool_options
def repair(url: str, level: str, scratch: str | None, workers: int | None, on_ray: bool) -> None:
    """Build damaged or missing shards of the dataset at URL again from their plan and their sources.

    Only the same bytes are put back. Exit 1 if a shard could not be repaired.
    """
    from pipeline.dataset.dataset import open_dataset  # noqa: PLC0415
    from pipeline.store.url import absolute_url  # noqa: PLC0415
    from pipeline.upkeep.repair import repair_shards  # noqa: PLC0415
    from pipeline.upkeep.verify import verify as faults_of  # noqa: PLC0415

    dataset = open_dataset(absolute_url(url))
    with pool_of(workers, on_ray) as pool:
        with progress("looking for damage", len(dataset.shards), "shards") as advance:
            faults = list(faults_of(dataset, level, pool, None, lambda num_bytes: advance(1, num_bytes)))
        bad = sorted({fault.shard for fault in faults if fault.shard >= 0})
        num_failed = sum(fault.shard < 0 for fault in faults)
        for fault in faults:
            say(f"FAULT {fault.path}: {fault.problem}")
        with progress("rebuilding", len(bad), "shards") as advance:
            for number, problem in repair_shards(dataset, bad, pool, scratch):
                path = dataset.shards[number]["path"]
                say(f"NOT REPAIRED {path}: {problem}" if problem else f"repaired {path}")
                num_failed += bool(problem)
                advance(1, dataset.shards[number]["num_bytes"])
    if num_failed:
        say(f"error: {quantity(num_failed, 'fault')} in {url} could not be repaired", err=True)
        sys.exit(1)
    say(f"{url}: {quantity(len(bad), 'shard')} repaired")


@click.command(epilog=examples("pipeline gc s3://bucket/set", "pipeline gc s3://bucket/set --abandoned-runs --delete"))
@click.argument("url")
@click.option(
    "--older-than-hours", default=24.0, show_default=True, type=click.FloatRange(0), help="Spare what is younger."
)
@click.option("--abandoned-runs", is_flag=True, help="Include plans that were never published and what they packed.")
@click.option("--delete", is_flag=True, help="Remove what is listed; without it nothing is removed.")
def gc(url: str, older_than_hours: float, abandoned_runs: bool, delete: bool) -> None:
    """List, or remove, what dead writers and abandoned runs left at URL. No version of the dataset needs any of it."""
    from pipeline.store.url import absolute_url, open_store  # noqa: PLC0415
    from pipeline.upkeep.gc import garbage, remove  # noqa: PLC0415

    store = open_store(absolute_url(url))
    count = num_bytes = 0
    for found in garbage(store, older_than_hours=older_than_hours, with_abandoned_runs=abandoned_runs):
        say(f"{'removed' if delete else 'would remove'} {found.path}: {found.why}")
        if delete:
            remove(store, found)
        count += 1
        num_bytes += max(0, found.num_bytes)
    verb = "removed" if delete else "to remove; run again with --delete"
    say(f"{url}: {quantity(count, 'object')}, {human_bytes(num_bytes)} {verb}")
