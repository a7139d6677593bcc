"""`pipeline shard`, `append` and `retry-rejects`."""

from typing import TYPE_CHECKING, Any

import click

from pipeline.base.console import examples, say
from pipeline.base.errors import ConfigError
from pipeline.base.quantities import human_bytes, human_seconds, quantity
from pipeline.commands.options import checked_split, columns_of, job_of, job_options, source_options

if TYPE_CHECKING:
    from pipeline.dataset.schema import ManifestVersion
    from pipeline.packing.make_plan import Planned

# Amazon S3 Standard list prices, USD (docs/format.md).
_USD_PER_1000_PUTS = 0.005
_USD_PER_1000_GETS = 0.0004
_USD_PER_GB_MONTH = 0.023
_MOST_MB = 100_000
_PART_BYTES = 64 << 20  # store.s3: larger objects go up in parts of this size, one request each and two more


@click.command(
    epilog=examples(
        "pipeline shard photos/train data/train",
        "pipeline shard labels.csv s3://bucket/set --image-column path --label-column class --workers 16",
        "pipeline shard 'hf://datasets/org/name/data/train-*.parquet' s3://bucket/set --ray",
        "pipeline shard sheet.csv data/set --image-column path --label-column kind  # also with ';' between columns",
        "pipeline shard unsorted/ data/new --no-labels  # images in any folders",
        "pipeline shard photos/test data/test --split test --classes-from data/train",
        "pipeline shard 'pairs/{000..099}.tar' data/left --image-member left.jpg",
        "pipeline shard folders.tar data/set --folder-labels",
        "pipeline shard cc=s3://old/cc12m web='s3://old/web/{00000..00999}.tar' s3://bucket/set --no-labels --dry-run",
    )
)
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...")
@click.argument("dest")
@click.option("--split", default="train", show_default=True, help="Prefix of the shard names.")
@source_options
@click.option("--shard-mb", default=256.0, show_default=True, help="Target size of a tar in MB.")
@click.option(
    "--max-samples", default=100_000, show_default=True, type=click.IntRange(1), help="Most samples in a tar."
)
@click.option("--block-mib", default=8.0, show_default=True, help="Size of a read and shuffle block in MiB.")
@click.option("--seed", default=0, show_default=True, help="Key of the order of samples.")
@click.option(
    "--check",
    type=click.Choice(["decode", "header"]),
    default="decode",
    show_default=True,
    help="Decode every picture and take its fingerprint, or look at headers and end marks only.",
)
@click.option("--resize", "shorter_side_px", type=click.IntRange(8), help="Shrink pictures to this shorter side.")
@click.option("--reencode", is_flag=True, help="Encode every picture again, without its metadata.")
@click.option("--jpeg-quality", default=95, show_default=True, type=click.IntRange(1, 100), help="Of what is encoded.")
@click.option("--max-image-mb", default=64.0, show_default=True, help="Larger files are rejected.")
@click.option("--skip-duplicates", is_flag=True, help="Pack pictures with equal bytes once; reads them all twice.")
@job_options
@click.option("--dry-run", is_flag=True, help="Print the plan, its cost and its time, and stop.")
def shard(sources: tuple[str, ...], dest: str, **options: Any) -> None:
    """Pack SOURCEs into a dataset at DEST, a local folder or s3://bucket/prefix.

    A SOURCE is a folder of class folders; a CSV, TSV, JSONL or Parquet table of paths, URLs or image bytes; WebDataset
    tars; or a dataset packed by this command. Tables and tars may be patterns, at any URL that fsspec reads. Of several
    sources, NAME=URL names one. Interrupted, the same command goes on; finished, it does nothing.

    Each file, member and row ends as packed, rejected or ignored, and is counted. Every label arrives, or nothing is
    packed: tars and tables without labels need --no-labels.
    """
    from pipeline.image.policy import ImagePolicy  # noqa: PLC0415
    from pipeline.packing.jobs import plan_sources, shard as run_shard  # noqa: PLC0415
    from pipeline.packing.plan import ShardConfig  # noqa: PLC0415
    from pipeline.packing.sources.open import open_sources  # noqa: PLC0415

    shard_bytes = _bytes("--shard-mb", options.pop("shard_mb"), 1_000_000)
    block_bytes = _bytes("--block-mib", options.pop("block_mib"), 1 << 20)
    max_bytes = _bytes("--max-image-mb", options.pop("max_image_mb"), 1_000_000)
    config = ShardConfig(
        seed=options.pop("seed"),
        split=checked_split(options.pop("split")),
        shard_bytes=shard_bytes,
        max_samples_per_shard=options.pop("max_samples"),
        block_bytes=block_bytes,
        image=ImagePolicy(
            check=options.pop("check"),
            shorter_side_px=options.pop("shorter_side_px"),
            reencode=options.pop("reencode"),
            jpeg_quality=options.pop("jpeg_quality"),
            max_bytes=max_bytes,
        ),
        skip_duplicates=options.pop("skip_duplicates"),
    )
    dry_run = options.pop("dry_run")
    columns = _columns(options)
    with job_of(dest, **options) as job:
        opened = open_sources(sources, columns)
        if dry_run:
            _print_plan(plan_sources(job, opened, config), job.pool.num_slots, job.store.url.startswith("s3://"))
            return
        _print_published(job.store.url, run_shard(job, opened, config, columns))


@click.command(
    epilog=examples("pipeline append photos/new data/train", "pipeline append more.csv s3://bucket/set --ray")
)
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...")
@click.argument("dest")
@source_options
@job_options
def append(sources: tuple[str, ...], dest: str, **options: Any) -> None:
    """Pack what the dataset at DEST does not have yet into a new version of it, with the settings it was packed with.

    Pictures are identified by their names in the source. Running readers keep the version they opened.
    """
    from pipeline.packing.jobs import append as run_append  # noqa: PLC0415
    from pipeline.packing.sources.open import open_sources  # noqa: PLC0415

    columns = _columns(options)
    with job_of(dest, **options) as job:
        _print_published(job.store.url, run_append(job, open_sources(sources, columns), columns))


@click.command(epilog=examples("pipeline retry-rejects s3://bucket/set --workers 8"))
@click.argument("dest")
@job_options
def retry_rejects(dest: str, **options: Any) -> None:
    """Pack the rejected pictures of the dataset at DEST that can be used now into a new version of it."""
    from pipeline.packing.jobs import retry_rejects as run_retry  # noqa: PLC0415

    options["max_reject_fraction"] = options["max_reject_fraction"] or 1.0  # all of them were rejected before
    with job_of(dest, **options) as job:
        _print_published(job.store.url, run_retry(job))


def _bytes(option: str, value: float, unit: int) -> int:
    if not 1 / unit <= value <= _MOST_MB:
        raise ConfigError(f"{option} {value} is a size above 0 and at most {_MOST_MB:,}")
    return int(value * unit)


def _columns(options: dict[str, Any]) -> Any:
    names = (
        "image_column",
        "label_column",
        "no_labels",
        "bytes_column",
        "classes_file",
        "classes_from",
        "image_members",
        "folder_labels",
    )
    return columns_of(**{name: options.pop(name) for name in names})


def _print_plan(planned: "Planned", num_slots: int, is_s3: bool) -> None:
    from pipeline.packing.plan_words import found_lines  # noqa: PLC0415

    plan = planned.plan
    shard_bytes = plan.num_bytes / plan.num_shards
    parts = -(-shard_bytes // _PART_BYTES)
    puts = plan.num_shards * (3 + (parts + 1 if parts > 1 else 0)) + len(planned.parts) + 8
    gets = plan.num_bytes // plan.config.block_bytes + plan.num_shards
    say(f"plan {plan.plan_id}")
    say(
        f"  {quantity(plan.num_samples, 'picture')}, {quantity(plan.num_classes, 'class')}, "
        f"{quantity(plan.num_shards, 'shard')}, about {human_bytes(plan.num_bytes)}"
    )
    for line in found_lines(plan):
        say(f"  {line}")
    probe = planned.probe
    say(
        f"  a picture has about {human_bytes(probe.mean_source_bytes)}, {100 * probe.stored_fraction:.0f} % of it is "
        f"stored"
    )
    say(
        f"  about {human_seconds(probe.seconds_per_image * plan.num_samples / num_slots)} with "
        f"{quantity(num_slots, 'worker')} ({1e3 * probe.seconds_per_image:.1f} ms a picture, tried on a few)"
    )
    if is_s3:
        say(
            f"  S3 list prices: {puts:,} PUT ${puts / 1000 * _USD_PER_1000_PUTS:,.2f}; "
            f"each epoch {gets:,} GET ${gets / 1000 * _USD_PER_1000_GETS:,.2f}; "
            f"storage ${plan.num_bytes / 1e9 * _USD_PER_GB_MONTH:,.2f} a month"
        )
    else:
        say(f"  on S3: {puts:,} PUT requests, ${puts / 1000 * _USD_PER_1000_PUTS:,.2f} at list price")
    say("nothing written")


def _print_published(url: str, version: "ManifestVersion") -> None:
    duplicates = f", {quantity(version.num_duplicates, 'duplicate')} left out" if version.num_duplicates else ""
    say(
        f"published {url} version {version.version}: {quantity(version.num_samples, 'sample')} in "
        f"{quantity(version.num_shards, 'shard')}, {human_bytes(version.num_bytes)}, {version.num_rejects:,} rejected"
        f"{f' {version.reject_reasons}' if version.reject_reasons else ''}{duplicates}"
    )
