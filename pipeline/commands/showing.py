"""`pipeline inspect`, `stats`, `export` and `index`."""

import json
from pathlib import Path

import click

from pipeline.base.console import echo, examples, progress, say
from pipeline.base.errors import ConfigError
from pipeline.base.ignored import ignored_line
from pipeline.base.quantities import human_bytes, plural, quantity
from pipeline.commands.options import checked_split, class_list, pool_of, pool_options

EXPORTS = ("timm", "open-clip", "wids", "dali", "energon", "huggingface")
_SHOWN_CLASSES = 20


@click.command(epilog=examples("pipeline inspect s3://bucket/set", "pipeline inspect data/train --json"))
@click.argument("url")
@click.option("--version", "version_number", type=int, help="Manifest version; the latest by default.")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest record as JSON.")
def inspect(url: str, version_number: int | None, as_json: bool) -> None:
    """Show what the dataset at URL is: version, sizes and rejects. Reads no sidecar; see `pipeline stats`."""
    from pipeline.packing.foreign_tars.open_any import open_any  # noqa: PLC0415
    from pipeline.upkeep.statistics import reject_lines  # noqa: PLC0415

    dataset = open_any(url, version_number)
    if as_json:
        echo(dataset.version.to_json().decode(), nl=False)
        return
    version = dataset.version
    say(f"{url} version {version.version} ({version.format}, written by {version.writer})")
    say(
        f"  {quantity(version.num_samples, 'sample')}, {quantity(version.num_shards, 'shard')}, "
        f"{human_bytes(version.num_bytes)}"
    )
    say(
        f"  {quantity(dataset.blocks.num_rows, 'block')}, descriptor {version.descriptor}, "
        f"{plural(len(version.plan_ids), 'plan')} {', '.join(version.plan_ids)}"
    )
    say(
        f"  {quantity(version.num_classes, 'class')}, {version.num_rejects:,} rejected, "
        f"{quantity(version.num_duplicates, 'duplicate')}"
    )
    for line in reject_lines(dataset):
        say(f"  rejected {line}")


@click.command(epilog=examples("pipeline stats s3://bucket/set", "pipeline stats data/train --html stats.html"))
@click.argument("url")
@click.option("--version", "version_number", type=int, help="Manifest version; the latest by default.")
@click.option("--html", "html_path", help="Write the statistics as a page with pictures to this file.")
@click.option("--json", "as_json", is_flag=True, help="Print all counts as JSON.")
def stats(url: str, version_number: int | None, html_path: str | None, as_json: bool) -> None:
    """Show classes, label counts, and sizes of the dataset at URL, from its sidecars."""
    from pipeline.packing.foreign_tars.open_any import open_any  # noqa: PLC0415
    from pipeline.upkeep.statistics import page, percentile, statistics  # noqa: PLC0415

    dataset = open_any(url, version_number)
    with progress("reading sidecars", len(dataset.shards), "shards") as advance:
        summary = statistics(dataset, lambda count: advance(count, 0))
    if html_path:
        Path(html_path).write_bytes(page(dataset, summary))
    if as_json:
        echo(json.dumps(summary.to_dict()))
        return
    count = dataset.version.num_samples
    say(f"{url} version {dataset.version.version}: {quantity(count, 'sample')}")
    say(
        f"  image: {human_bytes(summary.num_image_bytes / count)}, {summary.num_pixels / count / 1e6:.2g} MP on average"
    )
    for name, counts, unit in (
        ("shorter side", summary.shorter_side, "px"),
        ("size", summary.kilobytes, "kB"),
        ("labels", summary.labels_per_sample, "a sample"),
    ):
        low, middle, high = (percentile(counts, share) for share in (0.05, 0.5, 0.95))
        say(f"  {name}: median {middle:,} {unit}, 5 to 95 %: {low:,} to {high:,}")
    say(f"  {len(summary.classes):,} of {dataset.version.num_classes:,} classes have samples")
    for label, samples in summary.classes.most_common(_SHOWN_CLASSES):
        say(f"    {dataset.class_name(label)}: {samples:,}")
    if len(summary.classes) > _SHOWN_CLASSES:
        say(f"    ... and {quantity(len(summary.classes) - _SHOWN_CLASSES, 'more class')}")
    if html_path:
        say(f"page: {html_path}")


@click.command(
    epilog=examples("pipeline export s3://bucket/set", "pipeline export data/train --format timm --format wids")
)
@click.argument("url")
@click.option("--format", "formats", multiple=True, type=click.Choice(EXPORTS), help="May be repeated; all by default.")
def export(url: str, formats: tuple[str, ...]) -> None:
    """Write the index files that other tools want beside the shards of the dataset at URL."""
    from pipeline.dataset.dataset import open_dataset  # noqa: PLC0415
    from pipeline.exports.write import export as write_exports  # noqa: PLC0415
    from pipeline.store.url import absolute_url  # noqa: PLC0415

    dataset = open_dataset(absolute_url(url))
    with progress("exporting", len(dataset.shards) * len(formats or EXPORTS), "shards") as advance:
        for written in write_exports(dataset, formats or EXPORTS, lambda count: advance(count, 0)):
            say(f"{written.format}: {written.key}  ({written.how_to_use})")


@click.command(
    epilog=examples("pipeline index s3://bucket/laion-part", "pipeline index data/cc12m --classes names.txt")
)
@click.argument("url")
@click.option("--split", default="train", show_default=True, help="What the dataset is.")
@click.option("--classes", "classes_file", help="File with one class name a line; the line number is the label.")
@click.option("--block-mib", default=8.0, show_default=True, help="Size of a read and shuffle block in MiB.")
@pool_options
def index(url: str, split: str, classes_file: str | None, block_mib: float, workers: int | None, on_ray: bool) -> None:
    """Make the WebDataset tars below URL a dataset, without touching them: sidecars and a manifest beside them."""
    from pipeline.packing.foreign_tars.index_tars import adopt, ignored_members  # noqa: PLC0415
    from pipeline.store.url import absolute_url, open_store  # noqa: PLC0415

    if block_mib <= 0:
        raise ConfigError(f"--block-mib {block_mib} is a size above 0")
    store = open_store(absolute_url(url))
    with pool_of(workers, on_ray) as pool, progress("indexing", None, "tars") as advance:
        version = adopt(
            store,
            pool,
            split=checked_split(split),
            classes=class_list(classes_file),
            block_bytes=int(block_mib * (1 << 20)),
            on_tar=advance,
        )
    say(
        f"published {store.url} version {version.version}: {quantity(version.num_samples, 'sample')} in "
        f"{quantity(version.num_shards, 'tar')}, {version.num_rejects:,} rejected"
        f"{f' {version.reject_reasons}' if version.reject_reasons else ''}"
    )
    ignored = ignored_members(store, version)
    if ignored:
        say(ignored_line(ignored))
    if version.num_classes == 0:
        say("no sample has a label: they are read from NAME.cls, or from labels, label or cls in NAME.json")
