"""`pipeline bench` and `peek`: a dataset as training would see it."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.base.console import EventLog, echo, examples, progress, say
from pipeline.base.quantities import human_bytes, quantity

if TYPE_CHECKING:
    from pipeline.dataset.dataset import Dataset
    from pipeline.streaming.stream import Stream
    from pipeline.streaming.throughput import Lap

_VIEWS = ("pretrain", "finetune", "evaluate")


def _opened(url: str) -> "Dataset":
    from pipeline.packing.foreign_tars.open_any import absolute_pattern, open_any  # noqa: PLC0415

    with progress("indexing", None, "tars") as advance:
        return open_any(absolute_pattern(url), on_tar=advance)


@click.command(
    epilog=examples(
        "pipeline bench s3://bucket/set --workers 8",
        "pipeline bench 's3://bucket/laion/{00000..00099}.tar' --seconds 30 --log bench.jsonl",
    )
)
@click.argument("url")
@click.option("--px", default=224, show_default=True, type=click.IntRange(1), help="Side of a picture.")
@click.option("--batch", default=64, show_default=True, type=click.IntRange(1), help="Pictures of a batch.")
@click.option(
    "--workers", default=1, show_default=True, type=click.IntRange(0), help="Loader processes; 0 for a thread."
)
@click.option("--lanes", default=16, show_default=True, type=click.IntRange(1), help="Lanes; divide the batch.")
@click.option("--window", default=4, show_default=True, type=click.IntRange(1), help="Blocks shuffled together.")
@click.option(
    "--budget-mb", default=1000, show_default=True, type=click.IntRange(1), help="Memory for what is read ahead."
)
@click.option("--read-threads", default=4, show_default=True, type=click.IntRange(1), help="Reads at once of a worker.")
@click.option("--cache", help="Folder on a local disk that keeps what was read.")
@click.option(
    "--seconds", default=10.0, show_default=True, type=click.FloatRange(0.1), help="Time to measure, after a warm-up."
)
@click.option("--seed", default=0, show_default=True, help="Of order and augmentation.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
@click.option("--log", help="Append the figures of each second as JSON lines to this file.")
def bench(url: str, as_json: bool, log: str | None, **options: Any) -> None:
    """Stream the dataset or WebDataset tars at URL as pretraining would, and report how fast and what limits it.

    Ctrl-C ends it with what was measured so far.
    """
    from pipeline.image.transforms import PretrainView  # noqa: PLC0415
    from pipeline.streaming.order import OrderConfig  # noqa: PLC0415
    from pipeline.streaming.selection import Selection  # noqa: PLC0415
    from pipeline.streaming.stream import LoaderConfig, Stream  # noqa: PLC0415

    dataset = _opened(url)
    num_workers, batch, px, lanes = (options[name] for name in ("workers", "batch", "px", "lanes"))
    order = OrderConfig(seed=options["seed"], batch_size=batch, num_lanes=lanes, window_blocks=options["window"])
    loader = LoaderConfig(
        num_workers=num_workers,
        budget_bytes=options["budget_mb"] * 1_000_000,
        read_threads=options["read_threads"],
        cache_folder=options["cache"],
    )
    stream = Stream(Selection(dataset), order, PretrainView(px), loader=loader)
    events = EventLog(log)
    if not as_json:
        how = f"{num_workers} loader process{'es' if num_workers > 1 else ''}" if num_workers else "a loader thread"
        say(f"{url}: {quantity(dataset.version.num_samples, 'sample')}, {px} px, batches of {batch}, {how}")
    lap = _measured(stream, min(num_workers, lanes), options["seconds"], events)
    if as_json:
        limit = lap.limit
        echo(json.dumps(lap.row() | {"reason": limit.reason, "remedy": limit.remedy}))
        return
    for line in _lines(lap):
        say(f"  {line}")


def _measured(stream: "Stream", num_workers: int, seconds: float, events: EventLog) -> "Lap":
    from pipeline.streaming.throughput import measure  # noqa: PLC0415

    with progress("measuring", None, "images") as advance:

        def on_second(lap: "Lap") -> None:
            advance(lap.images, lap.counts.bytes_read)
            events.write("second", **lap.row())

        return measure(stream, num_workers, seconds, on_second)


def _lines(lap: "Lap") -> list[str]:
    row, counts, limit = lap.row(), lap.counts, lap.limit
    lines = [f"{row['images_per_second']:,.0f} images/s over {lap.seconds:,.1f} s, {row['decode_ms']:.2f} ms a decode"]
    if counts.reads:
        lines.append(
            f"{human_bytes(counts.bytes_read / lap.seconds)}/s from storage in {row['reads_per_second']:,.1f} reads/s "
            f"of {row['read_ms']:,.0f} ms, {counts.retries:,} retries, {counts.hedges:,} hedges"
        )
    if counts.cache_hits:
        lines.append(f"{counts.cache_hits:,} blocks from the cache")
    if not counts.reads and not counts.cache_hits:
        lines.append("nothing was read: all of it fits the budget and stays in memory; lower --budget-mb to measure it")
    if lap.bad_samples:
        lines.append(f"{quantity(lap.bad_samples, 'damaged sample')} replaced; see `pipeline verify`")
    return [*lines, f"limited by {limit.stage}: {limit.reason}", f"to go faster: {limit.remedy}"]


@click.command(
    epilog=examples(
        "pipeline peek s3://bucket/set --out peek.html",
        "pipeline peek data/train --out peek.png --batches 1 --view finetune",
    )
)
@click.argument("url")
@click.option("--out", required=True, help="File to write: a page, or a picture where it ends in .png.")
@click.option("--batches", default=2, show_default=True, type=click.IntRange(1), help="Batches to show.")
@click.option("--batch", default=32, show_default=True, type=click.IntRange(1), help="Pictures of a batch.")
@click.option("--px", default=224, show_default=True, type=click.IntRange(8), help="Side of a picture.")
@click.option("--view", default="pretrain", show_default=True, type=click.Choice(_VIEWS), help="The augmentation.")
@click.option("--seed", default=0, show_default=True, help="Of order and augmentation.")
def peek(url: str, out: str, batches: int, batch: int, px: int, view: str, seed: int) -> None:
    """Show decoded, augmented batches of the dataset or WebDataset tars at URL on one offline page."""
    from pipeline.upkeep.contact_sheet import VIEWS, batches_of, page, sheet, tiles  # noqa: PLC0415

    dataset = _opened(url)
    drawn = batches_of(dataset, VIEWS[view](px), seed=seed, batch_size=batch, count=batches)
    shown = [list(tiles(dataset, one)) for one in drawn]
    if out.lower().endswith(".png"):
        body = sheet(shown)
    else:
        what = f"What training sees first: {quantity(batches * batch, 'picture')} in {quantity(batches, 'batch')}"
        about = f"{what}; version {dataset.version.version}, {view} view at {px} px, seed {seed}"
        body = page(url, about, shown)
    Path(out).write_bytes(body)
    num_replaced = sum(bool(tile.replaced) for one in shown for tile in one)
    replaced = f", {num_replaced:,} of them in place of damaged ones" if num_replaced else ""
    say(f"{out}: {quantity(batches * batch, 'picture')}{replaced}")
