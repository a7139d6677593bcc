"""`pipeline`: pack, look at and check datasets. Heavy modules are imported inside the commands."""

import json
import sys
from pathlib import Path

import click

from pipeline.console import EventLog, examples, human_bytes, progress, run
from pipeline.errors import ConfigError, EmptySource

# Amazon S3 Standard list prices, USD per 1,000 requests (docs/format.md).
_USD_PER_1000_PUTS = 0.005
_MOST_SHARD_MB = 5_000  # one S3 PUT holds 5 GB, and a shard is packed in memory


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="bit-pretrain")
def cli() -> None:
    """Images and labels into WebDataset tars, locally or on S3. Add --debug for tracebacks."""


def main() -> None:
    """Entry point of the `pipeline` command."""
    run(cli)


@cli.command(
    epilog=examples(
        "pipeline shard photos/train data/train",
        "pipeline shard labels.csv s3://bucket/set --image-column path --label-column class --workers 16",
        "pipeline shard photos/train s3://bucket/set --dry-run",
    )
)
@click.argument("source")
@click.argument("dest")
@click.option("--split", default="train", show_default=True, help="Prefix of the shard names.")
@click.option("--image-column", default="image", show_default=True, help="Column of image paths or URLs in a table.")
@click.option("--label-column", default="label", show_default=True, help="Column of labels in a table.")
@click.option("--classes", "classes_file", help="File with one class name a line; the line number is the label.")
@click.option("--shard-mb", default=256.0, show_default=True, help="Target size of a tar in MB.")
@click.option("--max-samples", default=100_000, show_default=True, help="Most samples in a tar.")
@click.option("--block-mib", default=8.0, show_default=True, help="Size of a read and shuffle block in MiB.")
@click.option("--seed", default=0, show_default=True, help="Key of the order of samples.")
@click.option("--jpeg-quality", default=95, show_default=True, type=click.IntRange(1, 100), help="For non-JPEG input.")
@click.option(
    "--max-reject-fraction",
    default=0.0,
    show_default=True,
    type=click.FloatRange(0, 1),
    help="Share of unusable pictures that may be left out (they are always listed).",
)
@click.option("--workers", default=1, show_default=True, type=click.IntRange(1), help="Packing processes.")
@click.option("--log-jsonl", help="Append events as JSON lines to this file.")
@click.option("--dry-run", is_flag=True, help="Print the plan and stop.")
def shard(
    source: str,
    dest: str,
    split: str,
    image_column: str,
    label_column: str,
    classes_file: str | None,
    shard_mb: float,
    max_samples: int,
    block_mib: float,
    seed: int,
    jpeg_quality: int,
    max_reject_fraction: float,
    workers: int,
    log_jsonl: str | None,
    dry_run: bool,
) -> None:
    """Pack SOURCE (class folders, or a CSV, TSV, JSONL or Parquet table) into a dataset at DEST.

    DEST is a local folder or s3://bucket/prefix. Interrupted, the same command goes on; finished, it does nothing.
    """
    from pipeline.image import check_pillow  # noqa: PLC0415
    from pipeline.plan import ShardConfig, plan_shards  # noqa: PLC0415
    from pipeline.shard import shard as run_shard  # noqa: PLC0415
    from pipeline.sources.open import read_source  # noqa: PLC0415
    from pipeline.store.url import absolute_url, open_store  # noqa: PLC0415

    check_pillow()
    if not (0 < shard_mb < _MOST_SHARD_MB and 0 < block_mib < _MOST_SHARD_MB):
        raise ConfigError(
            f"--shard-mb {shard_mb} and --block-mib {block_mib} are sizes above 0 and below {_MOST_SHARD_MB}"
        )
    store = open_store(dest)
    found = read_source(absolute_url(source), image_column, label_column, _class_list(classes_file))
    config = ShardConfig(
        seed=seed,
        split=_checked_split(split),
        shard_bytes=int(shard_mb * 1e6),
        max_samples_per_shard=max_samples,
        block_bytes=int(block_mib * (1 << 20)),
        jpeg_quality=jpeg_quality,
    )
    plan, rows = plan_shards(found.rows, found.classes, config)
    num_shards = len(plan.shard_ends)
    click.echo(
        f"plan {plan.plan_id}: {plan.num_samples:,} pictures, {plan.num_classes:,} classes, {num_shards:,} shards, "
        f"about {human_bytes(plan.num_bytes)}" + (f", {found.num_ignored:,} other files" if found.num_ignored else "")
    )
    if dry_run:
        num_puts = 3 * num_shards + 6
        click.echo(
            f"{num_puts:,} PUT requests, about ${num_puts / 1000 * _USD_PER_1000_PUTS:,.2f} on S3; nothing written"
        )
        return
    log = EventLog(log_jsonl)
    log.write("plan", plan_id=plan.plan_id, num_samples=plan.num_samples, num_shards=num_shards)
    with progress("packing", plan.num_samples, "images") as advance:
        version = run_shard(
            plan,
            rows,
            found.classes,
            store,
            num_workers=workers,
            max_reject_fraction=max_reject_fraction,
            on_images=advance,
            on_shard=lambda record: log.write("shard", **record.model_dump(exclude={"blocks"})),
        )
    log.write("published", **version.model_dump())
    click.echo(
        f"published {store.url} version {version.version}: {version.num_samples:,} samples in {version.num_shards:,} "
        f"shards, {human_bytes(version.num_bytes)}, {version.num_rejects:,} rejected {version.reject_reasons or ''}"
    )


def _class_list(path: str | None) -> list[str]:
    if path is None:
        return []
    if not Path(path).is_file():
        raise ConfigError(f"class file {path} does not exist; check --classes")
    try:
        names = [line.strip() for line in Path(path).read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise ConfigError(f"class file {path} is not UTF-8 ({error}); convert it") from error
    if not names:
        raise EmptySource(f"class file {path} has no name in it")
    for number, name in enumerate(names):
        if not name or name in names[:number]:
            told = f"names {name!r} again" if name else "is blank"
            raise ConfigError(f"class file {path}, line {number + 1} {told}; the line number is the label")
    return names


def _checked_split(split: str) -> str:
    if not split or not all(c.isascii() and (c.isalnum() or c in "-_") for c in split):
        raise ConfigError(f"--split {split!r}: use letters, digits, '-' and '_'")
    return split


@cli.command(epilog=examples("pipeline inspect s3://bucket/set", "pipeline inspect data/train --json"))
@click.argument("url")
@click.option("--version", "version_number", type=int, help="Manifest version; the latest by default.")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest record as JSON.")
def inspect(url: str, version_number: int | None, as_json: bool) -> None:
    """Show what the dataset at URL holds: version, sizes, classes and rejects."""
    from pipeline.dataset import open_dataset  # noqa: PLC0415
    from pipeline.inspect import class_counts, reject_lines  # noqa: PLC0415

    dataset = open_dataset(url, version_number)
    if as_json:
        click.echo(dataset.version.to_json().decode(), nl=False)
        return
    version = dataset.version
    click.echo(f"{url} version {version.version} ({version.format}, written by {version.writer})")
    click.echo(f"  {version.num_samples:,} samples, {version.num_shards:,} shards, {human_bytes(version.num_bytes)}")
    click.echo(
        f"  {dataset.blocks.num_rows:,} blocks, descriptor {version.descriptor}, plan {', '.join(version.plan_ids)}"
    )
    click.echo(f"  {version.num_classes:,} classes, {version.num_rejects:,} rejected")
    counts = class_counts(dataset)
    for label, count in counts.most_common(20):
        click.echo(f"    {dataset.classes[label] if label < len(dataset.classes) else label}: {count:,}")
    if len(counts) > 20:
        click.echo(f"    ... and {len(counts) - 20:,} more classes")
    for line in reject_lines(dataset):
        click.echo(f"  rejected {line}")


@cli.command(epilog=examples("pipeline verify s3://bucket/set", "pipeline verify data/train --level decode"))
@click.argument("url")
@click.option(
    "--level",
    type=click.Choice(["exists", "size", "checksum", "tar", "decode"]),
    default="tar",
    show_default=True,
    help="Depth; each level includes those before it.",
)
@click.option("--json", "as_json", is_flag=True, help="Print faults as JSON lines.")
def verify(url: str, level: str, as_json: bool) -> None:
    """Check the dataset at URL against its manifest; exit 1 if anything differs."""
    from pipeline.dataset import open_dataset  # noqa: PLC0415
    from pipeline.verify import verify as faults_of  # noqa: PLC0415

    dataset = open_dataset(url)
    num_faults = 0
    with progress("verifying", dataset.version.num_shards, "shards") as advance:
        for fault in faults_of(dataset, level, advance):
            num_faults += 1
            as_line = json.dumps({"path": fault.path, "problem": fault.problem})
            click.echo(as_line if as_json else f"FAULT {fault.path}: {fault.problem}")
    if num_faults:
        click.echo(f"error: {num_faults} faults in {url}; restore the named shards or pack the set again", err=True)
        sys.exit(1)
    click.echo(f"{url}: {dataset.version.num_shards:,} shards sound at level {level}")
